"""Images with attributes: CelebA's lists, a CSV, or folders of yes and no.

Shapes: N images, L attributes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobilenets.data.images import images_below
from mobilenets.data.sources import class_folders, split_folder_of_each
from mobilenets.data.splits import ALL, FileImages, Split, fingerprint_of
from mobilenets.data.tables import (
    Rows,
    image_column,
    image_folder,
    read_csv,
    refuse_twice,
    split_column,
    split_named,
)

_CELEBA, _CELEBA_PARTS = "list_attr_celeba", "list_eval_partition"
_CELEBA_IMAGES = "img_align_celeba"
_ANSWERS = {"yes": 1.0, "1": 1.0, "true": 1.0, "no": 0.0, "0": 0.0, "false": 0.0}


@dataclass(frozen=True, kw_only=True)
class AttributeSource:
    """A data set of images with attributes.

    Args:
        where: the path it was opened with.
        labels: the attributes.
        splits: `train`, `val` and `test` as they exist, or `all`; targets are shares float32 (N, L), NaN where nothing is told.
    """

    where: str
    labels: tuple[str, ...]
    splits: Mapping[str, Split]

    def fingerprint(self) -> str:
        """A hash of names and targets, by which a run knows its own data again."""
        return fingerprint_of(self.labels, self.splits)


def open_attributes(where: str | Path) -> AttributeSource:
    """Open a folder with CelebA's lists, a CSV or a folder that holds one, or a folder of `ATTRIBUTE/yes` and `ATTRIBUTE/no`.

    A CSV names images relative to its folder or to `images` in it; a column `split` or `partition` tells parts; all others
    are attributes: 0 and 1, -1 and 1, or shares between 0 and 1; nothing where it is not known.

    Raises:
        ValueError: one sentence that says what is wrong, and in which line.
    """
    path = Path(where)
    if path.is_file():
        if path.suffix.lower() != ".csv":
            raise ValueError(f"{where}: attributes are read from a CSV or a folder")
        return _from_rows(str(where), path, *read_csv(path))
    if not path.is_dir():
        raise ValueError(f"{where}: there is no such folder or CSV")
    for suffix in (".txt", ".csv"):
        if (path / f"{_CELEBA}{suffix}").is_file():
            return _open_celeba(path, suffix)
    tables = sorted(path.glob("*.csv"))
    if len(tables) == 1:
        return _from_rows(str(where), tables[0], *read_csv(tables[0]))
    if len(tables) > 1:
        names = ", ".join(table.name for table in tables[:3])
        raise ValueError(f"{where} has {names}: name the one that holds the attributes")
    return _open_folders(path)


def _read_list(path: Path) -> tuple[tuple[str, ...], Rows]:
    """CelebA's list: a count, the names, and an image with its values in each line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: can't be read ({error})") from None
    if len(lines) < 2:
        raise ValueError(f"{path}: the first line is a count, the second the attributes")
    header = ("image", *lines[1].split())
    rows = []
    for line, text in enumerate(lines[2:], 3):
        values = text.split()
        if values and len(values) != len(header):
            raise ValueError(f"{path} line {line}: {len(values)} values for {len(header)} columns")
        if values:
            rows.append((line, dict(zip(header, values, strict=True))))
    return header, rows


def _open_celeba(folder: Path, suffix: str) -> AttributeSource:
    path = folder / f"{_CELEBA}{suffix}"
    header, rows = read_csv(path) if suffix == ".csv" else _read_list(path)
    parts = folder / f"{_CELEBA_PARTS}{suffix}"
    if parts.is_file():
        if suffix == ".csv":
            pairs = [list(row.values())[:2] for _, row in read_csv(parts)[1]]
        else:
            lines = parts.read_text(encoding="utf-8").splitlines()
            pairs = [text.split()[:2] for text in lines if text]
        part_of: dict[str, str] = dict(pairs)
        image = header[0]
        missing = sorted({row[image] for _, row in rows} - part_of.keys())
        if missing:
            raise ValueError(f"{parts} does not say where {missing[0]} belongs")
        rows = [(line, {**row, "split": part_of[row[image]]}) for line, row in rows]
        header = (*header, "split")
    return _from_rows(str(folder), path, header, rows)


