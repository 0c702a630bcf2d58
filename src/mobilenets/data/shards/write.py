"""Writing a data set as shards of about one size, several at once, going on where an earlier attempt ended."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from mobilenets.data.files import check_replaceable, read_json, sha256, write_aside
from mobilenets.data.images import BadImageError, read_image
from mobilenets.data.progress import progress
from mobilenets.data.shards.index import TABLE, Index
from mobilenets.data.shards.places import MANIFEST, SUFFIXES, Layout
from mobilenets.data.shards.store import ShardFile
from mobilenets.data.splits import Source, Split

UNFINISHED = ".unfinished.json"
SAMPLES = 256
QUALITY = 92
# Of a sample beside its image: two headers, the class, and what fills the last block up.
TAR_BLOCKS = 3.5
# Rows of a Parquet file that are read together.
ROW_GROUP = 100


@dataclass(frozen=True)
class Choices:
    """How shards are written.

    Args:
        size: of a shard in bytes, about.
        resize: the shorter side of larger images; None leaves all as they are, to the byte.
        quality: of JPEG, for images that are resized.
        seed: of the order in which images go into the shards.
    """

    layout: Layout
    size: float
    resize: int | None = None
    quality: int = QUALITY
    seed: int = 0


@dataclass(frozen=True)
class Written:
    """What was written: the index of it, and a sentence on each image that was left out."""

    index: Index
    problems: tuple[str, ...]

    def splits(self) -> dict[str, dict[str, int]]:
        """Images, shards and bytes of each split."""
        return {
            name: {
                "images": int(np.isin(self.index.shards, list(numbers)).sum()),
                "shards": len(numbers),
                "bytes": sum(self.index.files[number].size or 0 for number in numbers),
            }
            for name, numbers in self.index.splits.items()
        }


@dataclass(frozen=True)
class _Shard:
    """One to write: its name, and which images of its split go into it."""

    name: str
    labels: tuple[str, ...]
    split: Split
    rows: Sequence[int]


def write_shards(
    source: Source,
    folder: Path,
    choices: Choices,
    *,
    on_bad_image: Literal["stop", "skip"] = "stop",
    overwrite: bool = False,
    threads: int | None = None,
) -> Written:
    """Write a data set as shards, in an order drawn by seed; every image is decoded on the way.

    Shards that an earlier attempt with the same choices finished stay as they are.

    Args:
        threads: shards that are written at once; as many as there are cores by default.

    Raises:
        BadImageError: names an image that can't be read (with `stop`).
        ValueError: the folder holds something else, or shards that may not be replaced.
        OSError: the disk is full; what is finished stays for the next attempt.
    """
    shards = {
        name: _plan(name, source.labels, split, choices) for name, split in source.splits.items()
    }
    told = {
        **asdict(choices),
        "data": source.fingerprint(),
        "shards": {name: len(planned) for name, planned in shards.items()},
    }
    _begin(folder, told, overwrite=overwrite)
    planned = [shard for some in shards.values() for shard in some]
    images = sum(len(shard.rows) for shard in planned)
    with (
        progress("writing shards", images) as advance,
        ThreadPoolExecutor(threads or os.cpu_count()) as pool,
    ):

        def write(shard: _Shard) -> dict[str, Any]:
            return _write(shard, folder, choices, on_bad_image, advance)

        found = pool.map(write, planned)
        try:
            done = list(found)
        except BaseException:
            # Those that wait their turn need not begin.
            pool.shutdown(cancel_futures=True)
            raise
    index = _index(source, shards, folder, choices, done)
    manifest, rows = index.to_bytes()
    write_aside(folder / TABLE, rows)
    write_aside(folder / MANIFEST, manifest)
    for shard in planned:
        _rows_file(folder, shard).unlink()
    (folder / UNFINISHED).unlink()
    return Written(index, tuple(problem for one in done for problem in one["problems"]))


def _plan(name: str, labels: tuple[str, ...], split: Split, choices: Choices) -> list[_Shard]:
    """Which image goes into which shard; how large they come out is told by some of them."""
    order = np.random.default_rng(choices.seed).permutation(len(split))
    sizes = []
    for place in order[:SAMPLES].tolist():
        try:
            sizes.append(len(_encode(split, place, choices)[0]))
        except BadImageError:
            continue
    mean = sum(sizes) / max(1, len(sizes))
    if choices.layout == "webdataset":
        mean += TAR_BLOCKS * tarfile.BLOCKSIZE
    count = max(1, min(len(split), math.ceil(mean * len(split) / choices.size)))
    parts = np.array_split(order, count)
    suffix = {layout: suffix for suffix, layout in SUFFIXES.items()}[choices.layout]
    return [
        _Shard(f"{name}-{number:06}-of-{count:06}{suffix}", labels, split, rows.tolist())
        for number, rows in enumerate(parts)
    ]


def _begin(folder: Path, told: dict[str, Any], *, overwrite: bool) -> None:
    """Make sure that the folder is new, or holds an earlier attempt at the same."""
    aside = folder / UNFINISHED
    if aside.is_file() and read_json(aside) == told:
        return
    ours: set[str] | None = None
    if folder.is_dir():
        written = any((folder / name).is_file() for name in (MANIFEST, UNFINISHED))
        if written:
            ours = {path.name for path in folder.iterdir() if _is_ours(path)}
    check_replaceable(folder, "written shards", ours, overwrite=overwrite)
    if ours:
        shutil.rmtree(folder)
    write_aside(aside, json.dumps(told).encode())


def _is_ours(path: Path) -> bool:
    return (
        path.name in (MANIFEST, TABLE, UNFINISHED)
        or path.suffix in (*SUFFIXES, ".rows")
        or path.name.endswith(".part")
    )


def _rows_file(folder: Path, shard: _Shard) -> Path:
    return folder / f".{shard.name}.rows"


def _write(
    shard: _Shard,
    folder: Path,
    choices: Choices,
    on_bad_image: Literal["stop", "skip"],
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Write one shard, unless it is there; what the index tells of it."""
    kept = _rows_file(folder, shard)
    if kept.is_file():
        advance(len(shard.rows))
        return read_json(kept)
    path, part = folder / shard.name, folder / f".{shard.name}.part"
    found: dict[str, Any] = {"keys": [], "places": [], "sizes": [], "labels": [], "problems": []}
    try:
        with _WRITERS[choices.layout](part, shard.labels) as put:
            for row in shard.rows:
                try:
                    encoded, suffix = _encode(shard.split, row, choices)
                except BadImageError as error:
                    if on_bad_image == "stop":
                        raise BadImageError(
                            f"{error}; --on-bad-image skip leaves such images out"
                        ) from None
                    found["problems"].append(str(error))
                    continue
                key, label = f"{row:09}", int(shard.split.targets[row])
                found["keys"].append(key)
                found["places"].append(put(key, suffix, encoded, label))
                found["sizes"].append(len(encoded))
                found["labels"].append(label)
                advance(1)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    found |= {"bytes": part.stat().st_size, "sha256": sha256(part)}
    part.replace(path)
    write_aside(kept, json.dumps(found).encode())
    return found


