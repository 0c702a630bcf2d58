"""Batches of images with boxes, changed together in training, by torchvision's transforms.

What a batch holds depends on nothing but the seed, the epoch and its place in the epoch, as in `loaders.py`.

Shapes: N images, C channels, H height, W width, M boxes of the image that has most. Told boxes are rows of
(left, top, right, bottom, label, ignored, area): corners as shares of the input's sides, so that they hold at any size, the
area in pixels of the file's image; rows that only fill have label -1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.data.boxes import BoxSplit, same_shape
from mobilenets.data.images import BadImageError
from mobilenets.data.loaders import (
    Batch,
    DiskLoader,
    OnBadImage,
    Order,
    Photos,
    generator_of,
    read_in_threads,
    refuse_bad_images,
)
from mobilenets.data.transforms import GREY, fit, seeded

LABEL, IGNORED, AREA, COLUMNS = 4, 5, 6, 7
EMPTY = -1.0
# In pixels of the file: less than this of a box is no object.
SMALLEST = 2.0
# By how much colours change (SSD, section 3.6).
COLOURS = {"brightness": 0.125, "contrast": 0.5, "saturation": 0.5, "hue": 0.05}


@dataclass(frozen=True)
class BoxDistortion:
    """What training does to an image and its boxes.

    Args:
        mirror: flip half of the images left and right.
        colour: change brightness, contrast, saturation and hue of half of the images (SSD, section 3.6).
        expand: put half of the images on a grey canvas of up to so many times their side; 1 does not.
        crop: cut out a part in which objects overlap with it by a share that is drawn (SSD, section 2.2).
        mosaic: share of the images that are put together of four.
    """

    mirror: bool = True
    colour: bool = False
    expand: float = 1.0
    crop: bool = False
    mosaic: float = 0.0


STILL = BoxDistortion(mirror=False)


class BoxLoader(DiskLoader):
    """Images with their boxes.

    Args:
        distortion: training's changes and order; None gives the images as they are, in order.
        drop_last: leave an incomplete last batch of training out.
    """

    def __init__(
        self,
        split: BoxSplit,
        preprocessing: Preprocessing,
        batch_size: int,
        distortion: BoxDistortion | None = None,
        seed: int = 0,
        workers: int | None = None,
        *,
        drop_last: bool = False,
    ) -> None:
        photos = _Photos(split, preprocessing, distortion, seed, STILL)
        order = Order(len(split), batch_size, seed, distortion is not None, drop_last)
        super().__init__(photos, preprocessing, order, workers)

    def _batch(
        self, read: tuple[Tensor, Tensor, Tensor], rows_N: Tensor, seed: tuple[int, int, int]
    ) -> Batch:
        del seed
        pixels_NCHW, told_NMD, sizes_N2 = read
        images_NCHW = self._network_input(pixels_NCHW)
        return Batch(images_NCHW, told_NMD.to(self._device), len(rows_N), sizes_N2)

    def _stack(self, read: list[_Example | str]) -> tuple[Tensor, Tensor, Tensor] | str:
        found = []
        for example in read:
            if isinstance(example, str):
                return example
            found.append(example)
        channels, height = self._preprocessing.channel_count, self._preprocessing.height
        pixels_NCHW = torch.zeros(
            len(found), channels, height, self._preprocessing.width, dtype=torch.uint8
        )
        most = max((len(told_MD) for _, told_MD, _ in found), default=0)
        told_NMD = torch.zeros(len(found), most, COLUMNS)
        told_NMD[..., LABEL] = EMPTY
        for place, (pixels_CHW, told_MD, _) in enumerate(found):
            pixels_NCHW[place] = pixels_CHW
            told_NMD[place, : len(told_MD)] = told_MD
        sizes_N2 = torch.tensor([size for *_, size in found]).view(-1, 2)
        return pixels_NCHW, told_NMD, sizes_N2


_Example = tuple[Tensor, Tensor, tuple[int, int]]


class _Photos(Photos):
    """Gives uint8 images (C, H, W), their boxes (M, columns) and the sizes of the files' images."""

    def __getitem__(self, asked: tuple[int, int]) -> _Example | str:
        epoch, index = asked
        try:
            image_CHW, boxes, rest_M3 = self._read(index)
            if self.distortion is None:
                told_MD = torch.cat([_shares(boxes), rest_M3], 1)
                return fit(image_CHW, self._preprocessing), told_MD, self._split.sizes[index]
            with seeded(generator_of(self._seed, epoch, index)):
                if torch.rand(()) < self.distortion.mosaic:
                    others = torch.randint(len(self._split), (3,)).tolist()
                    parts = [(image_CHW, boxes, rest_M3), *map(self._read, others)]
                    image_CHW, boxes, rest_M3 = _mosaic(parts)
                image_CHW, told_MD = distorted(
                    image_CHW, boxes, rest_M3, self.distortion, self._preprocessing
                )
        except BadImageError as error:
            return str(error)
        return image_CHW, told_MD, self._split.sizes[index]

    def _read(self, index: int) -> tuple[Tensor, tv_tensors.BoundingBoxes, Tensor]:
        image_CHW = self._split.images.read(index, self._preprocessing.channel_count)
        height, width = image_CHW.shape[-2:]
        told_height, told_width = told = self._split.sizes[index]
        things = self._split.objects[index]
        if things and not same_shape(told, (height, width)):
            raise BadImageError(
                f"{self._split.images.name(index)}: its boxes are told of {told_width} x {told_height} "
                f"pixels, and the file has {width} x {height}"
            )
        # A file may have been scaled since its boxes were drawn.
        scale = torch.tensor([width / told_width, height / told_height]).repeat(2)
        corners_M4 = torch.tensor([thing.box for thing in things]).view(-1, 4) * scale
        boxes = tv_tensors.BoundingBoxes(corners_M4, format="XYXY", canvas_size=(height, width))
        rest = [(thing.label, thing.ignored, thing.area) for thing in things]
        return image_CHW, boxes, torch.tensor(rest).view(-1, 3).float()