def _from_rows(where: str, path: Path, header: tuple[str, ...], rows: Rows) -> AttributeSource:
    if not rows:
        raise ValueError(f"{path}: it names no images")
    image = image_column(header) or header[0]
    part = split_column(header)
    labels = tuple(name for name in header if name not in (image, part))
    if not labels:
        raise ValueError(f"{path}: it has no attributes, only {', '.join(header)}")
    targets_NL = _targets(path, labels, rows)
    folder = image_folder(path.parent, f"{_CELEBA_IMAGES}/{_CELEBA_IMAGES}", _CELEBA_IMAGES)
    refuse_twice(str(path), rows, image)
    members: dict[str, list[int]] = {}
    for index, (line, row) in enumerate(rows):
        name = ALL if part is None else split_named(row[part], f"{path} line {line}", part)
        members.setdefault(name, []).append(index)
    if part is not None and "train" not in members:
        raise ValueError(f"{path}: no image is in the train part")
    paths = [folder / row[image] for _, row in rows]
    splits = {
        name: Split(FileImages(tuple(paths[index] for index in indices)), targets_NL[indices])
        for name, indices in members.items()
    }
    return AttributeSource(where=where, labels=labels, splits=splits)


def _targets(path: Path, labels: Sequence[str], rows: Rows) -> NDArray[np.float32]:
    targets_NL = np.full((len(rows), len(labels)), np.nan, dtype=np.float32)
    for place, label in enumerate(labels):
        for index, (line, row) in enumerate(rows):
            text = row[label].strip()
            if not text:
                continue
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not (0 <= value <= 1 or value == -1):
                raise ValueError(
                    f"{path} line {line}: {label} is {text!r}: 0 or 1, a share between them, -1 or 1, or nothing"
                )
            targets_NL[index, place] = value
        values_N = targets_NL[:, place]
        if (values_N == -1).any():
            if ((values_N != -1) & (values_N != 1) & ~np.isnan(values_N)).any():
                raise ValueError(
                    f"{path}: {label} has -1 and values between 0 and 1: is -1 no, or not known? Leave empty what is not known"
                )
            targets_NL[:, place] = (values_N + 1) / 2
    return targets_NL


def _open_folders(folder: Path) -> AttributeSource:
    splits = {}
    labels: tuple[str, ...] = ()
    for name, place in split_folder_of_each(folder).items():
        attributes = class_folders(place)
        if not attributes:
            raise ValueError(
                f"{place} has no attributes: a CSV with a column for each, or folders ATTRIBUTE/yes and ATTRIBUTE/no"
            )
        found = tuple(attribute.name for attribute in attributes)
        if labels and found != labels:
            odd = sorted(set(found) ^ set(labels))
            raise ValueError(f"{place}: {odd[0]} is an attribute in one part only")
        labels = found
        splits[name] = _split_of(attributes)
    return AttributeSource(where=str(folder), labels=labels, splits=splits)


def _split_of(attributes: Sequence[Path]) -> Split:
    """An image is known by its file's name, whatever folders it stands in."""
    paths: dict[str, Path] = {}
    told: dict[str, dict[int, float]] = {}
    for place, attribute in enumerate(attributes):
        for answer in class_folders(attribute):
            if answer.name.lower() not in _ANSWERS:
                raise ValueError(f"{answer}: an attribute has the folders yes and no")
            value = _ANSWERS[answer.name.lower()]
            for path in images_below(answer):
                paths.setdefault(path.name, path)
                before = told.setdefault(path.name, {}).setdefault(place, value)
                if before != value:
                    raise ValueError(f"{path}: it stands in yes and in no of {attribute.name}")
        if not class_folders(attribute):
            raise ValueError(f"{attribute}: an attribute has the folders yes and no")
    if not paths:
        raise ValueError(f"{attributes[0].parent}: it holds no images")
    names = sorted(paths)
    targets_NL = np.full((len(names), len(attributes)), np.nan, dtype=np.float32)
    for index, name in enumerate(names):
        for place, value in told[name].items():
            targets_NL[index, place] = value
    return Split(FileImages(tuple(paths[name] for name in names)), targets_NL)
