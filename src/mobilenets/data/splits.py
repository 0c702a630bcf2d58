"""Labelled images and their splits, whatever they were opened from, and how they are divided."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobilenets.data.images import BadImageError, read_encoded, read_image

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
ALL = "all"
# The class of an image without a label, or with one that a model does not know.
UNKNOWN = -1


class Images(Protocol):
    """Images that are read one at a time."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """A path, or what an error message calls the image."""

    def key(self, index: int) -> str:
        """What stays the same when the data set moves to another folder."""

    def read(self, index: int, channels: int) -> Tensor:
        """uint8 (C, H, W); BadImageError when it can't be read."""

    def encoded(self, index: int) -> bytes | None:
        """The bytes it is decoded from, None where it is kept decoded; BadImageError as `read`."""

    def take(self, indices: Sequence[int]) -> Images:
        """The images at these positions."""


@dataclass(frozen=True)
class FileImages:
    """Image files."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The path."""
        return str(self.paths[index])

    def key(self, index: int) -> str:
        """The file's name."""
        return self.paths[index].name

    def read(self, index: int, channels: int) -> Tensor:
        """uint8 (C, H, W)."""
        return read_image(self.paths[index], channels)

    def encoded(self, index: int) -> bytes:
        """The file's bytes."""
        return read_encoded(self.paths[index])

    def take(self, indices: Sequence[int]) -> FileImages:
        """The files at these positions."""
        return FileImages(tuple(self.paths[index] for index in indices))


@dataclass(frozen=True)
class EncodedImages:
    """Encoded images in an Arrow column of bytes, kept as they came from the Parquet file."""

    column: Any
    origin: str
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """The Parquet split and the row."""
        return f"{self.origin} row {self.rows[index]}"

    def key(self, index: int) -> str:
        """The row."""
        return str(self.rows[index])

    def read(self, index: int, channels: int) -> Tensor:
        """uint8 (C, H, W)."""
        return read_image(self.encoded(index), channels, self.name(index))

    def encoded(self, index: int) -> bytes:
        """The bytes in the row."""
        encoded: bytes | None = self.column[int(self.rows[index])].as_py()
        if encoded is None:
            raise BadImageError(f"{self.name(index)}: holds no image")
        return encoded

    def take(self, indices: Sequence[int]) -> EncodedImages:
        """The rows at these positions."""
        return EncodedImages(self.column, self.origin, self.rows[list(indices)])


@dataclass(frozen=True)
class ArrayImages:
    """Decoded uint8 images (N, H, W, C) of one size."""

    pixels_NHWC: NDArray[np.uint8]
    origin: str

    def __len__(self) -> int:
        return len(self.pixels_NHWC)

    def name(self, index: int) -> str:
        """The set and the position in it."""
        return f"{self.origin} image {index}"

    def key(self, index: int) -> str:
        """The position in the set."""
        return str(index)

    def read(self, index: int, channels: int) -> Tensor:
        """uint8 (C, H, W); grey becomes RGB, RGB grey, and both opaque where it is asked for."""
        image_CHW = torch.from_numpy(self.pixels_NHWC[index]).permute(2, 0, 1)
        if image_CHW.shape[0] == channels:
            return image_CHW
        from torchvision.transforms.v2 import functional

        converted: Tensor = (
            functional.rgb_to_grayscale(image_CHW)
            if channels == 1
            else functional.grayscale_to_rgb(image_CHW)
        )
        if channels == 4:
            return torch.cat([converted, torch.full_like(converted[:1], 255)])
        return converted

    def encoded(self, index: int) -> None:
        """None: the pixels are all there is."""

    def take(self, indices: Sequence[int]) -> ArrayImages:
        """The images at these positions."""
        return ArrayImages(self.pixels_NHWC[list(indices)], self.origin)


@dataclass(frozen=True)
class JoinedImages:
    """Images of several kinds or places, each found by its part and its position there."""

    parts: tuple[Images, ...]
    places: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        """As its part calls it."""
        part, place = self.places[index]
        return self.parts[part].name(place)

    def key(self, index: int) -> str:
        """The part and what it calls the image."""
        part, place = self.places[index]
        return f"{part}/{self.parts[part].key(place)}"

    def read(self, index: int, channels: int) -> Tensor:
        """uint8 (C, H, W)."""
        part, place = self.places[index]
        return self.parts[part].read(place, channels)

    def encoded(self, index: int) -> bytes | None:
        """The bytes it is decoded from."""
        part, place = self.places[index]
        return self.parts[part].encoded(place)

    def take(self, indices: Sequence[int]) -> JoinedImages:
        """The images at these positions."""
        return JoinedImages(self.parts, tuple(self.places[index] for index in indices))


@dataclass(frozen=True)
class Split:
    """Images and what is known of each: a class index or `UNKNOWN`, or a row of values."""

    images: Images
    targets: NDArray[Any]

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: Sequence[int]) -> Split:
        """The examples at these positions."""
        return Split(self.images.take(indices), self.targets[list(indices)])

    def fingerprint(self) -> str:
        """A hash of targets and image keys: other images in the same numbers are told apart."""
        digest = hashlib.sha256(self.targets.tobytes())
        digest.update("\n".join(map(self.images.key, range(len(self)))).encode())
        return digest.hexdigest()[:16]


