"""Where labelled images come from: folders, Parquet in the Hub's layout, and named sets."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar
from urllib.error import HTTPError

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobilenets.data.images import BadImageError, images_below, read_encoded, read_image

NAMED_SETS = ("digits", "cifar10", "cifar100")
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


def open_source(where: str | Path) -> Source:
    """Open a folder, a Parquet folder or a named set (`digits`, `cifar10`, `cifar100`).

    Raises:
        ValueError: one sentence that says what is wrong with it, and where.

    >>> source = open_source("digits")
    >>> len(source.splits["train"]), len(source.splits["test"])
    (1438, 359)
    """
    if str(where) in NAMED_SETS:
        return _open_digits() if str(where) == "digits" else _download_cifar(str(where))
    folder = Path(where)
    if folder.is_file():
        if folder.suffix == ".parquet":
            return _open_parquet(folder.parent, [folder], str(where))
        raise ValueError(f"{where} is a file: give a folder (unpack an archive first)")
    if not folder.is_dir():
        raise ValueError(
            f"{where}: there is no such folder, nor a data set of that name "
            f"(the named sets are {', '.join(NAMED_SETS)})"
        )
    files = parquet_files(folder)
    return _open_parquet(folder, files, str(where)) if files else _open_folder(folder)


def is_image_folder(where: str | Path) -> bool:
    """Whether `open_source` would look for image files there: a folder, and none of Parquet files.

    >>> is_image_folder("digits")
    False
    """
    return str(where) not in NAMED_SETS and Path(where).is_dir() and not parquet_files(Path(where))


def split_folders(folder: Path) -> dict[str, list[Path]]:
    """The folders of each split: `train`, `val` and `test` by any of their names, else `all`.

    A split in several folders (`val` and `valid`), or splits without `train`, are for the caller
    to judge.
    """
    classes = class_folders(folder)
    named = [path for path in classes if path.name.lower() in SPLIT_NAMES]
    # A folder of trains next to other classes is a class: a split holds class folders.
    only_splits = bool(named) and len(named) == len(classes)
    parts: dict[str, list[Path]] = {}
    for path in named:
        split = SPLIT_NAMES[path.name.lower()]
        if class_folders(path) or (only_splits and split == "train"):
            parts.setdefault(split, []).append(path)
    return parts if only_splits or "train" in parts else {ALL: [folder]}


def split_folder_of_each(folder: Path) -> dict[str, Path]:
    """As `split_folders`, where each split has one.

    Raises:
        ValueError: a split has several.
    """
    parts: dict[str, Path] = {}
    for name, folders in split_folders(folder).items():
        if len(folders) > 1:
            raise ValueError(
                f"{folder} has both {folders[0].name} and {folders[1].name}: keep one of them"
            )
        parts[name] = folders[0]
    return parts


def class_folders(folder: Path) -> list[Path]:
    """The folders directly inside, sorted; hidden ones left out."""
    return [
        path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")
    ]


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a folder, or of `data` in it, sorted."""
    return sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))


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


def _open_folder(folder: Path) -> Source:
    parts = split_folder_of_each(folder)
    if ALL not in parts and "train" not in parts:
        names = ", ".join(path.name for path in class_folders(folder))
        raise ValueError(f"{folder} has {names} but no train folder")
    first = parts.get("train", folder)
    labels = tuple(path.name for path in class_folders(first))
    if not labels:
        loose = next(images_below(first), None)
        reason = (
            "its images are not sorted into one folder a class" if loose else "it holds no images"
        )
        raise ValueError(f"{first}: {reason}")
    splits: dict[str, Split] = {}
    warnings: list[str] = []
    for name, part in parts.items():
        classes = [path.name for path in class_folders(part)]
        unknown = sorted(set(classes) - set(labels))
        if unknown:
            raise ValueError(
                f"{part}: the class {unknown[0]} is not in {first} (classes are matched by name)"
            )
        paths: list[Path] = []
        targets: list[int] = []
        for target, label in enumerate(labels):
            inside = list(images_below(part / label)) if label in classes else []
            if not inside and name in ("train", ALL):
                warnings.append(f"{part / label} holds no images; the class keeps its index")
            paths += inside
            targets += [target] * len(inside)
        if not paths and name in ("train", ALL):
            raise ValueError(f"{part}: it holds no images")
        if paths:
            splits[name] = Split(FileImages(tuple(paths)), np.array(targets, dtype=np.int64))
    if len(labels) < 2:
        inner = first / labels[0]
        deeper = (inner / "train").is_dir() or len(class_folders(inner)) > 1
        hint = f"; did you mean {inner}?" if deeper else ""
        raise ValueError(f"{first} has one class, {labels[0]}: a classifier needs two{hint}")
    return Source(str(folder), labels, splits, warnings=tuple(warnings))