def distorted(
    image_CHW: Tensor,
    boxes: tv_tensors.BoundingBoxes,
    rest_M3: Tensor,
    distortion: BoxDistortion,
    preprocessing: Preprocessing,
) -> tuple[Tensor, Tensor]:
    """The changed image at the input size, and rows (M, columns) of the boxes that are left in it.

    What is to be seen of the image is settled first: pixels that are cut off, and those that scaling takes away, are not worked on.
    """
    window_22, inside_M = _window(boxes, distortion)
    sides = torch.tensor([preprocessing.width, preprocessing.height])
    seen_22 = window_22.clamp(torch.zeros(2), torch.tensor(image_CHW.shape[:0:-1]))
    # Seen pixels begin and end on whole pixels of the input.
    share_22 = (seen_22 - window_22[0]) / (window_22[1] - window_22[0])
    place_22 = (share_22 * sides).round().long()
    place_22[0] = place_22[0].minimum(sides - 1)
    place_22[1] = place_22[1].maximum(place_22[0] + 1)

    (left, top), (right, bottom) = seen_22.long().tolist()
    (place_left, place_top), (place_right, place_bottom) = place_22.tolist()
    part_CHW = fit(
        image_CHW[:, top:bottom, left:right],
        replace(preprocessing, height=place_bottom - place_top, width=place_right - place_left),
    )
    if distortion.colour and image_CHW.shape[0] == 3:
        # Pillow turns hues twice as fast.
        steps = [v2.ToPILImage(), v2.ColorJitter(**COLOURS), v2.PILToTensor()]
        part_CHW = v2.RandomApply(steps, p=0.5)(part_CHW)
    whole_CHW = torch.full(
        (image_CHW.shape[0], preprocessing.height, preprocessing.width), GREY, dtype=torch.uint8
    )
    whole_CHW[:, place_top:place_bottom, place_left:place_right] = part_CHW

    corners_M22 = boxes.as_subclass(Tensor).view(-1, 2, 2).clamp(*seen_22)
    left_M = inside_M & (corners_M22[:, 1] - corners_M22[:, 0] >= SMALLEST).all(1)
    within_M22 = (corners_M22[left_M] - seen_22[0]) / (seen_22[1] - seen_22[0])
    shares_M22 = (place_22[0] + within_M22 * (place_22[1] - place_22[0])) / sides
    if distortion.mirror and torch.rand(()) < 0.5:
        whole_CHW = whole_CHW.flip(-1)
        shares_M22[..., 0] = 1 - shares_M22[..., 0].flip(1)
    return whole_CHW, torch.cat([shares_M22.view(-1, 4), rest_M3[left_M]], 1)


