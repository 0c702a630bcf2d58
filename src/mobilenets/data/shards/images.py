"""Images in shards, any of which can be read, and the data set that they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mobilenets.data.files import write_aside
from mobilenets.data.images import read_image
from mobilenets.data.shards.index import Index, read_foreign, read_written
from mobilenets.data.shards.places import (
    MANIFEST,
    SUFFIXES,
    by_split,
    find_shards,
    is_address,
    name_of,
    suffix_of,
    tars_in,
)
from mobilenets.data.shards.store import ShardError, Store, cache_folder, digest_of
from mobilenets.data.splits import Source, Split


@dataclass(frozen=True)
class ShardImages:
    """Images in shards.

    Args:
        rows: of the index.
    """

    index: Index
    store: Store
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shards(self) -> NDArray[np.int64]:
        """The number of each image's shard."""
        return self.index.shards[self.rows]

    def name(self, index: int) -> str:
        """The shard and what it calls the image."""
        row = int(self.rows[index])
        return f"{self._address(row)}: {self._key(row)}"

    def key(self, index: int) -> str:
        """As `name`, without the folder."""
        row = int(self.rows[index])
        return f"{name_of(self._address(row))}/{self._key(row)}"

    def read(self, index: int, channels: int) -> Tensor:
        """uint8 (C, H, W)."""
        return read_image(self.encoded(index), channels, self.name(index))

    def encoded(self, index: int) -> bytes:
        """The bytes in the shard.

        Raises:
            ShardError: the shard can't be had.
        """
        row, of = int(self.rows[index]), self.index
        return self.store.read(int(of.shards[row]), int(of.places[row]), int(of.sizes[row]))

    def take(self, indices: Sequence[int]) -> ShardImages:
        """The images at these positions."""
        return ShardImages(self.index, self.store, self.rows[list(indices)])

    @property
    def checked(self) -> bool:
        """Whether all of them are known to be images that can be read."""
        return self.index.checked or self._mark().exists()

    def note_checked(self) -> None:
        """Keep that all of them were read."""
        if not self.checked:
            write_aside(self._mark(), b"")

    def _mark(self) -> Path:
        return cache_folder() / f"checked-{digest_of(self.index.files, self.rows.tobytes())}"

    def _address(self, row: int) -> str:
        return self.store.files[int(self.index.shards[row])].address

    def _key(self, row: int) -> str:
        key: str = self.index.table["key"][row].as_py()
        return key


def is_shards(where: str | Path) -> bool:
    """Whether `open_shards` would look there: an address, a pattern, a tar file or a folder of them.

    >>> is_shards("https://example.org/train-{00..99}.tar"), is_shards("photos")
    (True, False)
    """
    folder = Path(where)
    if is_address(where) or (folder / MANIFEST).is_file() or name_of(str(where)) == MANIFEST:
        return True
    if folder.is_dir():
        return bool(tars_in(folder))
    return suffix_of(str(where)) == ".tar" or (
        suffix_of(str(where)) == ".parquet" and any(sign in str(where) for sign in "{*?[")
    )


def open_shards(where: str | Path) -> Source:
    """A labelled data set in shards.

    Args:
        where: the folder that `mobilenets shard` wrote, here or at an address; a folder of tar files; or a path or an address
            with braces or stars, such as `https://example.org/train-{000..146}.tar`.

    Raises:
        ValueError: one sentence that says what is wrong with it, and where.
    """
    place = str(where)
    index = _written(place) or _foreign(place)
    store = Store(index.files, index.layout)
    splits = {}
    for name, numbers in index.splits.items():
        rows = np.flatnonzero(np.isin(index.shards, np.asarray(numbers)))
        images = ShardImages(index, store, rows)
        splits[name] = Split(images, index.targets[rows])
    if len(index.labels) < 2:
        raise ValueError(f"{where} has one class: a classifier needs two")
    return Source(place, index.labels, splits, mirror=index.mirror)


def _written(place: str) -> Index | None:
    """Of what `mobilenets shard` wrote."""
    if suffix_of(place) in SUFFIXES:
        return None
    try:
        return read_written(place)
    except FileNotFoundError:
        if name_of(place) == MANIFEST or (is_address(place) and "*" not in place):
            raise ValueError(
                f"{place}: there is no {MANIFEST}, which mobilenets shard writes; of other shards "
                "give the names, such as train-{000..146}.tar"
            ) from None
        return None


def _foreign(place: str) -> Index:
    """Of what others wrote."""
    shards = tars_in(Path(place)) if Path(place).is_dir() else find_shards(place)
    if not shards:
        raise ShardError(f"{place}: there is no shard")
    layout = SUFFIXES[suffix_of(shards[0])]
    return read_foreign(by_split(shards, place), layout, place)
