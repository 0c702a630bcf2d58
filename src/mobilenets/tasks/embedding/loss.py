"""What embeddings cost, by pytorch-metric-learning.

Shapes: N images, D values of an embedding.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mobilenets.data.splits import UNKNOWN
from mobilenets.training.imitation import squared
from mobilenets.training.recipe import EmbeddingChoice

# Squared distance; degrees.
TRIPLET_MARGIN, ARCFACE_MARGIN = 0.2, 28.6


class TripletLoss(nn.Module):
    """An image should be nearer to each of the same identity than to those of others, by a margin in squared distance.

    Of the others in the batch it takes those that are further away than the one of the same, but not by the margin: harder ones
    make all embeddings fall into one, easier ones teach nothing (Schroff et al., arXiv 1503.03832, section 3.2).

    >>> from torch import tensor
    >>> anchor, same, other = [1.0, 0.0], [0.8, 0.6], [0.6, 0.8]
    >>> loss = TripletLoss(1.0)(tensor([anchor, same, other]), tensor([0, 0, 1]))
    >>> round(float(loss), 4)
    0.6
    """

    def __init__(self, margin: float = TRIPLET_MARGIN) -> None:
        super().__init__()
        from pytorch_metric_learning.distances import LpDistance
        from pytorch_metric_learning.losses import TripletMarginLoss
        from pytorch_metric_learning.miners import TripletMarginMiner

        distance = LpDistance(normalize_embeddings=True, p=2, power=2)
        self._miner = TripletMarginMiner(margin, type_of_triplets="semihard", distance=distance)
        self._loss = TripletMarginLoss(margin, distance=distance)

    def forward(self, outputs_ND: Tensor, targets_N: Tensor) -> Tensor:
        """The mean over all triplets that still cost something; 0 where there are none."""
        loss: Tensor = self._loss(outputs_ND, targets_N, self._miner(outputs_ND, targets_N))
        return loss


def arcface(identities: int, choice: EmbeddingChoice) -> nn.Module:
    """Cross-entropy over the identities of training, each a direction, the right one made harder by an angle.

    `W` (D, identities) holds the directions, and is learnt (Deng et al., arXiv 1801.07698).
    """
    from pytorch_metric_learning.losses import ArcFaceLoss

    margin = choice.margin or ARCFACE_MARGIN
    loss: nn.Module = ArcFaceLoss(identities, choice.size, margin=margin, scale=choice.scale)
    return loss


def known(outputs_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Those whose identity is known."""
    known_N = targets_N != UNKNOWN
    return outputs_ND[known_N], targets_N[known_N]


def embedding_distance(outputs_ND: Tensor, taught_ND: Tensor) -> Tensor:
    """Squared distance from a teacher's embeddings, both of length 1, a mean over the images (section 4.7 of the paper).

    >>> from torch import tensor
    >>> float(embedding_distance(tensor([[3.0, 0.0]]), tensor([[0.0, 2.0]])))
    2.0
    """
    return squared(F.normalize(outputs_ND, dim=-1), F.normalize(taught_ND, dim=-1))
