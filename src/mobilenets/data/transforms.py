"""From decoded pixels to the network's input: the served preprocessing, and training's distortions.

Shapes: N images, C channels, H height, W width; `uint8` until `normalise`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from mobilenets.architecture.preprocessing import Preprocessing

GREY = 128


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
    mean_C11, std_C11 = scale_of(preprocessing, images_NCHW)
    if preprocessing.channels == "BGR":
        images_NCHW = images_NCHW.flip(-3)
    return (images_NCHW.float() / 255 - mean_C11) / std_C11


def scale_of(preprocessing: Preprocessing, like: Tensor) -> tuple[Tensor, Tensor]:
    """Means and deviations (C, 1, 1), where another tensor is."""
    mean_C, std_C = (
        torch.tensor(values, device=like.device)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return mean_C[:, None, None], std_C[:, None, None]


@dataclass(frozen=True)
class Distortion:
    """What training does to an image.

    Args:
        mirror: flip left and right for half of the images.
        alternate: flip each image in every second epoch, half of them in the first (airbench).
        shift: largest shift as a share of the side, edges reflected; images kept in memory only.
        min_area: smallest share of the picture that a random crop keeps; photos only. The paper
            limits "the size of small crops"; 1 keeps the centre crop of evaluation.
        cutout: side of a square that is painted over, as a share of the side (arXiv 1708.04552).
        colour: 1 changes brightness by up to 32/255 and saturation by up to a half, as Inception's
            preprocessing does; 0 leaves colours alone.
        randaugment: magnitude from 0 to 30 of two random operations (arXiv 1909.13719).
        randaugment_share: share of images that get them.
        mixup, cutmix: alpha of the Beta distribution that mixes pairs of a batch (arXiv 1710.09412,
            1905.04899); with both, one of them is drawn for each batch.
        outputs: classes of the mixed targets.
    """

    mirror: bool = True
    alternate: bool = False
    shift: float = 0.0
    min_area: float = 1.0
    cutout: float = 0.0
    colour: float = 0.0
    randaugment: int | None = None
    randaugment_share: float = 0.5
    mixup: float = 0.0
    cutmix: float = 0.0
    outputs: int = 0


def distort_batch(
    images_NHWC: Tensor,
    rows_N: Tensor,
    distortion: Distortion,
    generator: torch.Generator,
    mirrored_N: Tensor | None = None,
) -> Tensor:
    """Pick rows of images in memory, shifted and mirrored in one gather: uint8 (N, H, W, C).

    What is drawn is drawn on the CPU, so that images on a GPU are distorted as they would be there.

    Args:
        mirrored_N: which of the rows to mirror; drawn when not given.

    >>> images = torch.arange(12, dtype=torch.uint8).reshape(1, 2, 6, 1)
    >>> still = Distortion(mirror=False)
    >>> distort_batch(images, torch.tensor([0]), still, torch.Generator()).equal(images)
    True
    """
    count, (height, width), device = len(rows_N), images_NHWC.shape[1:3], images_NHWC.device
    ys_NH = _shifted(count, height, distortion.shift, generator, device)
    xs_NW = _shifted(count, width, distortion.shift, generator, device)
    if distortion.mirror:
        if mirrored_N is None:
            mirrored_N = torch.rand(count, generator=generator) < 0.5
        xs_NW = torch.where(mirrored_N.to(device)[:, None], xs_NW.flip(1), xs_NW)
    rows_N11 = rows_N.to(device)[:, None, None]
    pixels_NHWC = images_NHWC[rows_N11, ys_NH[:, :, None], xs_NW[:, None, :]]
    if distortion.colour or distortion.randaugment is not None:
        with seeded(generator):
            recoloured = [
                _recolour(image_HWC.permute(2, 0, 1), distortion) for image_HWC in pixels_NHWC
            ]
        pixels_NHWC = torch.stack(recoloured).permute(0, 2, 3, 1).contiguous()
    if distortion.cutout:
        inside_NH = _interval(count, height, distortion.cutout, generator, device)
        inside_NW = _interval(count, width, distortion.cutout, generator, device)
        pixels_NHWC[inside_NH[:, :, None] & inside_NW[:, None, :]] = GREY
    return pixels_NHWC


def distort_photo(
    image_CHW: Tensor,
    distortion: Distortion,
    preprocessing: Preprocessing,
    mirrored: bool | None = None,
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
    if distortion.mirror:
        if mirrored is None:
            mirrored = bool(torch.rand(()) < 0.5)
        if mirrored:
            image_CHW = image_CHW.flip(-1)
    image_CHW = _recolour(image_CHW, distortion)
    if distortion.cutout:
        height, width = image_CHW.shape[-2:]
        inside_H = _interval(1, height, distortion.cutout)[0]
        inside_W = _interval(1, width, distortion.cutout)[0]
        image_CHW = image_CHW.masked_fill(inside_H[:, None] & inside_W[None], GREY)
    return image_CHW


def mix(
    images_NCHW: Tensor, targets_N: Tensor, distortion: Distortion, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix pairs of a batch where the distortion says so; targets become shares (N, K)."""
    from torchvision.transforms import v2

    kinds = [
        kind(alpha=alpha, num_classes=distortion.outputs)
        for kind, alpha in ((v2.MixUp, distortion.mixup), (v2.CutMix, distortion.cutmix))
        if alpha
    ]
    if not kinds or not len(targets_N):
        return images_NCHW, targets_N
    with seeded(generator):
        kind = kinds[int(torch.randint(len(kinds), ()))]
        images_NCHW, targets_NK = kind(images_NCHW, targets_N)
    return images_NCHW, targets_NK


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Let torch's global generator, which torchvision draws from, follow one of our own for a while."""
    seed = int(torch.randint(2**62, (), generator=generator))
    before = torch.get_rng_state()
    # Not `torch.manual_seed`, which notes the whole stack for each kind of accelerator.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def to_picture(input_CHW: Tensor, preprocessing: Preprocessing) -> Image.Image:
    """A network input (C, H, W) as the picture that it came from.

    >>> to_picture(torch.zeros(3, 4, 6), Preprocessing(4, 6)).size
    (6, 4)
    """
    mean_C11, std_C11 = scale_of(preprocessing, input_CHW)
    pixels_CHW = ((input_CHW * std_C11 + mean_C11) * 255).round().clamp(0, 255).byte()
    if preprocessing.channels == "BGR":
        pixels_CHW = pixels_CHW.flip(0)
    pixels_HWC = pixels_CHW.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels_HWC[:, :, 0] if pixels_HWC.shape[2] == 1 else pixels_HWC)


