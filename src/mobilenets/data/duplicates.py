"""Copies of one picture among many: exact, re-encoded, resized, mirrored and turned.

A perceptual hash proposes, a comparison of thumbnails decides: hashes alone confuse pictures of
like layout, and thumbnails alone would have to be compared each with each.

Shapes: N images, T transforms, S side of a thumbnail, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits

THUMBNAIL = 32
# Copies at JPEG quality 40 and half the size differ from their original in at most 6 of 64 bits.
MOST_BITS = 7
SMALLEST_SIDE = 32
SMALL_SIDE = 64
# Root mean square difference in grey over the picture's contrast. Copies at quality 40 and half
# the size reach 0.075, two portraits of one sitting start at 0.114; in 32 pixels JPEG spoils more.
TOLERANCE = 0.09
SMALL_TOLERANCE = 0.13
# The same shirt in another colour is another picture; in levels of 255.
MOST_COLOUR = 8.0
LEAST_CONTRAST = 4.0
TRANSFORMS = ("the same", "mirrored", "turned by a quarter", "upside down")
_TRANSPOSE = (
    None,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180,
)
_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_BLOCK = 2048


@dataclass(frozen=True)
class Copies:
    """What was found, as positions of images.

    Args:
        groups: two or more images of one picture each, upright.
        turned: pairs that are one picture when the first is mirrored or turned, and how.
    """

    groups: tuple[tuple[int, ...], ...]
    turned: tuple[tuple[int, int, str], ...]


def shrink(picture: Image.Image) -> Image.Image:
    """A thumbnail: RGB, S pixels a side whatever the shape.

    >>> shrink(Image.new("RGB", (40, 30))).size
    (32, 32)
    """
    # Bilinear with antialiasing rings less than Lanczos, so that copies of two sizes stay closer.
    size = (THUMBNAIL, THUMBNAIL)
    return picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0).convert("RGB")


def hash_views(thumbnail: Image.Image) -> NDArray[np.uint8]:
    """Perceptual hashes of a thumbnail under each transform, as bytes (T, 8).

    >>> hash_views(shrink(Image.linear_gradient("L"))).shape
    (4, 8)
    """
    views = [thumbnail if how is None else thumbnail.transpose(how) for how in _TRANSPOSE]
    return np.stack([np.packbits(imagehash.phash(view).hash.reshape(-1)) for view in views])


def find_copies(
    pixels: Sequence[bytes],
    sides_N: NDArray[np.int64],
    thumbnails_NSS3: NDArray[np.uint8],
    hashes_NT8: NDArray[np.uint8],
) -> Copies:
    """Find the copies among images.

    Args:
        pixels: a digest of each image's decoded pixels.
        sides_N: the shorter side in pixels. Below 32 a picture holds too little for a perceptual
            hash, and only equal pixels count.
        thumbnails_NSS3, hashes_NT8: as `shrink` and `hash_views` give them; images below 32
            pixels need no hashes.

    >>> views = [shrink(Image.linear_gradient("L").rotate(turn)) for turn in (0, 180)]
    >>> thumbnails, hashes = np.stack(views), np.stack([hash_views(view) for view in views])
    >>> find_copies([b"a", b"b"], np.array([256, 256]), thumbnails, hashes).turned
    ((0, 1, 'upside down'),)
    """
    first_of: dict[bytes, int] = {}
    leaders = np.array([first_of.setdefault(digest, row) for row, digest in enumerate(pixels)])
    thumbnails = _Thumbnails(thumbnails_NSS3, sides_N)
    # Of equal images, the first stands for all.
    comparable_N = (leaders == np.arange(len(pixels))) & (sides_N >= SMALLEST_SIDE)
    comparable_N &= thumbnails.contrast_N >= LEAST_CONTRAST
    rows_N = np.flatnonzero(comparable_N)
    turned: dict[tuple[int, int], str] = {}
    for transform, how in enumerate(TRANSFORMS):
        for left, right in _sure_pairs(thumbnails, hashes_NT8, rows_N, transform):
            if transform == 0:
                _join(leaders, left, right)
            elif _leader(leaders, left) != _leader(leaders, right):
                turned.setdefault((min(left, right), max(left, right)), how)
    members: dict[int, list[int]] = {}
    for row in range(len(pixels)):
        members.setdefault(_leader(leaders, row), []).append(row)
    groups = tuple(tuple(rows) for rows in members.values() if len(rows) > 1)
    return Copies(groups, tuple((*pair, how) for pair, how in sorted(turned.items())))


def near_pairs(
    asked_N8: NDArray[np.uint8], known_N8: NDArray[np.uint8]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Blocks of positions (P,), (P,) of hashes that differ in at most 7 of their 64 bits.

    Seven bits can't touch all eight bytes: only hashes that share a byte are compared, a
    thirty-second of all pairs. A pair comes once, with the first byte that it shares.

    >>> hashes = np.array([[0] * 8, [7] + [0] * 7, [255] * 8], dtype=np.uint8)
    >>> [(a.tolist(), b.tolist()) for a, b in near_pairs(hashes[:1], hashes)]
    [([0], [0]), ([0], [1])]
    """
    # Bits as +1 and -1: their product counts the bits that agree, at the speed of a matrix product.
    asked_N64 = np.unpackbits(asked_N8, axis=1).astype(np.float32) * 2 - 1
    known_N64 = np.unpackbits(known_N8, axis=1).astype(np.float32) * 2 - 1
    for byte in range(8):
        order = np.argsort(known_N8[:, byte], kind="stable")
        starts = np.searchsorted(known_N8[order, byte], np.arange(257))
        for value in range(256):
            known = order[starts[value] : starts[value + 1]]
            asked = np.flatnonzero(asked_N8[:, byte] == value) if len(known) else known[:0]
            for start in range(0, len(asked), _BLOCK):
                block = asked[start : start + _BLOCK]
                for other in range(0, len(known), _BLOCK):
                    beside = known[other : other + _BLOCK]
                    agreed = asked_N64[block] @ known_N64[beside].T
                    rows, columns = np.nonzero(agreed >= 64 - 2 * MOST_BITS)
                    left_P, right_P = block[rows], beside[columns]
                    shared = (asked_N8[left_P, :byte] == known_N8[right_P, :byte]).any(axis=1)
                    if not shared.all():
                        yield left_P[~shared], right_P[~shared]


