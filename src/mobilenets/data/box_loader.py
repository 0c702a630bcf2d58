"""Batches of images with boxes, changed together in training, by torchvision's transforms.

What a batch holds depends on nothing but the seed, the epoch and its place in the epoch, as in `loaders.py`.

Shapes: N images, C channels, H height, W width, M boxes of the image that has most. Told boxes are rows of
(left, top, right, bottom, label, ignored, area): corners as shares of the input's sides, so that they hold at any size, the
area in pixels of the file's image; rows that only fill have label -1.
"""

from __future__ import annotations

from dataclasses import dataclass

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
# In pixels of the changed image: less than this of a box is no object.
SMALLEST = 2.0


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
            image, boxes, rest_M3 = self._read(index)
            if self.distortion is not None:
                with seeded(generator_of(self._seed, epoch, index)):
                    if torch.rand(()) < self.distortion.mosaic:
                        others = torch.randint(len(self._split), (3,)).tolist()
                        parts = [(image, boxes, rest_M3), *map(self._read, others)]
                        image, boxes, rest_M3 = _mosaic(parts)
                    image, boxes, rest_M3 = _distorted(image, boxes, rest_M3, self.distortion)
        except BadImageError as error:
            return str(error)
        pixels_CHW = fit(image.as_subclass(Tensor), self._preprocessing)
        return pixels_CHW, torch.cat([_shares(boxes), rest_M3], 1), self._split.sizes[index]

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
        return tv_tensors.Image(image_CHW), boxes, torch.tensor(rest).view(-1, 3).float()


def _distorted(
    image: Tensor, boxes: tv_tensors.BoundingBoxes, rest_M3: Tensor, distortion: BoxDistortion
) -> tuple[Tensor, tv_tensors.BoundingBoxes, Tensor]:
    steps: list[torch.nn.Module] = []
    if distortion.colour and image.shape[0] == 3:
        steps.append(v2.RandomPhotometricDistort(p=0.5))
    if distortion.expand > 1:
        steps.append(v2.RandomZoomOut(fill=GREY, side_range=(1.0, distortion.expand), p=0.5))
    # It looks for a part with an object in it.
    if distortion.crop and len(boxes):
        steps.append(v2.RandomIoUCrop())
    if distortion.mirror:
        steps.append(v2.RandomHorizontalFlip(p=0.5))
    if steps:
        image, boxes = v2.Compose(steps)(image, boxes)
    boxes = v2.ClampBoundingBoxes()(boxes)
    sides_M2 = boxes[:, 2:].as_subclass(Tensor) - boxes[:, :2].as_subclass(Tensor)
    left_M = (sides_M2 >= SMALLEST).all(1)
    kept = tv_tensors.wrap(boxes.as_subclass(Tensor)[left_M], like=boxes)
    return image, kept, rest_M3[left_M]


def _mosaic(
    parts: list[tuple[Tensor, tv_tensors.BoundingBoxes, Tensor]],
) -> tuple[Tensor, tv_tensors.BoundingBoxes, Tensor]:
    """Four images in the quarters of one that has the size of the first."""
    height, width = (2 * max(1, side // 2) for side in parts[0][0].shape[-2:])
    resize = v2.Resize([height // 2, width // 2], antialias=True)
    whole_CHW = torch.zeros(parts[0][0].shape[0], height, width, dtype=torch.uint8)
    corners = []
    for number, (image, boxes, _) in enumerate(parts):
        small, moved = resize(image, boxes)
        top, left = number // 2 * (height // 2), number % 2 * (width // 2)
        whole_CHW[:, top : top + height // 2, left : left + width // 2] = small
        corners.append(moved.as_subclass(Tensor) + torch.tensor([left, top]).repeat(2))
    together = tv_tensors.BoundingBoxes(
        torch.cat(corners), format="XYXY", canvas_size=(height, width)
    )
    return tv_tensors.Image(whole_CHW), together, torch.cat([rest_M3 for *_, rest_M3 in parts])


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
