"""What an exported file of a detector computes, and how far it is from the run.

Shapes: N images, C channels, H height, W width, A boxes, K classes, F boxes told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from mobilenets.architecture.detector import Selection
from mobilenets.architecture.steps import Steps
from mobilenets.tasks.detection.boxes import Objects, Scores, place, rows_of, select, shares_of
from mobilenets.tasks.detection.ssd import PyramidSsd, Ssd
from mobilenets.training.agreement import MIN_AGREEMENT, Agreement

# Boxes that people are told, which must be found again.
_SURE, _OVERLAP = 0.3, 0.8
_ROUNDING_OVERLAP, _ROUNDING_SCORE = 0.98, 0.01


class PlacedBoxes(nn.Module):
    """SSD with its boxes placed: (N, C, H, W) to (N, A, 4 + K), left, top, right and bottom as shares of the sides, and a
    score for each class.

    Args:
        boxes_A4: where they stand before the network moves them.
    """

    def __init__(self, network: Ssd | PyramidSsd, boxes_A4: Tensor, scores: Scores) -> None:
        super().__init__()
        self.network, self.scores = network, scores
        self.boxes_A4: Tensor
        self.register_buffer("boxes_A4", boxes_A4, persistent=False)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """(N, A, 4 + K)."""
        return self._placed(*self.network.parts(images_NCHW))

    def parts(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """How boxes are moved (N, A, 4), and scores, the background's first (N, A, 1 + K)."""
        moves_NA4, logits_NAK = self.network.parts(images_NCHW)
        return moves_NA4, shares_of(logits_NAK, self.scores)

    def _placed(self, moves_NA4: Tensor, logits_NAK: Tensor) -> Tensor:
        scores_NAK = shares_of(logits_NAK, self.scores)[..., 1:]
        return torch.cat([place(moves_NA4, self.boxes_A4), scores_NAK], -1)

    def steps(self) -> Steps:
        """The network's.

        Raises:
            ValueError: it can't be taken apart.
        """
        if not isinstance(self.network, Ssd):
            raise ValueError(
                "int8 is for classifiers and SSD, not for SSD on a feature pyramid: export it in floats"
            )
        whole = self.network.steps()

        def join(ends: Mapping[str, Tensor]) -> Tensor:
            outputs_NAD = whole.join(ends)
            return self._placed(outputs_NAD[..., :4], outputs_NAD[..., 4:])

        return Steps(whole.modules, whole.sources, join)


class FoundBoxes(nn.Module):
    """The best of them: (N, C, H, W) to (N, F, 6), box, score and class; a score of 0 where there are fewer."""

    def __init__(self, placed: PlacedBoxes, selection: Selection) -> None:
        super().__init__()
        self.placed, self.selection = placed, selection

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """(N, F, 6)."""
        placed_NAD = self.placed(images_NCHW)
        found = select(placed_NAD, self.selection)
        _, boxes, values = placed_NAD.shape
        most = min(self.selection.most, boxes * (values - 4))
        return rows_of(found, most, images_NCHW)


@dataclass(frozen=True)
class BoxAgreement(Agreement):
    """How many of the sure boxes of either are found by the other: the same class, overlapping by more than 0.8.

    Sure is a score of 0.3, or half of the best where none has that much.

    Args:
        boxes: so many there are, of both.
        agreement: the share that is found again; 1 where there are none.
        least_overlap, largest_difference: of those, of the boxes and of the scores.
    """

    boxes: int
    agreement: float
    least_overlap: float
    largest_difference: float

    @property
    def share(self) -> float:
        """Of the boxes, those that are found again."""
        return self.agreement

    @property
    def holds(self) -> bool:
        """Whether 99.9 % are found again, overlapping by 0.98 at least, with scores that differ by 0.01 at most."""
        return (
            self.agreement >= MIN_AGREEMENT
            and self.least_overlap >= _ROUNDING_OVERLAP
            and self.largest_difference <= _ROUNDING_SCORE
        )

    def __str__(self) -> str:
        return (
            f"{100 * self.agreement:.2f} % of {self.boxes} boxes on {self.images} images are found again "
            f"(overlaps from {self.least_overlap:.3f} on, scores differ by {self.largest_difference:.2g} at most)"
        )


def compare_objects(reference: Sequence[Objects], other: Sequence[Objects]) -> BoxAgreement:
    """Look for the sure boxes of each among those of the other, image by image."""
    scores = torch.cat([objects.scores_M for objects in (*reference, *other)])
    sure = min(_SURE, float(scores.max()) / 2) if len(scores) else _SURE
    boxes = again = 0
    overlap, difference = 1.0, 0.0
    for one, two in zip(reference, other, strict=True):
        for wanted, given in ((one, two), (two, one)):
            sure_M = wanted.scores_M >= sure
            boxes += int(sure_M.sum())
            if not sure_M.any() or not len(given):
                continue
            overlaps_MG = box_iou(wanted.boxes_M4[sure_M], given.boxes_M4)
            same_MG = wanted.labels_M[sure_M][:, None] == given.labels_M
            best_M, where_M = overlaps_MG.where(same_MG, 0.0).max(1)
            found_M = best_M > _OVERLAP
            again += int(found_M.sum())
            apart_M = (wanted.scores_M[sure_M] - given.scores_M[where_M]).abs()[found_M]
            overlap = min([overlap, *best_M[found_M].tolist()])
            difference = max([difference, *apart_M.tolist()])
    share = again / boxes if boxes else 1.0
    return BoxAgreement(len(reference), boxes, share, overlap, difference)
