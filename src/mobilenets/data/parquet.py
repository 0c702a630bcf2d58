"""Labelled images in Parquet files, in the Hub's layout."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilenets.data.splits import ALL, SPLIT_NAMES, EncodedImages, Source, Split


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a folder, or of `data` in it, sorted."""
    return sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))


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


def open_parquet(folder: Path, files: Sequence[Path], where: str) -> Source:
    """Labelled images of Parquet files, read into memory.

    Raises:
        ValueError: one sentence that says what is wrong with them, and where.
    """
    joined = read_parquet(folder, files, where)
    schema = joined["train" if "train" in joined else next(iter(joined))].schema
    images_name = bytes_column(schema)
    if images_name is None:
        raise ValueError(
            f"{where}: no image column (bytes, or a struct with bytes) among {', '.join(schema.names)}"
        )
    label_name, labels = label_column(schema, where, joined)
    splits = {}
    for name, table in joined.items():
        column = column_of(table, images_name, where, name)
        values = column_of(table, label_name, where, name).to_pylist()
        if not values:
            continue
        targets_N = targets_of(values, labels, f"{where} {name}")
        images = encoded_images(column, f"{where} {name}")
        splits[name] = Split(images, targets_N)
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


def targets_of(values: Sequence[object], labels: Sequence[str], origin: str) -> NDArray[np.int64]:
    """Class indices of labels, which are names or indices already.

    Raises:
        ValueError: names the first row whose label is none of them.

    >>> targets_of(["dog", 0], ["cat", "dog"], "pets")
    array([1, 0])
    """
    index: dict[object, int] = {label: target for target, label in enumerate(labels)}
    index |= {target: target for target in range(len(labels))}
    for row, value in enumerate(values):
        if value not in index:
            raise ValueError(
                f"{origin} row {row}: {value!r} is not one of the {len(labels)} labels"
            )
    return np.array([index[value] for value in values], dtype=np.int64)


def label_column(schema: Any, where: str, tables: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The column of classes and their names: from the Hub's metadata, else from the values.

    Raises:
        ValueError: there is no such column.
    """
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