def scaled(picture: Image.Image, side: int) -> Image.Image:
    """A picture to look at, its longer side made `side` pixels; small ones keep sharp pixels.

    >>> scaled(Image.new("L", (8, 4)), 160).size
    (160, 80)
    """
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _recolour(image_CHW: Tensor, distortion: Distortion) -> Tensor:
    from torchvision.transforms import v2

    if distortion.colour:
        brightness, saturation = distortion.colour * 32 / 255, distortion.colour / 2
        colour = image_CHW.shape[0] == 3
        jitter = v2.ColorJitter(brightness=brightness, saturation=saturation if colour else 0)
        image_CHW = jitter(image_CHW)
    if distortion.randaugment is not None and torch.rand(()) < distortion.randaugment_share:
        image_CHW = v2.RandAugment(num_ops=2, magnitude=distortion.randaugment)(image_CHW)
    return image_CHW


def _interval(
    count: int,
    side: int,
    share: float,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Booleans (N, side), true for a stretch around a random middle, cut off at the edges."""
    length = max(1, round(side * share))
    starts_N1 = torch.randint(side, (count, 1), generator=generator).to(device) - length // 2
    positions = torch.arange(side, device=device)[None]
    return (positions >= starts_N1) & (positions < starts_N1 + length)


def _shifted(
    count: int, side: int, share: float, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Indices (N, side), moved by at most `share` of the side, reflected at the edges."""
    most = min(round(side * share), side - 1)
    shifts_N1 = torch.randint(-most, most + 1, (count, 1), generator=generator).to(device)
    positions = torch.arange(side, device=device) + shifts_N1
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
