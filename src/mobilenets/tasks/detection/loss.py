"""What a detector is taught: which of its boxes hold something, what, and how far they must move.

Shapes: N images, A boxes of a detector, K classes, M boxes told, which come as `data/box_loader.py` makes them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import SSDMatcher
from torchvision.ops import box_area, box_iou, sigmoid_focal_loss

from mobilenets.data.box_loader import IGNORED, LABEL
from mobilenets.tasks.detection.boxes import CODER, Scores, shares_of
from mobilenets.training.imitation import binary_divergence, divergence

# A box of the detector is taught the object that it overlaps by this much, or by the most of all.
OVERLAP = 0.5
NEGATIVES = 3
# Of images without objects, so many boxes are taught that they hold nothing (gluon-cv#627).
LEAST_NEGATIVES = 8


def match(boxes_A4: Tensor, told_MD: Tensor) -> Tensor:
    """Which object each box is taught (A,): a row of `told_MD`, or -1 for none.

    An object that overlaps with no box by half is taught to the one that it overlaps with most, unless another object
    has that one too.

    >>> grid = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    >>> match(grid, torch.tensor([[0.6, 0.6, 0.9, 0.9, 2.0, 0.0]]))
    tensor([-1,  0])
    """
    if not len(told_MD):
        return torch.full((len(boxes_A4),), -1, device=boxes_A4.device)
    matched_A: Tensor = SSDMatcher(OVERLAP)(box_iou(told_MD[:, :4], boxes_A4))
    return matched_A.clamp(min=-1)


def _inside(boxes_A4: Tensor, ignored_M4: Tensor) -> Tensor:
    """Which boxes (A,) lie by half or more in something ignored, such as a crowd: they are neither object nor background."""
    if not len(ignored_M4):
        return torch.zeros(len(boxes_A4), dtype=torch.bool, device=boxes_A4.device)
    sides_AM2 = torch.minimum(boxes_A4[:, None, 2:], ignored_M4[None, :, 2:4]) - torch.maximum(
        boxes_A4[:, None, :2], ignored_M4[None, :, :2]
    )
    shared_AM = sides_AM2.clamp(min=0).prod(-1)
    inside_A: Tensor = (shared_AM >= OVERLAP * box_area(boxes_A4)[:, None]).any(1)
    return inside_A


def detection_loss(
    outputs_NAD: Tensor, told_NMD: Tensor, boxes_A4: Tensor, scores: Scores, *, focal: bool
) -> dict[str, Tensor]:
    """`loss`, the sum of `box_loss` and `class_loss`, each for one box that holds something.

    Args:
        outputs_NAD: of the network, (N, A, 4 + 1 + K).
        boxes_A4: where they stand.
        scores: what becomes of its scores.
        focal: weigh all boxes by how wrong they are (Lin et al. 2017); else take those without an object that are most
            wrong, three for each that has one (Liu et al. 2016, section 2.2).
    """
    moves_NA4, logits_NAK = outputs_NAD[..., :4].float(), outputs_NAD[..., 4:].float()
    classes_NA = torch.zeros(logits_NAK.shape[:2], dtype=torch.int64, device=logits_NAK.device)
    taught_NA = torch.ones_like(classes_NA, dtype=torch.bool)
    box_loss = moves_NA4.sum() * 0
    for number, told_MD in enumerate(told_NMD):
        told_MD = told_MD[told_MD[:, LABEL] >= 0]
        ignored_M = told_MD[:, IGNORED] > 0
        matched_A = match(boxes_A4, told_MD[~ignored_M])
        held_P = (matched_A >= 0).nonzero().flatten()
        taught_NA[number] = ~_inside(boxes_A4, told_MD[ignored_M])
        taught_NA[number, held_P] = True
        taught_PD = told_MD[~ignored_M][matched_A[held_P]]
        classes_NA[number, held_P] = taught_PD[:, LABEL].long() + 1
        wanted_P4 = CODER.encode_single(taught_PD[:, :4], boxes_A4[held_P])
        box_loss = box_loss + F.smooth_l1_loss(
            moves_NA4[number, held_P], wanted_P4, reduction="sum"
        )
    held_NA = classes_NA > 0
    count = held_NA.sum().clamp(min=1)
    each_NA = _class_losses(logits_NAK, classes_NA, scores, focal=focal) * taught_NA
    if focal:
        class_loss = each_NA.sum()
    else:
        class_loss = each_NA[held_NA].sum() + _hardest(each_NA, held_NA, taught_NA).sum()
    box_loss, class_loss = box_loss / count, class_loss / count
    return {"loss": box_loss + class_loss, "box_loss": box_loss, "class_loss": class_loss}


def imitation_loss(
    outputs_NAD: Tensor, taught_NAD: Tensor, scores: Scores, temperature: float
) -> Tensor:
    """How far a detector is from a teacher with the same boxes, for one box that the teacher sees something in.

    The divergence of all scores from the teacher's, and how far boxes move from where it moves them, weighed by how sure it is
    that something is there.

    Args:
        outputs_NAD, taught_NAD: of both networks, (N, A, 4 + 1 + K).
    """
    moves_NA4, logits_NAK = outputs_NAD[..., :4].float(), outputs_NAD[..., 4:].float()
    wanted_NA4, taught_NAK = taught_NAD[..., :4].float(), taught_NAD[..., 4:].float()
    sure_NA = shares_of(taught_NAK, scores)[..., 1:].amax(-1)
    diverge = divergence if scores == "softmax" else binary_divergence
    moved_NA = F.smooth_l1_loss(moves_NA4, wanted_NA4, reduction="none").sum(-1)
    whole = diverge(logits_NAK, taught_NAK, temperature) + (moved_NA * sure_NA).sum()
    return whole / sure_NA.sum().clamp(min=1)


def _class_losses(logits_NAK: Tensor, classes_NA: Tensor, scores: Scores, *, focal: bool) -> Tensor:
    if scores == "softmax":
        return F.cross_entropy(
            logits_NAK.flatten(0, 1), classes_NA.flatten(), reduction="none"
        ).view(classes_NA.shape)
    wanted_NAK = F.one_hot(classes_NA, logits_NAK.shape[-1]).to(logits_NAK.dtype)
    if focal:
        losses: Tensor = sigmoid_focal_loss(logits_NAK, wanted_NAK)
        return losses.sum(-1)
    return F.binary_cross_entropy_with_logits(logits_NAK, wanted_NAK, reduction="none").sum(-1)


def _hardest(each_NA: Tensor, held_NA: Tensor, taught_NA: Tensor) -> Tensor:
    """Losses of the boxes without an object that are most wrong, by image."""
    held_N = held_NA.sum(1)
    wanted_N = torch.where(held_N > 0, NEGATIVES * held_N, LEAST_NEGATIVES)
    free_NA = ~held_NA & taught_NA
    order_NA = torch.where(free_NA, each_NA, -1.0).argsort(1, descending=True)
    rank_NA = torch.empty_like(order_NA)
    places_NA = torch.arange(order_NA.shape[1], device=order_NA.device).expand_as(order_NA)
    rank_NA.scatter_(1, order_NA, places_NA)
    return each_NA[free_NA & (rank_NA < wanted_N[:, None])]
