"""Reading an image file the way a person sees it: upright, opaque, eight bits, RGB.

Shapes: C channels, H height, W width.
"""

from __future__ import annotations

import glob
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)
# Pillow warns of more, and a warning is a refusal here.
MOST_PIXELS = 89_478_485
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class BadImageError(ValueError):
    """An image that can't be read; the message starts with its path."""


def read_image(
    source: Path | bytes,
    channels: int = 3,
    name: str | None = None,
    *,
    formats: tuple[str, ...] | None = None,
    most_pixels: int | None = None,
) -> Tensor:
    """Read an image to uint8 (C, H, W), C = 1 for grey, 3 for RGB, 4 for RGBA.

    EXIF orientation is applied, the first frame of an animation taken, palettes and CMYK
    converted, 16-bit values scaled to 8, and transparent pixels laid on white.

    Args:
        source: a file, or its bytes.
        name: what the error calls it; the path where there is one.
        formats: what is read, by Pillow's names; None reads whatever Pillow can.
        most_pixels: larger images are refused before they are decoded.

    Raises:
        BadImageError: missing, empty, truncated, too large, or not an image.
    """
    name = name or (str(source) if isinstance(source, Path) else "an image")
    encoded = read_encoded(source, name) if isinstance(source, Path) else source
    if not encoded:
        raise BadImageError(f"{name}: the file is empty")
    try:
        image = Image.open(io.BytesIO(encoded), formats=formats)
        pixels = image.width * image.height
        if most_pixels is not None and pixels > most_pixels:
            raise BadImageError(f"{name}: too large to read safely ({pixels:,} pixels)")
        return image_to_tensor(image, channels)
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError(f"{name}: not an image that can be read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(f"{name}: too large to read safely ({error})") from None
    # Decoders report damage in many ways: OSError, SyntaxError, RuntimeError, struct.error.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImageError(f"{name}: a damaged image ({reason})") from None


def read_encoded(path: Path, name: str | None = None) -> bytes:
    """The bytes of an image file, undecoded.

    Raises:
        BadImageError: it is missing, or its permissions or disk don't let it be read.
    """
    name = name or str(path)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BadImageError(f"{name}: there is no such image") from None
    except OSError as error:
        raise BadImageError(f"{name}: can't be read ({error.strerror})") from None


def image_to_tensor(image: Image.Image, channels: int = 3) -> Tensor:
    """A Pillow image to uint8 (C, H, W), as `read_image` reads files.

    >>> image_to_tensor(Image.new("P", (4, 2))).shape
    torch.Size([3, 2, 4])
    """
    image.seek(0)
    image = _upright(image)
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
        image = _to_eight_bits(image)
    transparent = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if transparent and channels != 4:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = torch.from_numpy(np.array(image.convert(_MODES[channels])))
    # Channels stay last in memory: torchvision resizes such a view more than twice as fast.
    return pixels.reshape(*pixels.shape[:2], channels).permute(2, 0, 1)


def find_images(places: Iterable[str | Path]) -> list[Path]:
    """The images named by files, folders (searched whole, sorted) and glob patterns.

    Raises:
        ValueError: a place names nothing.
    """
    found: list[Path] = []
    for place in places:
        path = Path(place)
        if path.is_dir():
            inside = list(images_below(path))
            if not inside:
                raise ValueError(f"{path}: no images in this folder")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            matches = [m for m in matches_of(place) if m.suffix.lower() in IMAGE_SUFFIXES]
            if not matches:
                raise ValueError(f"{place}: there is no such image, folder or pattern of images")
            found += matches
    return found


def matches_of(pattern: str | Path) -> list[Path]:
    """The files that a glob pattern names, sorted."""
    matches = sorted(Path(match) for match in glob.glob(str(pattern), recursive=True))
    return [match for match in matches if match.is_file()]


def images_below(folder: Path) -> Iterator[Path]:
    """Every image file in a folder and its subfolders, in sorted order; hidden ones left out."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in IMAGE_SUFFIXES and not hidden and path.is_file():
            yield path


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says; EXIF that can't be read says nothing, and the pixels are still good."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Pillow clips 16-bit values when it converts: scale them instead.

    A 16-bit image is divided whatever it holds, so that a dark one stays dark. The wider modes do
    not tell their range: floats up to 1 and integers up to 255 are taken for what they look like.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    if image.mode == "F" and values.max(initial=0) <= 1:
        values = values * 255
    elif image.mode.startswith("I;16") or values.max(initial=0) > 255:
        values = values / 257
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
