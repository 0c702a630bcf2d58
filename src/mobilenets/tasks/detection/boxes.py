"""The boxes that a detector starts from, and how its outputs move them.

Shapes: N images, A boxes of a detector, K classes, M boxes found,
C candidates. A box is (left, top, right, bottom) as
shares of the image's width and height.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms

from mobilenets.architecture.detector import (
    BOX_SCALES,
    DetectorSpec,
    Selection,
    places_of_boxes,
)

Scores = Literal["sigmoid", "softmax"]

CODER = BoxCoder(tuple(BOX_SCALES.values()))


@dataclass(frozen=True)
class Objects:
    """What was found in one image, the best first.

    Args:
        boxes_M4: within the image.
        labels_M: class indices, without the background.
    """

    boxes_M4: Tensor
    scores_M: Tensor
    labels_M: Tensor

    def __len__(self) -> int:
        return len(self.scores_M)


EVERYTHING = Selection()


def objects_in(
    outputs_NAD: Tensor,
    boxes_A4: Tensor,
    scores: Scores = "sigmoid",
    selection: Selection = EVERYTHING,
) -> list[Objects]:
    """What a detector's outputs (N, A, 4 + 1 + K) say, image by image.

    >>> outputs = torch.full((1, 1, 4 + 1 + 2), -9.0)
    >>> outputs[..., :4], outputs[..., -1] = 0.0, 9.0
    >>> (found,) = objects_in(outputs, torch.tensor([[0.1, 0.2, 0.5, 0.6]]))
    >>> found.boxes_M4, found.labels_M
    (tensor([[0.1000, 0.2000, 0.5000, 0.6000]]), tensor([1]))
    """
    outputs_NAD = outputs_NAD.float()
    placed_NA4 = place(outputs_NAD[..., :4], boxes_A4)
    return select(
        torch.cat([placed_NA4, shares_of(outputs_NAD[..., 4:], scores)[..., 1:]], -1), selection
    )


def place(moves_NA4: Tensor, boxes_A4: Tensor) -> Tensor:
    """Where boxes are after the network has moved them, perhaps over the image's edge: (N, A, 4)."""
    # The same for both sides.
    moved, _, grown, _ = CODER.weights
    sizes_A2 = boxes_A4[:, 2:] - boxes_A4[:, :2]
    centres_A2 = boxes_A4[:, :2] + sizes_A2 / 2
    centres_NA2 = moves_NA4[..., :2] / moved * sizes_A2 + centres_A2
    growth_NA2 = (moves_NA4[..., 2:] / grown).clamp(max=CODER.bbox_xform_clip)
    halves_NA2 = growth_NA2.exp() * sizes_A2 / 2
    return torch.cat([centres_NA2 - halves_NA2, centres_NA2 + halves_NA2], -1)


def shares_of(logits_NAK: Tensor, scores: Scores) -> Tensor:
    """Scores from 0 to 1, the background's first."""
    return logits_NAK.sigmoid() if scores == "sigmoid" else logits_NAK.softmax(-1)


def select(placed_NAD: Tensor, selection: Selection = EVERYTHING) -> list[Objects]:
    """The best of boxes that are placed and have a score for each class (N, A, 4 + K), image by image."""
    return [
        _objects(placed_AD[:, :4], placed_AD[:, 4:], selection) for placed_AD in placed_NAD.float()
    ]


def rows_of(found: Sequence[Objects], most: int, like: Tensor) -> Tensor:
    """What was found as (N, F, 6): left, top, right, bottom, score, class; rows beyond it have a score of 0.

    Args:
        most: F.
        like: a tensor of the kind that is wanted.
    """
    rows_NF6 = like.new_zeros(len(found), most, 6)
    for number, objects in enumerate(found):
        count = len(objects)
        rows_NF6[number, :count, :4] = objects.boxes_M4
        rows_NF6[number, :count, 4] = objects.scores_M
        rows_NF6[number, :count, 5] = objects.labels_M.to(rows_NF6.dtype)
    return rows_NF6


def objects_of(rows_NF6: Tensor, least: float) -> list[Objects]:
    """What such rows say, image by image, from a score on."""
    found = []
    for rows_F6 in rows_NF6.float():
        rows_M6 = rows_F6[(rows_F6[:, 4] > 0) & (rows_F6[:, 4] >= least)]
        found.append(Objects(rows_M6[:, :4], rows_M6[:, 4], rows_M6[:, 5].long()))
    return found


def _objects(boxes_A4: Tensor, scores_AK: Tensor, selection: Selection) -> Objects:
    classes = scores_AK.shape[1]
    scores_C, where_C = scores_AK.flatten().topk(min(selection.candidates, scores_AK.numel()))
    good_C = scores_C >= selection.score
    scores_C, where_C = scores_C[good_C], where_C[good_C]
    labels_C, boxes_C4 = where_C % classes, boxes_A4[where_C // classes]
    kept_M = batched_nms(boxes_C4, scores_C, labels_C, selection.overlap)[: selection.most]
    return Objects(boxes_C4[kept_M].clamp(0, 1), scores_C[kept_M], labels_C[kept_M])


def boxes_of(spec: DetectorSpec) -> Tensor:
    """Where a detector's boxes stand before it moves them: (A, 4), level by level, row by row.

    They may reach over the image's edge.

    >>> boxes_A4 = boxes_of(DetectorSpec.parse("ssd300/1.0"))
    >>> boxes_A4.shape, boxes_A4[-6]
    (torch.Size([1917, 4]), tensor([0.0250, 0.0250, 0.9750, 0.9750]))
    """
    places_A4 = torch.tensor(list(places_of_boxes(spec)), dtype=torch.float64)
    middles_A2, halves_A2 = places_A4[:, :2], places_A4[:, 2:] / 2
    return torch.cat([middles_A2 - halves_A2, middles_A2 + halves_A2], 1).float()