def _window(boxes: tv_tensors.BoundingBoxes, distortion: BoxDistortion) -> tuple[Tensor, Tensor]:
    """What is to be seen: its left top and right bottom corner in pixels of the image, perhaps outside of it; and which boxes are in it."""
    left = top = 0
    inside_M = torch.ones(len(boxes), dtype=torch.bool)
    if distortion.expand > 1 and torch.rand(()) < 0.5:
        zoom = v2.RandomZoomOut(side_range=(1.0, distortion.expand))
        padding = zoom.make_params([boxes])["padding"]
        boxes = v2.functional.pad(boxes, padding)
        left, top = -padding[0], -padding[1]
    height, width = boxes.canvas_size
    # It looks for a part with an object in it, and may leave the image whole.
    if distortion.crop and len(boxes) and (part := _crop_of(boxes).make_params([boxes])):
        left, top = left + part["left"], top + part["top"]
        height, width, inside_M = part["height"], part["width"], part["is_within_crop_area"]
    return torch.tensor([[left, top], [left + width, top + height]]).float(), inside_M


def _crop_of(boxes: tv_tensors.BoundingBoxes) -> v2.RandomIoUCrop:
    """SSD's crop, without the overlaps that no part of this image has with a box: it would look for each in 40 parts, in vain."""
    crop = v2.RandomIoUCrop()
    height, width = boxes.canvas_size
    smallest = crop.min_scale * torch.tensor([width, height])
    corners_M4 = boxes.as_subclass(Tensor)
    shares_M2 = (corners_M4[:, 2:] - corners_M4[:, :2]) / smallest
    most = float(shares_M2.clamp(max=1).prod(1).max())
    crop.options = [overlap for overlap in crop.options if overlap <= most or overlap >= 1]
    return crop


def _mosaic(
    parts: list[tuple[Tensor, tv_tensors.BoundingBoxes, Tensor]],
) -> tuple[Tensor, tv_tensors.BoundingBoxes, Tensor]:
    """Four images in the quarters of one that has the size of the first."""
    height, width = (2 * max(1, side // 2) for side in parts[0][0].shape[-2:])
    resize = v2.Resize([height // 2, width // 2], antialias=True)
    whole_CHW = torch.zeros(parts[0][0].shape[0], height, width, dtype=torch.uint8)
    corners = []
    for number, (image_CHW, boxes, _) in enumerate(parts):
        small, moved = resize(tv_tensors.Image(image_CHW), boxes)
        top, left = number // 2 * (height // 2), number % 2 * (width // 2)
        whole_CHW[:, top : top + height // 2, left : left + width // 2] = small
        corners.append(moved.as_subclass(Tensor) + torch.tensor([left, top]).repeat(2))
    together = tv_tensors.BoundingBoxes(
        torch.cat(corners), format="XYXY", canvas_size=(height, width)
    )
    return whole_CHW, together, torch.cat([rest_M3 for *_, rest_M3 in parts])


def _shares(boxes: tv_tensors.BoundingBoxes) -> Tensor:
    """Corners (M, 4) as shares of the image's sides."""
    height, width = boxes.canvas_size
    shares_M4: Tensor = boxes.as_subclass(Tensor) / torch.tensor([width, height]).repeat(2)
    return shares_M4


def make_box_loader(
    split: BoxSplit,
    preprocessing: Preprocessing,
    batch_size: int,
    distortion: BoxDistortion | None = None,
    seed: int = 0,
    *,
    drop_last: bool = False,
    what: str = "images",
    on_bad_image: OnBadImage = "stop",
) -> tuple[BoxLoader, tuple[str, ...]]:
    """Read every image of a split once, so that a damaged one is found at the start, then serve batches of it.

    Args:
        what: what the progress bar calls the images.
        on_bad_image: `stop` raises for images that can't be read, `skip` leaves them out.

    Returns:
        The loader, and one sentence for each image that was left out.

    Raises:
        BadImageError: names the damaged images (with `stop`).
        ValueError: no image is left.
    """

    def problem(index: int) -> str | None:
        try:
            split.images.read(index, preprocessing.channel_count)
        except BadImageError as error:
            return str(error)
        return None

    found = list(read_in_threads(problem, len(split), what))
    problems = tuple(said for said in found if said is not None)
    refuse_bad_images(problems, len(split), what, on_bad_image)
    kept = split.take([index for index, said in enumerate(found) if said is None])
    loader = BoxLoader(kept, preprocessing, batch_size, distortion, seed, drop_last=drop_last)
    return loader, problems
