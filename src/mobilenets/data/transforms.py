"""From decoded pixels to the network's input: the served preprocessing, and training's distortions.

Shapes: N images, C channels, H height, W width; `uint8` until `normalise`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mobilenets.architecture.preprocessing import Preprocessing


def fit(image_CHW: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Resize and crop one uint8 image (C, H, W) to the input size, antialiased.

    >>> fit(torch.zeros(3, 375, 500, dtype=torch.uint8), Preprocessing(160, 160)).shape
    torch.Size([3, 160, 160])
    """
    height, width = image_CHW.shape[-2:]
    target = (preprocessing.height, preprocessing.width)
    if preprocessing.resize == "squash":
        return _resize(image_CHW, target, preprocessing)
    scale = max(target[0] / height, target[1] / width) / preprocessing.crop_fraction
    scaled = (max(round(height * scale), target[0]), max(round(width * scale), target[1]))
    resized = _resize(image_CHW, scaled, preprocessing)
    top, left = (scaled[0] - target[0]) // 2, (scaled[1] - target[1]) // 2
    return resized[..., top : top + target[0], left : left + target[1]]


def normalise(images_NCHW: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 (N, C, H, W) to float32 of the same shape: `(pixel / 255 - mean) / std`.

    >>> normalise(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8), Preprocessing(2, 2)).max()
    tensor(1.)
    """
    mean_C11 = torch.tensor(preprocessing.mean, device=images_NCHW.device)[:, None, None]
    std_C11 = torch.tensor(preprocessing.std, device=images_NCHW.device)[:, None, None]
    if preprocessing.channels == "BGR":
        images_NCHW = images_NCHW.flip(-3)
    return (images_NCHW.float() / 255 - mean_C11) / std_C11


@dataclass(frozen=True)
class Distortion:
    """What training does to an image.

    Args:
        mirror: flip left and right for half of the images.
        shift: largest shift as a share of the side, edges reflected; images kept in memory only.
        min_area: smallest share of the picture that a random crop keeps; photos only. The paper
            limits "the size of small crops"; 1 keeps the centre crop of evaluation.
    """

    mirror: bool = True
    shift: float = 0.0
    min_area: float = 1.0


def distort_batch(
    images_NHWC: Tensor, rows_N: Tensor, distortion: Distortion, generator: torch.Generator
) -> Tensor:
    """Pick rows of images in memory, shifted and mirrored in one gather: uint8 (N, H, W, C).

    >>> images = torch.arange(12, dtype=torch.uint8).reshape(1, 2, 6, 1)
    >>> still = Distortion(mirror=False)
    >>> distort_batch(images, torch.tensor([0]), still, torch.Generator()).equal(images)
    True
    """
    count, (height, width) = len(rows_N), images_NHWC.shape[1:3]
    ys_NH = _shifted(count, height, distortion.shift, generator)
    xs_NW = _shifted(count, width, distortion.shift, generator)
    if distortion.mirror:
        mirrored_N1 = torch.rand(count, 1, generator=generator) < 0.5
        xs_NW = torch.where(mirrored_N1, xs_NW.flip(1), xs_NW)
    return images_NHWC[rows_N[:, None, None], ys_NH[:, :, None], xs_NW[:, None, :]]


def distort_photo(
    image_CHW: Tensor, distortion: Distortion, preprocessing: Preprocessing
) -> Tensor:
    """A random crop of one photo, resized to the input size and perhaps mirrored: uint8 (C, H, W).

    Random numbers come from torch's global generator, which the loader seeds for each image.
    """
    from torchvision.transforms import v2

    if distortion.min_area < 1:
        crop = v2.RandomResizedCrop(
            (preprocessing.height, preprocessing.width),
            scale=(distortion.min_area, 1.0),
            interpolation=_interpolation(preprocessing),
            antialias=True,
        )
        image_CHW = crop(image_CHW)
    else:
        image_CHW = fit(image_CHW, preprocessing)
    if distortion.mirror and torch.rand(()) < 0.5:
        image_CHW = image_CHW.flip(-1)
    return image_CHW


def _shifted(count: int, side: int, share: float, generator: torch.Generator) -> Tensor:
    """Indices (N, side), moved by at most `share` of the side, reflected at the edges."""
    most = min(round(side * share), side - 1)
    shifts_N1 = torch.randint(-most, most + 1, (count, 1), generator=generator)
    positions = torch.arange(side) + shifts_N1
    return (side - 1) - ((side - 1) - positions.abs()).abs()


def _resize(image_CHW: Tensor, size: tuple[int, int], preprocessing: Preprocessing) -> Tensor:
    if image_CHW.shape[-2:] == size:
        return image_CHW
    from torchvision.transforms.v2 import functional

    resized: Tensor = functional.resize(
        image_CHW, list(size), interpolation=_interpolation(preprocessing), antialias=True
    )
    return resized


def _interpolation(preprocessing: Preprocessing) -> object:
    from torchvision.transforms import InterpolationMode

    return InterpolationMode(preprocessing.interpolation)
