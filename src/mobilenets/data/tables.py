"""Tables that tell something of images: which columns mean what, and where the images lie."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from mobilenets.data.splits import SPLIT_NAMES

_IMAGES = ("image", "image_id", "file", "filename", "file_name", "path")
_SPLITS = ("split", "partition", "subset", "set")
# CelebA numbers its parts.
_SPLIT_NAMES = {**SPLIT_NAMES, "0": "train", "1": "val", "2": "test"}

# Each row with its line.
Rows = list[tuple[int, dict[str, str]]]


def read_csv(path: Path) -> tuple[tuple[str, ...], Rows]:
    """The header, and each row with its line.

    Raises:
        ValueError: it can't be read, a row is too long or too short, or two columns have one name.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = tuple(name.strip() for name in next(reader, []))
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: can't be read as CSV ({error})") from None
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(f"{path} line {line}: {len(row)} values for {len(header)} columns")
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise ValueError(f"{path}: two columns are called {twice[0]}")
    return header, [(line, dict(zip(header, row, strict=True))) for line, row in rows]


def find_column(header: Sequence[str], names: Sequence[str]) -> str | None:
    """The column that has the first of these names, in any case; None where there is none.

    >>> find_column(("File", "Lat"), ("latitude", "lat"))
    'Lat'
    """
    lower = {name.lower(): name for name in reversed(header)}
    return next((lower[name] for name in names if name in lower), None)


def image_column(header: Sequence[str]) -> str | None:
    """The column that names images, where one is called as if it did."""
    return find_column(header, _IMAGES)


def split_column(header: Sequence[str]) -> str | None:
    """The column that tells parts, where there is one."""
    return find_column(header, _SPLITS)


def split_named(text: str, place: str, column: str) -> str:
    """`train`, `val` or `test` by any of their names.

    Args:
        place: the line, for messages.

    Raises:
        ValueError: it names no part.
    """
    name = _SPLIT_NAMES.get(text.strip().lower())
    if name is None:
        raise ValueError(f"{place}: {column} is {text!r}: train, val or test (0, 1, 2)")
    return name


def refuse_twice(where: str, rows: Rows, image: str, unit: str = "line") -> None:
    """Make sure that each row names an image, and no other row the same one.

    Args:
        unit: what a row is called, for messages.

    Raises:
        ValueError: one stands in two, or a row names none.
    """
    seen: dict[str, int] = {}
    for number, row in rows:
        name = row[image].strip()
        if not name:
            raise ValueError(f"{where} {unit} {number}: {image} is empty")
        first = seen.setdefault(name, number)
        if first != number:
            raise ValueError(f"{where} {unit} {number}: {name} stands in {unit} {first} too")


def image_folder(folder: Path, *names: str) -> Path:
    """Where the images of a table in a folder lie: in a folder of one of these names or `images` in it, else beside it."""
    return next((folder / name for name in (*names, "images") if (folder / name).is_dir()), folder)
