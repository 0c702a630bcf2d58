"""Faster R-CNN on a MobileNet, of torchvision's parts: regions are proposed on block 11, and looked at by blocks 12 and 13.

Shapes: N images, C channels, H height, W width, P proposals, K classes and the background, which is class 0, M boxes told,
F boxes found.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign

from mobilenets.architecture.detector import (
    CROP,
    PROPOSALS,
    TAPS,
    DetectorSpec,
    detector_layers,
    levels_of,
)
from mobilenets.architecture.network import MobileNet, forward_blocks
from mobilenets.data.box_loader import IGNORED, LABEL
from mobilenets.tasks.detection.boxes import Objects, boxes_of, rows_of

FOUND = 100
_MAP = "0"
# Boxes an image that the second stage is taught by; a quarter hold something.
_TAUGHT = 64


class FasterRcnn(nn.Module):
    """Two stages (section 4.6).

    The body's weights have the names that they have in a `MobileNet`. TensorFlow's second stage has no batch norm between
    the depthwise and the pointwise convolution of its two blocks; here they are the body's own, so that weights of
    any classifier fit. What is ignored, such as a crowd, is background to it.

    Args:
        spec: of framework `frcnn`.
        num_classes: without the background.

    >>> network = FasterRcnn(DetectorSpec.parse("frcnn128/0.25"), num_classes=3).eval()
    >>> network(torch.zeros(2, 3, 128, 128)).shape
    torch.Size([2, 100, 6])
    """

    def __init__(self, spec: DetectorSpec, num_classes: int) -> None:
        super().__init__()
        rows = {row.name: row for row in detector_layers(spec, num_classes)}
        self.spec, self.num_classes = spec, num_classes
        self.body = MobileNet(spec.body, None).body
        self.proposals = RegionProposalNetwork(
            _Grid(spec),
            _ProposalHead(
                rows["rpn.conv"].in_channels,
                rows["rpn.conv"].out_channels,
                len(levels_of(spec)[0].shapes),
            ),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": 1000},
            post_nms_top_n={"training": PROPOSALS, "testing": PROPOSALS},
            nms_thresh=0.7,
        )
        self.second = RoIHeads(
            MultiScaleRoIAlign([_MAP], CROP, sampling_ratio=2),
            # Not a module of its own: the blocks are the body's.
            self._look,
            _Heads(rows["scores"].in_channels, num_classes),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=_TAUGHT,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=0.01,
            nms_thresh=0.6,
            detections_per_img=FOUND,
        )

    def forward(
        self, images_NCHW: Tensor, told_NMD: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        """What is found in images, or in training mode the losses of both stages against what is told.

        Args:
            images_NCHW: of the specification's size.
            told_NMD: boxes as `data/box_loader.py` makes them.
        """
        if told_NMD is not None:
            return self._taught(images_NCHW, told_NMD)
        return self._found(images_NCHW)

    def _found(self, images_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) to (N, F, 6): left, top, right, bottom as shares of the sides, score, class without the background;
        rows beyond what was found have a score of 0.
        """
        found, _ = self._run(images_NCHW, None)
        height, width = images_NCHW.shape[-2:]
        sides_4 = images_NCHW.new_tensor([width, height]).repeat(2)
        objects = [
            Objects(one["boxes"] / sides_4, one["scores"], one["labels"] - 1) for one in found
        ]
        return rows_of(objects, FOUND, images_NCHW)

    def _taught(self, images_NCHW: Tensor, told_NMD: Tensor) -> dict[str, Tensor]:
        if not len(images_NCHW):
            # One of several processes may have no image of a small batch, and its parameters still take part.
            return {"loss_classifier": sum(weight.sum() * 0 for weight in self.parameters())}  # type: ignore[dict-item]
        height, width = images_NCHW.shape[-2:]
        sides_4 = images_NCHW.new_tensor([width, height]).repeat(2)
        targets = []
        for told_MD in told_NMD:
            told_MD = told_MD[(told_MD[:, LABEL] >= 0) & (told_MD[:, IGNORED] == 0)]
            targets.append(
                {"boxes": told_MD[:, :4] * sides_4, "labels": told_MD[:, LABEL].long() + 1}
            )
        _, losses = self._run(images_NCHW, targets)
        return losses

    def _run(
        self, images_NCHW: Tensor, targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        block = f"block{TAPS[1]}"
        x_NCHW = forward_blocks(self.body, images_NCHW, [block])[block]
        sizes = [(images_NCHW.shape[-2], images_NCHW.shape[-1])] * len(images_NCHW)
        maps = {_MAP: x_NCHW}
        regions, first = self.proposals(ImageList(images_NCHW, sizes), maps, targets)
        found, second = self.second(maps, regions, sizes, targets)
        return found, {**first, **second}

    def _look(self, crops_PCHW: Tensor) -> Tensor:
        """What the second stage sees of each proposal: (P, C)."""
        x_PCHW = crops_PCHW
        for number in range(TAPS[1] + 1, TAPS[2] + 1):
            x_PCHW = self.body[f"block{number}"](x_PCHW)
        return x_PCHW.mean((2, 3))


class _Grid(nn.Module):
    """Where the boxes of the first stage stand, in pixels. torchvision's own grid is for strides that divide the side."""

    def __init__(self, spec: DetectorSpec) -> None:
        super().__init__()
        boxes_A4 = boxes_of(spec) * torch.tensor([spec.across, spec.height]).repeat(2)
        self.register_buffer("boxes_A4", boxes_A4, persistent=False)

    def forward(self, images: ImageList, maps: list[Tensor]) -> list[Tensor]:
        """The same boxes (A, 4) for every image."""
        del maps
        return [self.boxes_A4] * len(images.image_sizes)  # type: ignore[list-item]


class _ProposalHead(nn.Module):
    """For each box of the grid whether it holds something, of two scores as TensorFlow has them, and how it is moved."""

    def __init__(self, in_channels: int, channels: int, shapes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.scores = nn.Conv2d(channels, 2 * shapes, 1)
        self.boxes = nn.Conv2d(channels, 4 * shapes, 1)
        for layer in (self.conv, self.scores, self.boxes):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Scores (N, S, H, W) and moves (N, 4 S, H, W) of each map."""
        hidden = [self.conv(x_NCHW).relu() for x_NCHW in maps]
        both = [self.scores(x_NCHW) for x_NCHW in hidden]
        # In 16 bits a pixel of a large image could not be told from the next.
        scores = [(x[:, 1::2] - x[:, 0::2]).float() for x in both]
        return scores, [self.boxes(x).float() for x in hidden]


class _Heads(nn.Module):
    """Scores of every class and the background, and a box for every class."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.scores = nn.Linear(channels, num_classes + 1)
        self.boxes = nn.Linear(channels, 4 * num_classes)
        for layer, deviation in ((self.scores, 0.01), (self.boxes, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, features_PC: Tensor) -> tuple[Tensor, Tensor]:
        """(P, 1 + K) and (P, 4 (1 + K)); the background's box is never used."""
        boxes_P = self.boxes(features_PC).float()
        return self.scores(features_PC).float(), torch.cat(
            [boxes_P.new_zeros(len(boxes_P), 4), boxes_P], 1
        )
