"""What is wrong with a set of images, file by file and among each other, whatever the task.

Shapes: N images, C channels, H height, W width, T transforms, S side of a thumbnail.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from mobilenets.data.duplicates import (
    SMALLEST_SIDE,
    THUMBNAIL,
    TRANSFORMS,
    find_copies,
    hash_views,
    shrink,
)
from mobilenets.data.images import BadImageError, read_image
from mobilenets.data.progress import progress
from mobilenets.data.splits import Images, Source

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)

# An image is tiny when its shorter side is both below this and below this share of the median.
TINY_PIXELS = 64
TINY_SHARE = 0.25
# At 4 to 1 the centre crop of a square input sees less than a quarter of the picture.
EXTREME_RATIO = 4.0
# Standard deviation of a blank image's liveliest channel, in levels of 255.
BLANK_LEVELS = 4.0
# Of two copies in two splits, the one in the later split is the one to keep.
SPLIT_ORDER = ("all", "train", "val", "test")
_CHUNK = 256
_CLOSEST_OF = 64
_CONTENTS = (
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "XML"),
    (b"%pdf", "a PDF"),
    (b"pk\x03\x04", "a ZIP archive"),
    (b"version https://git-lfs", "a Git LFS pointer instead of the file"),
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Args:
        kind: such as `broken-image`.
        severity: an `error` stops or spoils training, a `warning` may, a `note` does not.
        name: the image, folder or class; a path is relative to the data.
        detail: one sentence.
        split, label: where the image stands, where it stands in one.
        other: the counterpart, such as the other copy.
        path: the file or folder, where there is one; what `--fix` moves.
    """

    kind: str
    severity: Severity
    name: str
    detail: str
    split: str = ""
    label: str = ""
    other: str = ""
    path: Path | None = None

    def to_dict(self) -> dict[str, str]:
        """Every field but the path, which the name tells, as JSON writes it.

        >>> Finding(kind="tiny-image", severity="note", name="a.png", detail="…").to_dict()["name"]
        'a.png'
        """
        return {
            "kind": self.kind,
            "severity": self.severity,
            "name": self.name,
            "split": self.split,
            "label": self.label,
            "detail": self.detail,
            "other": self.other,
        }


@dataclass(frozen=True, slots=True)
class Item:
    """One image to look at: where it is read from, what it is called, and where it stands."""

    images: Images
    index: int
    name: str
    split: str
    label: str
    path: Path | None = None

    def read(self, channels: int = 3) -> Tensor:
        """uint8 (C, H, W); BadImageError when it can't be read."""
        return self.images.read(self.index, channels)