def read_parquet(folder: Path, files: Sequence[Path], where: str) -> dict[str, Any]:
    """Arrow tables by split, which the files' names tell; `all` where they don't.

    Raises:
        ValueError: a file is no whole Parquet, or files do not fit together.
    """
    from pyarrow import ArrowException, concat_tables, parquet

    tables: dict[str, list[Any]] = {}
    for file in files:
        words = re.split(r"[-_.]", file.name.lower())
        split = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), ALL)
        try:
            table = parquet.read_table(file)
        except (ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{file}: not a whole Parquet file ({reason})") from None
        tables.setdefault(split, []).append(table)
    if ALL in tables and len(tables) > 1:
        raise ValueError(f"{folder}: name the Parquet files train-*, validation-* and test-*")
    joined: dict[str, Any] = {}
    for name, shards in tables.items():
        try:
            # Kept in chunks: Arrow can't join more than 2 GB of images into one array.
            joined[name] = concat_tables(shards, promote_options="permissive")
        except ArrowException as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{where}: the {name} files do not fit together ({reason})") from None
    return joined


def column_of(table: Any, name: str, where: str, split: str) -> Any:
    """A column of a split's table.

    Raises:
        ValueError: it has none of that name.
    """
    if name not in table.column_names:
        raise ValueError(f"{where}: the {split} split has no column {name!r}")
    return table[name]


def encoded_images(column: Any, origin: str) -> EncodedImages:
    """The images of a column of bytes, or of structs that hold bytes."""
    from pyarrow import compute
    from pyarrow.types import is_struct

    encoded = compute.struct_field(column, "bytes") if is_struct(column.type) else column
    return EncodedImages(encoded, origin, np.arange(len(column)))


def _open_parquet(folder: Path, files: Sequence[Path], where: str) -> Source:
    joined = read_parquet(folder, files, where)
    schema = joined["train" if "train" in joined else next(iter(joined))].schema
    images_name = bytes_column(schema)
    if images_name is None:
        raise ValueError(
            f"{where}: no image column (bytes, or a struct with bytes) among {', '.join(schema.names)}"
        )
    label_column, labels = _label_column(schema, where, joined)
    index: dict[object, int] = {label: target for target, label in enumerate(labels)}
    index |= {target: target for target in range(len(labels))}
    splits = {}
    for name, table in joined.items():
        column = column_of(table, images_name, where, name)
        values = column_of(table, label_column, where, name).to_pylist()
        if not values:
            continue
        targets = []
        for row, value in enumerate(values):
            if value not in index:
                raise ValueError(
                    f"{where} {name} row {row}: {value!r} is not one of the {len(labels)} labels"
                )
            targets.append(index[value])
        images = encoded_images(column, f"{where} {name}")
        splits[name] = Split(images, np.array(targets, dtype=np.int64))
    if not splits:
        raise ValueError(f"{where}: it holds no images")
    if len(labels) < 2:
        raise ValueError(f"{where} has one class: a classifier needs two")
    return Source(where, tuple(labels), splits)


def bytes_column(schema: Any) -> str | None:
    """The first column that holds images as bytes, or as structs with bytes; None where there is none."""
    import pyarrow as pa

    def holds_images(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" for field in kind)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    return next((str(field.name) for field in schema if holds_images(field.type)), None)


def _label_column(schema: Any, where: str, tables: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The column of classes and their names: from the Hub's metadata, else from the values."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = metadata.get("info", {}).get("features", {})
    named = {name: f["names"] for name, f in features.items() if "names" in f}
    for name in ("label", "labels", "fine_label", *named, "class", "target"):
        if name in named:
            return name, list(named[name])
        if name in schema.names:
            # Training decides the classes: one that is only in another split is an error.
            first = tables.get("train", next(iter(tables.values())))
            values = set(first[name].unique().to_pylist())
            # Missing and negative labels are reported where the row is known.
            values.discard(None)
            if all(isinstance(value, str) for value in values):
                return name, sorted(values)
            if all(isinstance(value, int) for value in values):
                return name, [str(index) for index in range(max(values) + 1)]
    raise ValueError(f"{where}: no label column among {', '.join(schema.names)}")


def _open_digits() -> Source:
    """scikit-learn's 1,797 handwritten digits, 8x8, a fixed fifth of each held out as `test`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)[..., None]
    whole = Split(ArrayImages(pixels, "digits"), digits.target.astype(np.int64))
    train, test = hold_out(whole, 0.2, seed=0)
    labels = tuple(str(digit) for digit in range(10))
    return Source("digits", labels, {"train": train, "test": test}, mirror=False)


def data_home() -> Path:
    """Where named sets are kept: `MOBILENETS_HOME`, or `~/.cache/mobilenets`."""
    return Path(os.environ.get("MOBILENETS_HOME") or Path.home() / ".cache" / "mobilenets")


def _download_cifar(name: str) -> Source:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    splits, labels = {}, ()
    for split, train in (("train", True), ("test", False)):
        try:
            data = kind(root=str(data_home()), train=train, download=True)
        except (OSError, RuntimeError) as error:
            if isinstance(error, HTTPError):
                error.close()
            raise ValueError(
                f"{name} could not be downloaded from {kind.url} to {data_home()} "
                f"({' '.join(str(error).split()) or type(error).__name__}): "
                "check the network, or give a folder"
            ) from None
        labels = tuple(data.classes)
        pixels = np.asarray(data.data, dtype=np.uint8)
        splits[split] = Split(ArrayImages(pixels, f"{name} {split}"), np.array(data.targets))
    return Source(name, labels, splits)
