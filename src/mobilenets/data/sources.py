"""Where labelled images come from: folders, Parquet in the Hub's layout, shards, and named sets."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.error import HTTPError

import numpy as np

from mobilenets.data.images import images_below
from mobilenets.data.parquet import open_parquet, parquet_files
from mobilenets.data.shards.images import is_shards, open_shards
from mobilenets.data.shards.places import is_address
from mobilenets.data.splits import (
    ALL,
    SPLIT_NAMES,
    ArrayImages,
    FileImages,
    Source,
    Split,
    hold_out,
)

NAMED_SETS = ("digits", "cifar10", "cifar100")


def open_source(where: str | Path) -> Source:
    """Open a folder, a Parquet folder, shards or a named set (`digits`, `cifar10`, `cifar100`).

    Raises:
        ValueError: one sentence that says what is wrong with it, and where.

    >>> source = open_source("digits")
    >>> len(source.splits["train"]), len(source.splits["test"])
    (1438, 359)
    """
    if str(where) in NAMED_SETS:
        return _open_digits() if str(where) == "digits" else _download_cifar(str(where))
    if is_shards(where):
        return open_shards(where)
    folder = Path(where)
    if folder.is_file():
        if folder.suffix == ".parquet":
            return open_parquet(folder.parent, [folder], str(where))
        raise ValueError(f"{where} is a file: give a folder (unpack an archive first)")
    if not folder.is_dir():
        raise ValueError(
            f"{where}: there is no such folder, nor a data set of that name "
            f"(the named sets are {', '.join(NAMED_SETS)})"
        )
    files = parquet_files(folder)
    return open_parquet(folder, files, str(where)) if files else _open_folder(folder)


def is_image_folder(where: str | Path) -> bool:
    """Whether `open_source` would look for image files there: a folder, and none of Parquet files or shards.

    >>> is_image_folder("digits")
    False
    """
    if str(where) in NAMED_SETS or is_shards(where):
        return False
    return Path(where).is_dir() and not parquet_files(Path(where))


def settled(where: str) -> str:
    """A place as it is found from any folder: paths become absolute, names and addresses stay.

    >>> settled("digits"), settled("s3://bucket/shards")
    ('digits', 's3://bucket/shards')
    """
    stays = where in NAMED_SETS or is_address(where)
    return where if stays else str(Path(where).resolve())


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
