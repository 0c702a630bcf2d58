"""What is in each shard: where every image lies and what it shows, so that any of them can be read at once.

`mobilenets shard` writes it beside the shards (`shards.json`, `shards.arrow`); of shards that others wrote it is made by reading
them once, and kept.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilenets.data.files import write_aside
from mobilenets.data.images import IMAGE_SUFFIXES
from mobilenets.data.parquet import column_of, label_column, targets_of
from mobilenets.data.progress import progress
from mobilenets.data.shards.places import (
    MANIFEST,
    Layout,
    folder_of,
    is_address,
    name_of,
    split_of,
)
from mobilenets.data.shards.store import (
    ShardError,
    ShardFile,
    Store,
    cache_folder,
    describe,
    digest_of,
    fetch_bytes,
    laid_out,
)

FORMAT = 1
TABLE = "shards.arrow"
NAMES = "classnames.txt"
DESCRIBED_AT_ONCE = 16


@dataclass(frozen=True)
class Index:
    """The images of shards, in the order in which they lie there.

    Args:
        files: the shards.
        splits: the numbers of each split's shards.
        labels: class names.
        table: an Arrow table with a row for each image: `shard`, `key`, `place` (the offset in a tar file, the row in Parquet),
            `size` in bytes, and `label`.
        checked: whether every image was decoded when the shards were written.
        mirror: whether a mirrored image keeps its class.
    """

    layout: Layout
    files: tuple[ShardFile, ...]
    splits: Mapping[str, Sequence[int]]
    labels: tuple[str, ...]
    table: Any
    checked: bool
    mirror: bool = True

    @cached_property
    def shards(self) -> NDArray[np.int64]:
        """The number of each image's shard."""
        return self._numbers("shard")

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Where each image begins in its shard."""
        return self._numbers("place")

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each image, 0 where they need not be known."""
        return self._numbers("size")

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Each image's class."""
        return self._numbers("label")

    def _numbers(self, column: str) -> NDArray[np.int64]:
        return np.asarray(self.table[column].to_numpy(), dtype=np.int64)

    def to_bytes(self) -> tuple[bytes, bytes]:
        """What is written of it: the manifest and the table."""
        rows = table_bytes(self.table)
        manifest = {
            "format": FORMAT,
            "layout": self.layout,
            "labels": list(self.labels),
            "checked": self.checked,
            "mirror": self.mirror,
            "splits": {name: list(numbers) for name, numbers in self.splits.items()},
            "shards": [
                {"name": name_of(f.address), "bytes": f.size, "sha256": f.sha256}
                for f in self.files
            ],
            "table": {"name": TABLE, "sha256": hashlib.sha256(rows).hexdigest()},
        }
        return (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode(), rows


def table_bytes(table: Any) -> bytes:
    """A table as an Arrow file."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def read_written(place: str) -> Index:
    """The index that stands beside shards.

    Args:
        place: the folder or the address of it, or of `shards.json` in it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of another version.
    """
    import pyarrow as pa

    folder = folder_of(place) if name_of(place) == MANIFEST else place.rstrip("/")
    where = f"{folder}/{MANIFEST}"
    content = _read(where)
    try:
        manifest = json.loads(content)
        if manifest["format"] != FORMAT:
            raise ValueError(f"{where} was written by another version of mobilenets")
        rows = _read(f"{folder}/{manifest['table']['name']}")
        if hashlib.sha256(rows).hexdigest() != manifest["table"]["sha256"]:
            raise ValueError(f"{folder}/{TABLE} is not what was written beside {where}")
        return Index(
            layout=manifest["layout"],
            # A name is a file in this folder, whatever a stranger's manifest says.
            files=tuple(
                ShardFile(f"{folder}/{name_of(s['name'])}", s["bytes"], s["sha256"])
                for s in manifest["shards"]
            ),
            splits=manifest["splits"],
            labels=tuple(manifest["labels"]),
            table=pa.ipc.open_file(pa.py_buffer(rows)).read_all(),
            checked=manifest["checked"],
            mirror=manifest["mirror"],
        )
    except (KeyError, TypeError, json.JSONDecodeError, pa.ArrowException) as error:
        raise ValueError(f"{where} is damaged ({type(error).__name__}: {error})") from None


def read_foreign(splits: Mapping[str, Sequence[str]], layout: Layout, where: str) -> Index:
    """The index of shards that others wrote: kept from before, or made by reading each once.

    Raises:
        ValueError: a shard can't be read, or does not tell what its images show.
    """
    files: list[ShardFile] = []
    numbers: dict[str, list[int]] = {}
    for name, shards in splits.items():
        numbers[name] = list(range(len(files), len(files) + len(shards)))
        with ThreadPoolExecutor(DESCRIBED_AT_ONCE) as pool:
            files += pool.map(describe, shards)
    folder = cache_folder() / f"index-{digest_of(files)}"
    if (folder / MANIFEST).is_file():
        kept = read_written(str(folder))
        return replace(kept, files=tuple(files))
    index = _scan(files, numbers, layout, where)
    manifest, rows = index.to_bytes()
    write_aside(folder / TABLE, rows)
    write_aside(folder / MANIFEST, manifest)
    return index


def _read(place: str) -> bytes:
    return fetch_bytes(place) if is_address(place) else Path(place).read_bytes()


def _scan(
    files: Sequence[ShardFile], splits: Mapping[str, Sequence[int]], layout: Layout, where: str
) -> Index:
    """Read every shard once."""
    import pyarrow as pa

    store = Store(files, layout)
    taught = splits.get("train", next(iter(splits.values())))
    scan = _scan_tars if layout == "webdataset" else _scan_parquet
    tables, values, labels = scan(store, taught, where)
    rows = []
    for number, (table, told) in enumerate(zip(tables, values, strict=True)):
        if not len(table):
            raise ShardError(f"{files[number].address}: it holds no images")
        targets_N = targets_of(told, labels, files[number].address)
        rows.append(
            table.append_column("shard", pa.array(np.full(len(table), number))).append_column(
                "label", pa.array(targets_N)
            )
        )
    return Index(layout, tuple(files), splits, tuple(labels), pa.concat_tables(rows), checked=False)


Scanned = tuple[list[Any], list[list[Any]], Sequence[str]]


def _scan_tars(store: Store, taught: Sequence[int], where: str) -> Scanned:
    """Of each tar file its samples and what they say that they show; and the names of what is taught."""
    del where
    tables, values = [], []
    for number in _with_progress(store):
        table, told = _tar_rows(store.local(number), store.files[number].address)
        tables.append(table)
        values.append(told)
    known = {value for number in taught for value in values[number]}
    if not all(isinstance(value, int) for value in known):
        return tables, values, sorted(map(str, known))
    count = max(map(int, known), default=0) + 1
    names = _class_names(store.files[0].address)
    if names and len(names) < count:
        raise ValueError(f"{NAMES} has {len(names)} names, and the shards {count} classes")
    return tables, values, names or [str(index) for index in range(count)]


def _scan_parquet(store: Store, taught: Sequence[int], where: str) -> Scanned:
    """Of each Parquet file its rows and their labels; and the names of what is taught."""
    import pyarrow as pa

    tables, others = [], []
    for number in _with_progress(store):
        # The images stand first.
        table = laid_out(store.local(number)).remove_column(0)
        rows = np.arange(len(table))
        tables.append(
            pa.table({"key": rows.astype(str), "place": rows, "size": np.zeros_like(rows)})
        )
        others.append(table)
    first = pa.concat_tables([others[number] for number in taught], promote_options="permissive")
    name, labels = label_column(first.schema, where, {"train": first})
    values = [
        column_of(table, name, file.address, split_of(file.address)).to_pylist()
        for table, file in zip(others, store.files, strict=True)
    ]
    return tables, values, labels


def _with_progress(store: Store) -> Iterator[int]:
    with progress("reading shards", len(store.files), "shards") as advance:
        for number in range(len(store.files)):
            yield number
            advance(1)


def _tar_rows(path: Path, address: str) -> tuple[Any, list[str | int]]:
    """The samples of a tar file, and what each says that it shows."""
    import pyarrow as pa

    keys, places, sizes, labels = [], [], [], []
    for key, members in _samples(path, address):
        image = next((m for suffix, m in members.items() if f".{suffix}" in IMAGE_SUFFIXES), None)
        if image is None:
            raise ShardError(f"{address}: {key} has no image among {', '.join(members)}")
        label = _label(path, members)
        if label is None:
            raise ShardError(
                f"{address}: {key} tells no class: it needs a .cls, or a .json with a label "
                "(an archive of class folders is no shard: unpack it)"
            )
        keys.append(key)
        places.append(image.offset_data)
        sizes.append(image.size)
        labels.append(label)
    table = pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "place": np.array(places, dtype=np.int64),
            "size": np.array(sizes, dtype=np.int64),
        }
    )
    return table, labels


def _samples(path: Path, address: str) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """WebDataset's samples: files of one name up to its first dot, one after the other."""
    members: dict[str, tarfile.TarInfo] = {}
    last = ""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                place = PurePosixPath(member.name)
                stem, dot, suffix = place.name.partition(".")
                # What operating systems leave in archives begins with a dot.
                if not member.isfile() or not stem or not dot:
                    continue
                key = str(place.with_name(stem))
                if members and key != last:
                    yield last, members
                    members = {}
                last = key
                # Of `jpg` and of `image.jpg` alike.
                members[suffix.lower().rpartition(".")[2]] = member
    except tarfile.TarError as error:
        raise ShardError(f"{address}: not a whole tar file ({error})") from None
    if members:
        yield last, members


def _label(path: Path, members: Mapping[str, tarfile.TarInfo]) -> str | int | None:
    """What a sample says that it shows: a class's number or its name."""
    member = members.get("cls") or members.get("json")
    if member is None:
        return None
    with path.open("rb") as file:
        file.seek(member.offset_data)
        content = file.read(member.size)
    try:
        told = content.decode().strip()
        if "cls" in members:
            return int(told) if told.isdigit() else told or None
        value = json.loads(told)
    except ValueError:
        return None
    label = value.get("label") if isinstance(value, dict) else None
    return label if isinstance(label, int | str) else None


def _class_names(shard: str) -> list[str]:
    """One a line in `classnames.txt` beside the shards, where there is one."""
    try:
        lines = _read(f"{folder_of(shard) or '.'}/{NAMES}").decode().splitlines()
    except (FileNotFoundError, ShardError):
        return []
    return [line.strip() for line in lines if line.strip()]