def fingerprint_of(labels: Sequence[str], splits: Mapping[str, Split]) -> str:
    """A hash of names, targets and image keys, by which a run knows its own data again."""
    digest = hashlib.sha256(json.dumps(labels).encode())
    for name in sorted(splits):
        digest.update(name.encode())
        digest.update(splits[name].fingerprint().encode())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Source:
    """A labelled data set: its labels, its splits by name, and what a user should know of it.

    Args:
        where: the path or the name it was opened with.
        labels: class names, in the order of their indices.
        splits: `train`, `val` and `test` as they exist, or `all` for one folder of classes.
        mirror: whether a mirrored image keeps its class (a mirrored 2 does not).
        warnings: findings that do not stop the work, such as empty class folders.
    """

    where: str
    labels: tuple[str, ...]
    splits: Mapping[str, Split]
    mirror: bool = True
    warnings: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """A hash of labels and targets, by which a run knows its own data again."""
        digest = hashlib.sha256(json.dumps(self.labels).encode())
        for name in sorted(self.splits):
            digest.update(name.encode())
            digest.update(self.splits[name].targets.tobytes())
        return digest.hexdigest()[:16]

    def split(self, name: str) -> Split:
        """The split of that name.

        Raises:
            ValueError: the source has no such split.
        """
        if name not in self.splits:
            raise ValueError(f"{self.where} has no split {name!r}: it has {', '.join(self.splits)}")
        return self.splits[name]


def hold_out(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Split by seed, class by class, into a training part and a held-out part.

    A class of one image stays in training.

    Raises:
        ValueError: nothing is left for one of the parts.
    """
    random = np.random.default_rng(seed)
    held: list[int] = []
    for target in np.unique(split.targets):
        rows = random.permutation(np.flatnonzero(split.targets == target))
        held += rows[: min(max(1, round(len(rows) * share)), len(rows) - 1)].tolist()
    if not held:
        raise ValueError("too few images to hold any out: every class has only one")
    kept = np.setdiff1d(np.arange(len(split)), held)
    return split.take(kept.tolist()), split.take(sorted(held))


class _Part(Protocol):
    def __len__(self) -> int: ...

    def take(self, indices: Sequence[int]) -> Self: ...


P = TypeVar("P", bound=_Part)


def divide(part: P, share: float, seed: int) -> tuple[P, P]:
    """Images to train on, and a share that is held out, drawn by seed whatever they hold."""
    order = np.random.default_rng(seed).permutation(len(part))
    count = min(max(1, round(len(part) * share)), len(part) - 1)
    return part.take(sorted(order[count:].tolist())), part.take(sorted(order[:count].tolist()))


def join(splits: Sequence[Split]) -> Split:
    """Several splits as one, in turn."""
    places = [(part, place) for part, split in enumerate(splits) for place in range(len(split))]
    images = JoinedImages(tuple(split.images for split in splits), tuple(places))
    return Split(images, np.concatenate([split.targets for split in splits]))


def fold_of(split: Split, folds: int, fold: int, seed: int) -> tuple[Split, Split]:
    """All but one of `folds` parts that have about as many images of each class, and that one.

    Args:
        fold: which one is held out, from 1.

    Raises:
        ValueError: no class has that many images.

    >>> from mobilenets.data.sources import open_source
    >>> source = open_source("digits")
    >>> [len(part) for part in fold_of(source.splits["train"], 5, 1, seed=0)]
    [1150, 288]
    """
    from sklearn.model_selection import StratifiedKFold

    most = int(np.bincount(split.targets[split.targets >= 0], minlength=1).max())
    if folds > most:
        raise ValueError(f"{folds} folds are too many: the largest class has {most} images")
    with warnings.catch_warnings():
        # A class of fewer images than folds is in some of them only.
        warnings.simplefilter("ignore", UserWarning)
        parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(
            np.zeros(len(split)), split.targets
        )
        kept, held = list(parts)[fold - 1]
    return split.take(kept.tolist()), split.take(held.tolist())


def relabel(source: Source, labels: Sequence[str]) -> Source:
    """The same data with the class indices of another list of labels, matched by name.

    Raises:
        ValueError: names the classes that the other list does not have.
    """
    if tuple(labels) == source.labels:
        return source
    used = {
        source.labels[target] for split in source.splits.values() for target in set(split.targets)
    }
    unknown = sorted(used - set(labels))
    if unknown:
        raise ValueError(
            f"{source.where} has classes the model does not know: {', '.join(unknown[:5])}"
            + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
            + f"; it knows {', '.join(labels[:5])}{'…' if len(labels) > 5 else ''}"
        )
    index = {label: position for position, label in enumerate(labels)}
    mapping = np.array([index.get(label, UNKNOWN) for label in source.labels], dtype=np.int64)
    splits = {name: Split(s.images, mapping[s.targets]) for name, s in source.splits.items()}
    return Source(source.where, tuple(labels), splits, source.mirror, source.warnings)