@dataclass(frozen=True, kw_only=True)
class Report:
    """All findings about a data set.

    Args:
        where: the data, as it was named.
        findings: errors first.
        images: how many can be read, by split and class.
        not_checked: what was left out, and why, one sentence each.
        seconds: how long it took.
        items: every image that was looked at.
    """

    where: str
    findings: tuple[Finding, ...]
    images: Mapping[str, Mapping[str, int]]
    not_checked: tuple[str, ...]
    seconds: float
    items: tuple[Item, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop or spoil training."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def total(self) -> int:
        """Images that can be read."""
        return sum(sum(classes.values()) for classes in self.images.values())

    def counts(self) -> dict[tuple[Severity, str], int]:
        """Number of findings by severity and kind, in the order of the findings."""
        return dict(Counter((finding.severity, finding.kind) for finding in self.findings))

    @cached_property
    def item_by_name(self) -> Mapping[str, Item]:
        """The images by their names."""
        return {item.name: item for item in self.items}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        severities = Counter(finding.severity for finding in self.findings)
        return {
            "data": self.where,
            "images": self.total,
            "splits": {split: dict(classes) for split, classes in self.images.items()},
            "counts": {severity: severities[severity] for severity in SEVERITIES},
            "findings": [finding.to_dict() for finding in self.findings],
            "not_checked": list(self.not_checked),
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True)
class Examined:
    """What looking at every image gave: findings, and thumbnails of those that can be read.

    `rows_N` are the positions of the readable images among the items, `thumbnails_NSS3` belongs
    to them.
    """

    findings: tuple[Finding, ...]
    not_checked: tuple[str, ...]
    rows_N: NDArray[np.int64]
    thumbnails_NSS3: NDArray[np.uint8]


def printable(text: str) -> str:
    r"""A name without characters that a terminal or UTF-8 can't take.

    >>> printable("bees/\x1b[31m\udce9.jpg")
    'bees/\\x1b[31m\\udce9.jpg'
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def count_of(number: int, what: str) -> str:
    """A number and its noun.

    >>> count_of(1, "image"), count_of(1200, "image")
    ('1 image', '1,200 images')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def items_of(source: Source) -> list[Item]:
    """The images of an opened source, split by split."""
    return [
        Item(split.images, index, printable(split.images.name(index)), name, source.labels[target])
        for name, split in source.splits.items()
        for index, target in enumerate(split.targets.tolist())
    ]


def sort_findings(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Errors first, then by kind, split and name."""
    return tuple(
        sorted(
            findings,
            key=lambda finding: (
                SEVERITIES.index(finding.severity),
                finding.kind,
                finding.split,
                finding.name,
                finding.other,
            ),
        )
    )


def examine(items: Sequence[Item]) -> Examined:
    """Decode every image once, in threads, and compare them all.

    >>> from mobilenets.data.sources import open_source
    >>> examined = examine(items_of(open_source("digits")))
    >>> len(examined.rows_N), [finding.kind for finding in examined.findings]
    (1797, [])
    """
    count = len(items)
    findings: list[Finding] = []
    files, pixels = [b""] * count, [b""] * count
    sizes_N2 = np.zeros((count, 2), dtype=np.int64)
    blank_N = np.zeros(count, dtype=bool)
    thumbnails_NSS3 = np.zeros((count, THUMBNAIL, THUMBNAIL, 3), dtype=np.uint8)
    hashes_NT8 = np.zeros((count, len(TRANSFORMS), 8), dtype=np.uint8)
    with (
        _quiet_pillow(),
        progress("looking at images", count) as advance,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for start in range(0, count, _CHUNK):
            chunk = items[start : start + _CHUNK]
            for row, looked in enumerate(pool.map(_look, chunk), start):
                findings += looked.findings
                if looked.thumbnail is not None:
                    files[row], pixels[row] = looked.file, looked.pixels
                    sizes_N2[row], blank_N[row] = looked.size, looked.blank
                    thumbnails_NSS3[row] = looked.thumbnail
                    if looked.hashes is not None:
                        hashes_NT8[row] = looked.hashes
            advance(len(chunk))
    rows_N = np.flatnonzero(sizes_N2[:, 0])
    readable = [items[int(row)] for row in rows_N]
    sides_N = sizes_N2[rows_N].min(axis=1)
    findings += _odd_sizes(readable, sizes_N2[rows_N])
    findings += _blank(readable, blank_N[rows_N])
    copies = find_copies(
        [pixels[row] for row in rows_N], sides_N, thumbnails_NSS3[rows_N], hashes_NT8[rows_N]
    )
    same = _Sameness(
        [files[row] for row in rows_N], [pixels[row] for row in rows_N], thumbnails_NSS3[rows_N]
    )
    for group in copies.groups:
        findings += _copies(readable, group, same)
    for first, second, how in copies.turned:
        findings.append(_turned(readable[first], readable[second], how))
    not_checked = []
    small = int((sides_N < SMALLEST_SIDE).sum())
    if small:
        not_checked.append(
            f"re-encoded, mirrored and turned copies of {count_of(small, 'image')} below "
            f"{SMALLEST_SIDE} pixels: only equal pixels tell in so few"
        )
    return Examined(tuple(findings), tuple(not_checked), rows_N, thumbnails_NSS3[rows_N])


def report_on(
    where: str, splits: Mapping[str, Sequence[Item]], found: Iterable[Finding], started: float
) -> Report:
    """What is wrong with images that have no class of their own, and what was found of all that is told of them.

    Args:
        started: by the monotonic clock.
    """
    items = [item for of_split in splits.values() for item in of_split]
    examined = examine(items)
    counted = Counter(items[row].split for row in examined.rows_N)
    return Report(
        where=where,
        findings=sort_findings([*examined.findings, *found]),
        images={name: {"": counted[name]} for name in splits},
        not_checked=examined.not_checked,
        seconds=time.monotonic() - started,
        items=tuple(items),
    )


@dataclass(frozen=True, slots=True)
class _Looked:
    """What one image shows; without a thumbnail it can't be read."""

    findings: tuple[Finding, ...]
    file: bytes = b""
    pixels: bytes = b""
    size: tuple[int, int] = (0, 0)
    blank: bool = False
    thumbnail: NDArray[np.uint8] | None = None
    hashes: NDArray[np.uint8] | None = None


def _look(item: Item) -> _Looked:
    findings: list[Finding] = []
    encoded = None
    try:
        encoded = item.images.encoded(item.index)
        if encoded is None:
            image_CHW = item.read()
        else:
            findings += _header_findings(item, encoded)
            image_CHW = read_image(encoded, 3, item.name)
    except BadImageError as error:
        return _Looked((_unreadable(item, encoded, str(error)),))
    pixels_HWC = np.ascontiguousarray(image_CHW.permute(1, 2, 0).numpy())
    height, width = pixels_HWC.shape[:2]
    small = shrink(Image.fromarray(pixels_HWC))
    thumbnail = np.asarray(small)
    # Fine texture averages out in a thumbnail: only a picture that looks blank there is measured.
    blank = (
        thumbnail.std(axis=(0, 1)).max() < BLANK_LEVELS
        and pixels_HWC.std(axis=(0, 1)).max() < BLANK_LEVELS
    )
    return _Looked(
        tuple(findings),
        b"" if encoded is None else hashlib.sha256(encoded).digest(),
        hashlib.sha256(f"{height}x{width}".encode() + pixels_HWC.tobytes()).digest(),
        (height, width),
        bool(blank),
        thumbnail,
        hash_views(small) if min(height, width) >= SMALLEST_SIDE else None,
    )


def about(item: Item, kind: str, severity: Severity, detail: str, other: str = "") -> Finding:
    """A finding about one image."""
    return Finding(
        kind=kind,
        severity=severity,
        name=item.name,
        detail=detail,
        split=item.split,
        label=item.label,
        other=other,
        path=item.path,
    )


def _unreadable(item: Item, encoded: bytes | None, message: str) -> Finding:
    for name in (item.images.name(item.index), item.name):
        message = message.removeprefix(f"{name}: ")
    reason = printable(message)
    if encoded is None:
        return about(item, "unreadable-file", "error", reason)
    if not encoded:
        return about(item, "empty-file", "error", "the file is empty")
    try:
        Image.open(io.BytesIO(encoded)).close()
    except UnidentifiedImageError:
        start = encoded[:64].lstrip().lower()
        content = next((what for magic, what in _CONTENTS if start.startswith(magic)), None)
        holds = f"it holds {content}" if content else "nothing in it says that it is an image"
        return about(item, "not-an-image", "error", holds)
    except Image.DecompressionBombError:
        reason = "it claims more pixels than are safe to read"
    except Exception:
        # Reading the pixels has met the same damage, and said so better.
        return about(item, "broken-image", "error", reason)
    return about(item, "broken-image", "error", reason)


def _header_findings(item: Item, encoded: bytes) -> Iterator[Finding]:
    """What the header tells of an image that may still turn out to be broken."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            kind = image.format or ""
            size, limit = image.size, Image.MAX_IMAGE_PIXELS
            orientation = _orientation(image)
            moves = kind != "MPO" and bool(getattr(image, "is_animated", False))
    # Damage is reported by reading the pixels.
    except Exception:
        return
    suffix = item.path.suffix.lower() if item.path else ""
    expected = Image.registered_extensions().get(suffix, kind)
    # A phone's JPEG with a second picture inside is an MPO, and is called .jpg.
    if kind != expected and (kind, expected) != ("MPO", "JPEG"):
        yield about(item, "wrong-suffix", "note", f"holds a {kind} image")
    if limit and size[0] * size[1] > limit:
        yield about(
            item,
            "huge-image",
            "warning",
            f"{size[0]:,}x{size[1]:,} pixels, decoded anew in every epoch: make it smaller",
        )
    if orientation in range(2, 9):
        yield about(
            item,
            "turned-by-exif",
            "note",
            f"EXIF orientation {orientation}: read upright here, but readers that ignore EXIF "
            "see it turned or mirrored",
        )
    elif orientation not in (None, 1):
        yield about(
            item,
            "invalid-orientation",
            "warning",
            f"EXIF orientation {printable(str(orientation))[:20]} does not exist (1 to 8 do): "
            "the picture may lie turned",
        )
    if moves:
        yield about(item, "animated-image", "note", "only the first of its frames is read")


def _orientation(image: Image.Image) -> object:
    """The tag as it stands; None where there is none, or no EXIF that can be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return None


def _odd_sizes(items: Sequence[Item], sizes_N2: NDArray[np.int64]) -> Iterator[Finding]:
    if not len(items):
        return
    median = float(np.median(sizes_N2.min(axis=1)))
    for item, (height, width) in zip(items, sizes_N2.tolist(), strict=True):
        side = min(height, width)
        if side < TINY_PIXELS and side < TINY_SHARE * median:
            yield about(
                item,
                "tiny-image",
                "warning",
                f"{width}x{height} pixels, where the shorter side is usually {median:.0f}",
            )
        if max(height, width) > EXTREME_RATIO * side:
            yield about(
                item,
                "extreme-shape",
                "warning",
                f"{width}x{height} pixels: a square crop sees less than a quarter of it",
            )


def _blank(items: Sequence[Item], blank_N: NDArray[np.bool_]) -> Iterator[Finding]:
    for row in np.flatnonzero(blank_N):
        yield about(items[int(row)], "blank-image", "warning", "one even surface without a picture")


class _Sameness:
    """How two copies differ, and which of many is the closest."""

    def __init__(
        self, files: Sequence[bytes], pixels: Sequence[bytes], thumbnails_NSS3: NDArray[np.uint8]
    ) -> None:
        self._files = files
        self._pixels = pixels
        self._thumbnails_NSS3 = thumbnails_NSS3

    def closest(self, row: int, among: Iterable[int]) -> int:
        few = list(islice(among, _CLOSEST_OF))
        for kind in (self._files, self._pixels):
            match = next((other for other in few if kind[row] and kind[row] == kind[other]), None)
            if match is not None:
                return match
        apart = np.abs(
            self._thumbnails_NSS3[few].astype(np.int16) - self._thumbnails_NSS3[row]
        ).mean(axis=(1, 2, 3))
        return few[int(apart.argmin())]

    def how(self, row: int, other: int) -> str:
        if self._files[row] and self._files[row] == self._files[other]:
            return "the same file as"
        if self._pixels[row] == self._pixels[other]:
            return "the same pixels as"
        return "a re-encoded or resized copy of"


def _copies(items: Sequence[Item], group: Sequence[int], same: _Sameness) -> Iterator[Finding]:
    """Findings about images of one picture; in the last of their splits, one is as it should be."""
    by_split: dict[str, list[int]] = {}
    for row in group:
        by_split.setdefault(items[row].split, []).append(row)
    kept_split = max(by_split, key=SPLIT_ORDER.index)
    for split, rows in by_split.items():
        by_label: dict[str, list[int]] = {}
        for row in rows:
            by_label.setdefault(items[row].label, []).append(row)
        for position, row in enumerate(rows):
            item = items[row]
            if split != kept_split:
                other = same.closest(row, by_split[kept_split])
                detail = (
                    f"{same.how(row, other)} {items[other].name}: figures on {kept_split} flatter"
                )
                kind = "same-image-in-two-splits"
                yield _copy(item, kind, "error", detail, items[other])
            if len(by_label) > 1:
                rivals = (other for other in rows if items[other].label != item.label)
                other = same.closest(row, rivals)
                detail = f"{same.how(row, other)} {items[other].name}"
                yield _copy(item, "contradictory-labels", "error", detail, items[other])
            elif split == kept_split and position:
                other = same.closest(row, rows[:position])
                detail = f"{same.how(row, other)} {items[other].name}"
                yield _copy(item, "same-image-twice", "warning", detail, items[other])


def _copy(item: Item, kind: str, severity: Severity, detail: str, other: Item) -> Finding:
    return about(item, kind, severity, detail + _label_conflict(item, other), other.name)


def _label_conflict(item: Item, other: Item) -> str:
    if item.label == other.label:
        return ""
    return f"; one is labelled {printable(item.label)}, the other {printable(other.label)}"


def _turned(first: Item, second: Item, how: str) -> Finding:
    apart = f", in {first.split} and {second.split}" if first.split != second.split else ""
    return about(
        second,
        "mirrored-copy" if how == TRANSFORMS[1] else "turned-copy",
        "warning",
        f"{first.name} {how}{apart}" + _label_conflict(second, first),
        first.name,
    )


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Pillow's notes on odd files are not for a user; what can't be read is said by us."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield
