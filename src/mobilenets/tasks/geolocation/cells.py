"""The Earth cut into cells of Google's S2 that hold about as many photos each (Weyand et al. 2016, section 3).

A cell is a number of 64 bits: three for the face of a cube around the Earth, two for each halving of its sides, and a one. All places in a cell have numbers
from its own less its lowest one to its own plus that, so that a sorted list of places answers how many are in any cell.

Shapes: N places, K cells of a level, J cells of all levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mobilenets.data.progress import progress
from mobilenets.data.splits import UNKNOWN
from mobilenets.tasks.geolocation.earth import EARTH_RADIUS_KM, centres, distance_km

Ids = NDArray[np.uint64]

FINEST_LEVEL = 30
_ONE, _TWO = np.uint64(1), np.uint64(2)
_FACES = (np.arange(6, dtype=np.uint64) << np.uint64(61)) | np.uint64(1 << 60)
_CHUNK = 65536


def leaf_cells(latitude_N: NDArray[np.float64], longitude_N: NDArray[np.float64]) -> Ids:
    """The number of the smallest cell, about a centimetre wide, that each place is in.

    Raises:
        ImportError: S2 is not installed, and how to.

    >>> token_of(leaf_cells(np.array([48.8566]), np.array([2.3522]))[0])
    '47e66e1d8f8be23b'
    """
    s2 = find_s2()
    cell, place = s2.S2CellId, s2.S2LatLng.FromDegrees
    ids_N = np.empty(len(latitude_N), dtype=np.uint64)
    with progress("finding cells", len(ids_N), "photos") as advance:
        for start in range(0, len(ids_N), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            pairs = zip(latitude_N[chunk].tolist(), longitude_N[chunk].tolist(), strict=True)
            ids_N[chunk] = [cell(place(*pair)).id() for pair in pairs]
            advance(len(ids_N[chunk]))
    return ids_N


def find_s2() -> Any:
    """The bindings of S2.

    Raises:
        ImportError: they are not installed, and how to.
    """
    try:
        import s2geometry
    except ImportError:
        raise ImportError(
            "cells of photos need s2geometry, which is not installed: pip install 'mobilenets[geo]'"
        ) from None
    return s2geometry


def token_of(cell: int) -> str:
    """A cell's number as S2 writes it: hexadecimal, without the zeros at its end.

    >>> token_of(1 << 60)
    '1'
    """
    return f"{int(cell):016x}".rstrip("0")


def id_of(token: str) -> int:
    """The number of a cell by its token.

    Raises:
        ValueError: it is none.

    >>> id_of("47e66e1d8f8be23b")
    5180949494577750587
    """
    try:
        number = int(token.ljust(16, "0"), 16)
    except ValueError:
        number = 0
    lowest = number & -number
    if len(token) > 16 or not lowest or lowest.bit_length() % 2 == 0 or number >> 61 > 5:
        raise ValueError(f"{token!r} is no token of an S2 cell")
    return number


def lowest_bits(ids_K: Ids) -> Ids:
    """The one that ends each number, which tells its size."""
    return ids_K & (~ids_K + _ONE)


def levels_of(ids_K: Ids) -> NDArray[np.int64]:
    """How many times the sides of a face were halved: 0 to 30.

    >>> levels_of(np.array([1 << 60, 5180949494577750587], dtype=np.uint64)).tolist()
    [0, 30]
    """
    return FINEST_LEVEL - np.log2(lowest_bits(ids_K).astype(np.float64)).astype(np.int64) // 2


def parents_of(ids_K: Ids, level: int) -> Ids:
    """The cell of a level that each cell is in; a larger one stays as it is."""
    bit = np.uint64(1 << 2 * (FINEST_LEVEL - level))
    inside_K = lowest_bits(ids_K) < bit
    return np.where(inside_K, (ids_K & (~bit + _ONE)) | bit, ids_K)


def edge_km(level: int) -> float:
    """The side of a square as large as cells of a level are on average.

    >>> round(edge_km(8))
    36
    """
    return float(EARTH_RADIUS_KM * np.sqrt(4 * np.pi / (6 * 4**level)))


def split_cells(
    sorted_N: Ids, max_images: int, min_images: int, max_level: int = FINEST_LEVEL
) -> Ids:
    """Cells in which at least `min_images` places are: from the six faces down, all that hold more than `max_images` are cut into
    four.

    Args:
        sorted_N: smallest cells of the places, in ascending order.
        max_level: of cells that are not cut, whatever they hold.

    Returns:
        Numbers of cells in ascending order, none inside another.
    """
    cells_K, kept = _FACES, []
    for level in range(max_level + 1):
        reach_K = lowest_bits(cells_K) - _ONE
        counts_K = np.searchsorted(sorted_N, cells_K + reach_K, "right") - np.searchsorted(
            sorted_N, cells_K - reach_K, "left"
        )
        full_K = (counts_K > max_images) & (level < max_level)
        kept.append(cells_K[~full_K & (counts_K >= max(1, min_images))])
        whole_M = cells_K[full_K]
        if not len(whole_M):
            break
        quarter_M = lowest_bits(whole_M) >> _TWO
        first_M = whole_M - np.uint64(3) * quarter_M
        cells_K = (
            first_M[:, None] + np.arange(0, 8, 2, dtype=np.uint64) * quarter_M[:, None]
        ).ravel()
    return np.sort(np.concatenate(kept))


@dataclass(frozen=True)
class Partition:
    """Cells of one level of detail, none inside another.

    Args:
        ids_K: their numbers, ascending.
        images_K: photos in each.
        places_K2: latitude and longitude of the photos' mean.
        spread_K: root of their mean squared distance from it, in km.
    """

    ids_K: Ids
    images_K: NDArray[np.int64]
    places_K2: NDArray[np.float64]
    spread_K: NDArray[np.float64]

    @classmethod
    def of_places(
        cls,
        leaves_N: Ids,
        latitude_N: NDArray[np.float64],
        longitude_N: NDArray[np.float64],
        ids_K: Ids,
    ) -> Self:
        """Cells with what is known of the places in them; places in none count in none."""
        group_N = index_of(ids_K, leaves_N)
        inside_N = group_N != UNKNOWN
        group_M, latitude_M, longitude_M = (
            values_N[inside_N] for values_N in (group_N, latitude_N, longitude_N)
        )
        count = len(ids_K)
        places_K2 = centres(latitude_M, longitude_M, group_M, count)
        latitude_K, longitude_K = places_K2.T
        distances_M = distance_km(
            latitude_M, longitude_M, latitude_K[group_M], longitude_K[group_M]
        )
        images_K = np.bincount(group_M, minlength=count)
        squares_K = np.bincount(group_M, distances_M**2, count)
        return cls(ids_K, images_K, places_K2, np.sqrt(squares_K / images_K.clip(1)))

    def __len__(self) -> int:
        return len(self.ids_K)

    @property
    def tokens(self) -> tuple[str, ...]:
        """As S2 writes the cells."""
        return tuple(token_of(cell) for cell in self.ids_K.tolist())

    def index_of(self, leaves_N: Ids) -> NDArray[np.int64]:
        """Which cell each place is in; `UNKNOWN` where it is in none."""
        return index_of(self.ids_K, leaves_N)

    def merged(self, ids_K: Ids) -> tuple[Partition, NDArray[np.int64]]:
        """The cells that these are in, one for each, joined; and which of the joined ones each of these is in."""
        ids_M, group_K = np.unique(ids_K, return_inverse=True)
        images_K = self.images_K.astype(np.float64)
        count = len(ids_M)
        latitude_K, longitude_K = self.places_K2.T
        places_M2 = centres(latitude_K, longitude_K, group_K, count, images_K)
        latitude_M, longitude_M = places_M2.T
        apart_K = distance_km(latitude_K, longitude_K, latitude_M[group_K], longitude_M[group_K])
        squares_M = np.bincount(group_K, images_K * (self.spread_K**2 + apart_K**2), count)
        images_M = np.bincount(group_K, images_K, count)
        spread_M = np.sqrt(squares_M / images_M.clip(1))
        return Partition(ids_M, images_M.astype(np.int64), places_M2, spread_M), group_K

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; places to a tenth of a metre."""
        return {
            "cells": list(self.tokens),
            "images": self.images_K.tolist(),
            "places": self.places_K2.round(6).tolist(),
            "spread_km": self.spread_K.round(3).tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from `to_dict`."""
        return cls(
            np.array([id_of(token) for token in values["cells"]], dtype=np.uint64),
            np.array(values["images"], dtype=np.int64),
            np.array(values["places"], dtype=np.float64).reshape(-1, 2),
            np.array(values["spread_km"], dtype=np.float64),
        )


def index_of(ids_K: Ids, leaves_N: Ids) -> NDArray[np.int64]:
    """Which of the cells, ascending and none inside another, each smallest cell is in; `UNKNOWN` where it is in none."""
    reach_K = lowest_bits(ids_K) - _ONE
    place_N = np.searchsorted(ids_K - reach_K, leaves_N, "right") - 1
    within_N = (place_N >= 0) & (leaves_N <= (ids_K + reach_K)[place_N])
    return np.where(within_N, place_N, UNKNOWN)


@dataclass(frozen=True)
class Cells:
    """Partitions from coarse to fine, each inside the one before it; a classifier has an output for each cell of each."""

    levels: tuple[Partition, ...]

    @classmethod
    def of_places(
        cls,
        latitude_N: NDArray[np.float64],
        longitude_N: NDArray[np.float64],
        max_images: Sequence[int],
        min_images: int,
        max_level: int = FINEST_LEVEL,
    ) -> Self:
        """Cells for photos at these places, a partition for each of `max_images`; two that are the same count once.

        Raises:
            ValueError: fewer than two cells hold enough photos.
            ImportError: S2 is not installed, and how to.
        """
        leaves_N = leaf_cells(latitude_N, longitude_N)
        sorted_N = np.sort(leaves_N)
        found: list[Ids] = []
        for most in sorted(set(max_images), reverse=True):
            ids_K = split_cells(sorted_N, most, min_images, max_level)
            if len(ids_K) > 1 and not any(np.array_equal(ids_K, other) for other in found):
                found.append(ids_K)
        if not found:
            raise ValueError(
                f"{len(latitude_N):,} photos are in one cell of at least {min_images}, and there is nothing to choose from: "
                "more places, or smaller recipe values geolocation.max_images and min_images"
            )
        return cls(
            tuple(Partition.of_places(leaves_N, latitude_N, longitude_N, ids_K) for ids_K in found)
        )

    def __len__(self) -> int:
        return sum(len(level) for level in self.levels)

    @property
    def finest(self) -> Partition:
        """The smallest cells."""
        return self.levels[-1]

    @property
    def tokens(self) -> tuple[str, ...]:
        """Names of the outputs: the cells' tokens after their level's number, coarse ones first.

        A cell that is cut no further stands in several levels.
        """
        return tuple(
            f"{number}/{token}"
            for number, level in enumerate(self.levels)
            for token in level.tokens
        )

    @cached_property
    def parts(self) -> tuple[slice, ...]:
        """Of the outputs those of each level."""
        ends = np.cumsum([0, *(len(level) for level in self.levels)]).tolist()
        return tuple(slice(start, end) for start, end in pairwise(ends))

    @cached_property
    def parents(self) -> tuple[NDArray[np.int64], ...]:
        """Of each level, which of its cells each of the finest is in (K,)."""
        return tuple(level.index_of(self.finest.ids_K) for level in self.levels)

    def index_of(
        self, latitude_N: NDArray[np.float64], longitude_N: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Which cell of each level a place is in (N, L); `UNKNOWN` where it is in none."""
        leaves_N = leaf_cells(latitude_N, longitude_N)
        return np.stack([level.index_of(leaves_N) for level in self.levels], axis=1)

    def probabilities(
        self, logits_NJ: NDArray[Any], temperature: float = 1.0
    ) -> NDArray[np.float64]:
        """Of the finest cells (N, K): the product of a cell's probability at each level, made to sum to 1.

        As Müller-Budack et al. 2018, section 3.4, do: a cell must be likely, and so must what it is in. A temperature, by which all
        logits are divided, changes how sure they are, and not which cell is the likeliest.
        """
        return np.exp(self.log_probabilities(logits_NJ, temperature))

    def log_probabilities(
        self, logits_NJ: NDArray[Any], temperature: float = 1.0
    ) -> NDArray[np.float64]:
        """Their natural logarithms (N, K)."""
        logits_NJ = logits_NJ.astype(np.float64) / temperature
        logs_NK = np.zeros((len(logits_NJ), len(self.finest)))
        for part, parent_K in zip(self.parts, self.parents, strict=True):
            logs_NK += _log_softmax(logits_NJ[:, part])[:, parent_K]
        return _log_softmax(logs_NK)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"levels": [level.to_dict() for level in self.levels]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from `to_dict`."""
        return cls(tuple(Partition.from_dict(level) for level in values["levels"]))


def _log_softmax(logits_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted_NK = logits_NK - logits_NK.max(axis=1, keepdims=True)
    return np.asarray(shifted_NK - np.log(np.exp(shifted_NK).sum(axis=1, keepdims=True)))