class _Thumbnails:
    """Thumbnails at half their side, where compression has left little trace."""

    def __init__(self, thumbnails_NSS3: NDArray[np.uint8], sides_N: NDArray[np.int64]) -> None:
        count, half = len(thumbnails_NSS3), THUMBNAIL // 2
        self._colour_NSS3 = np.empty((count, half, half, 3), dtype=np.uint8)
        self.contrast_N = np.empty(count, dtype=np.float32)
        for start in range(0, count, _BLOCK):
            block = thumbnails_NSS3[start : start + _BLOCK]
            halved = block.reshape(-1, half, 2, half, 2, 3).mean(axis=(2, 4), dtype=np.float32)
            self._colour_NSS3[start : start + _BLOCK] = halved.round()
            self.contrast_N[start : start + _BLOCK] = (halved @ _GREY).std(axis=(1, 2))
        self._tolerance_N = np.where(sides_N < SMALL_SIDE, SMALL_TOLERANCE, TOLERANCE)

    def agree(
        self, left_P: NDArray[np.int64], right_P: NDArray[np.int64], transform: int
    ) -> NDArray[np.bool_]:
        """Which pairs show one picture, the left one being transformed."""
        agreed_P = np.zeros(len(left_P), dtype=bool)
        for start in range(0, len(left_P), _BLOCK):
            left, right = left_P[start : start + _BLOCK], right_P[start : start + _BLOCK]
            one_PSS3 = self._colour_NSS3[left].astype(np.float32)
            if transform == 1:
                one_PSS3 = one_PSS3[:, :, ::-1]
            elif transform:
                one_PSS3 = np.rot90(one_PSS3, k=transform - 1, axes=(1, 2))
            difference_PSS3 = one_PSS3 - self._colour_NSS3[right]
            apart_P = np.sqrt(((difference_PSS3 @ _GREY) ** 2).mean(axis=(1, 2)))
            contrast_P = np.maximum(self.contrast_N[left], self.contrast_N[right])
            tolerance_P = np.maximum(self._tolerance_N[left], self._tolerance_N[right])
            colour_P = np.abs(difference_PSS3).mean(axis=(1, 2, 3))
            agreed_P[start : start + _BLOCK] = (apart_P <= tolerance_P * contrast_P) & (
                colour_P <= MOST_COLOUR
            )
        return agreed_P


def _sure_pairs(
    thumbnails: _Thumbnails,
    hashes_NT8: NDArray[np.uint8],
    rows_N: NDArray[np.int64],
    transform: int,
) -> Iterator[tuple[int, int]]:
    """Pairs of rows where the first, transformed, is the second."""
    # On blocks this small, a second thread costs more than it does.
    with threadpool_limits(1, user_api="blas"):
        for left_P, right_P in near_pairs(hashes_NT8[rows_N, transform], hashes_NT8[rows_N, 0]):
            # All but the quarter turn say the same of (a, b) and (b, a).
            quarter = TRANSFORMS[transform] == "turned by a quarter"
            once_P = left_P != right_P if quarter else left_P < right_P
            left_P, right_P = rows_N[left_P[once_P]], rows_N[right_P[once_P]]
            sure_P = thumbnails.agree(left_P, right_P, transform)
            yield from zip(left_P[sure_P].tolist(), right_P[sure_P].tolist(), strict=True)


def _leader(leaders: NDArray[np.int64], row: int) -> int:
    while leaders[row] != row:
        leaders[row] = leaders[leaders[row]]
        row = int(leaders[row])
    return row


def _join(leaders: NDArray[np.int64], left: int, right: int) -> None:
    low, high = sorted((_leader(leaders, left), _leader(leaders, right)))
    leaders[high] = low