def _encode(split: Split, row: int, choices: Choices) -> tuple[bytes, str]:
    """The bytes that are written of an image, and the suffix of their format.

    Raises:
        BadImageError: it can't be read.
    """
    images = split.images
    encoded = images.encoded(row)
    name = images.name(row)
    image_CHW = images.read(row, 3) if encoded is None else read_image(encoded, 3, name)
    if choices.resize is not None and min(image_CHW.shape[-2:]) > choices.resize:
        return _resized(image_CHW, choices.resize, choices.quality), "jpg"
    if encoded is None:
        return _to_bytes(image_CHW, "PNG"), "png"
    return encoded, _suffix(encoded)


def _resized(image_CHW: Tensor, side: int, quality: int) -> bytes:
    from torchvision.transforms.v2 import functional

    smaller_CHW = functional.resize(image_CHW, [side], antialias=True)
    return _to_bytes(smaller_CHW, "JPEG", quality=quality)


def _to_bytes(image_CHW: Tensor, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image_CHW.permute(1, 2, 0).numpy()).save(file, form, **options)
    return file.getvalue()


def _suffix(encoded: bytes) -> str:
    with Image.open(io.BytesIO(encoded)) as image:
        form = (image.format or "").lower()
    return {"jpeg": "jpg", "mpo": "jpg"}.get(form, form)


class _Put(Protocol):
    """Adds an image, and gives its place."""

    def __call__(self, key: str, suffix: str, encoded: bytes, label: int) -> int: ...


@contextmanager
def _tar_writer(path: Path, labels: Sequence[str]) -> Iterator[_Put]:
    """WebDataset's layout: KEY.jpg, KEY.cls. The same images give the same bytes."""
    del labels
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:

        def add(name: str, content: bytes) -> int:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            place = tar.offset + tarfile.BLOCKSIZE
            tar.addfile(member, io.BytesIO(content))
            return place

        def put(key: str, suffix: str, encoded: bytes, label: int) -> int:
            place = add(f"{key}.{suffix}", encoded)
            add(f"{key}.cls", str(label).encode())
            return place

        yield put


@contextmanager
def _parquet_writer(path: Path, labels: Sequence[str]) -> Iterator[_Put]:
    """The Hub's layout: `image` with bytes and path, `label` with its names in the metadata."""
    import pyarrow as pa
    from pyarrow import parquet

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": list(labels)},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata)
    rows: list[dict[str, Any]] = []
    with parquet.ParquetWriter(
        path, schema, compression="none", use_dictionary=["label"]
    ) as writer:
        count = 0

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema))
            rows.clear()

        def put(key: str, suffix: str, encoded: bytes, label: int) -> int:
            nonlocal count
            rows.append({"image": {"bytes": encoded, "path": f"{key}.{suffix}"}, "label": label})
            if len(rows) == ROW_GROUP:
                flush()
            count += 1
            return count - 1

        yield put
        if rows:
            flush()


_WRITERS: dict[Layout, Callable[[Path, Sequence[str]], AbstractContextManager[_Put]]] = {
    "webdataset": _tar_writer,
    "parquet": _parquet_writer,
}


def _index(
    source: Source,
    shards: Mapping[str, Sequence[_Shard]],
    folder: Path,
    choices: Choices,
    done: Sequence[dict[str, Any]],
) -> Index:
    import pyarrow as pa

    files: list[ShardFile] = []
    splits = {}
    for name, planned in shards.items():
        splits[name] = list(range(len(files), len(files) + len(planned)))
        for shard in planned:
            one = done[len(files)]
            files.append(ShardFile(str(folder / shard.name), one["bytes"], one["sha256"]))
    columns = {"key": "keys", "place": "places", "size": "sizes", "label": "labels"}
    values = {name: [v for one in done for v in one[listed]] for name, listed in columns.items()}
    kinds = {"key": pa.string(), "place": pa.int64(), "size": pa.int64(), "label": pa.int64()}
    numbers = np.repeat(np.arange(len(done)), [len(one["keys"]) for one in done])
    table = pa.table(
        {
            **{name: pa.array(values[name], kind) for name, kind in kinds.items()},
            "shard": pa.array(numbers, pa.int64()),
        }
    )
    return Index(
        layout=choices.layout,
        files=tuple(files),
        splits=splits,
        labels=source.labels,
        table=table,
        checked=True,
        mirror=source.mirror,
    )
