"""How well embeddings tell identities apart, over an evaluation.

Shapes: N images, D values of an embedding.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mobilenets.data.loaders import Batch
from mobilenets.data.progress import say
from mobilenets.tasks.embedding.loss import TRIPLET_MARGIN, embedding_distance
from mobilenets.tasks.embedding.verification import SamePairs, rank_one, similarities, verify

FIGURES = ("auc", "rank1", "equal_error_rate", "loss")
# Without identities, a teacher's embeddings are what there is to judge by.
TAUGHT_FIGURES = ("likeness", "loss")
# The mean squared distance of all embeddings to each other; of directions at random it is 2.
_COLLAPSED = 1e-4


class EmbeddingMetrics:
    """Of all pairs of images: `auc` and `equal_error_rate` of telling the same from others; `rank1`, the share of images whose nearest
    is of the same; `loss`, how much nearer in squared distance the nearest of others is than that of the same, plus 0.2: the margin
    of triplets.

    Args:
        taught: judge by a teacher's embeddings instead: `likeness` is the mean cosine, `loss` the squared distance.
    """

    def __init__(self, *, taught: bool = False) -> None:
        # torchmetrics takes seconds to import, and prediction does not need it.
        from torchmetrics import CatMetric

        self._taught = taught
        self._embeddings, self._told = CatMetric(), CatMetric()
        self._size = 0
        self._details: dict[str, Any] = {}
        # Similarities of pairs of the same and of others, after `compute`.
        self.pairs: SamePairs | None = None

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Count one batch of outputs (N, D)."""
        self._size = outputs.shape[1]
        self._embeddings.update(F.normalize(outputs.float(), dim=1).cpu())
        if self._taught:
            assert batch.taught_N is not None
            self._told.update(batch.taught_N.float().cpu())
        else:
            self._told.update(batch.targets_N.cpu())

    def compute(self) -> dict[str, float]:
        """The figures, over all processes.

        Raises:
            ValueError: no two images are of the same identity, or all are.
        """
        embeddings_ND = self._embeddings.compute().view(-1, self._size)
        told = self._told.compute()
        spread = spread_of(embeddings_ND)
        if len(embeddings_ND) > 1 and spread < _COLLAPSED:
            say(
                f"all images have the same embedding (mean squared distance {spread:.1g}; a triplet loss stays at its margin): "
                "begin with --weights or a lower optimizer.lr"
            )
        self._details = {"spread": spread}
        if self._taught:
            told_ND = told.view(-1, self._size)
            distance = float(embedding_distance(embeddings_ND, told_ND))
            return {"likeness": 1 - distance / 2, "loss": distance}
        embeddings, targets_N = embeddings_ND.numpy(), told.long().numpy()
        self.pairs = similarities(embeddings, targets_N)
        found = verify(*self.pairs)
        rank1, ahead = rank_one(embeddings, targets_N)
        self._details |= {"verification": found.to_dict()}
        return {
            "auc": found.auc,
            "rank1": rank1,
            "equal_error_rate": found.equal_error_rate,
            "loss": TRIPLET_MARGIN - ahead,
        }

    def details(self) -> dict[str, Any]:
        """`spread`, the mean squared distance of the embeddings to each other, near 0 where they have collapsed; `verification`, the figures
        of all pairs, TAR at several FAR among them.
        """
        assert self._details, "compute comes first"
        return self._details


def spread_of(embeddings_ND: Tensor) -> float:
    """The mean squared distance of embeddings of length 1 to each other.

    >>> from torch import tensor
    >>> spread_of(tensor([[1.0, 0.0], [-1.0, 0.0]]))
    2.0
    """
    return 2 * (1 - float(embeddings_ND.mean(0).square().sum()))
