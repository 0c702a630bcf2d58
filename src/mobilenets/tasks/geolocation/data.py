"""Photos and where they were taken: tables with latitude and longitude, or what cameras wrote into the photos.

Shapes: N photos.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilenets.data.gps import read_gps
from mobilenets.data.images import images_below
from mobilenets.data.loaders import read_in_threads
from mobilenets.data.parquet import (
    bytes_column,
    column_of,
    encoded_images,
    parquet_files,
    read_parquet,
)
from mobilenets.data.sources import class_folders
from mobilenets.data.splits import (
    ALL,
    SPLIT_NAMES,
    UNKNOWN,
    FileImages,
    Images,
    Split,
    fingerprint_of,
)
from mobilenets.data.tables import (
    Rows,
    find_column,
    image_column,
    image_folder,
    read_csv,
    refuse_twice,
    split_column,
    split_named,
)
from mobilenets.tasks.geolocation.cells import leaf_cells, parents_of

_LATITUDES = ("lat", "latitude", "gps_lat", "gps_latitude")
_LONGITUDES = ("lon", "lng", "long", "longitude", "gps_lon", "gps_longitude")
_AUTHORS = ("author", "author_id", "user", "user_id", "owner", "photographer")
# Photos in one cell of this level, about a kilometre wide, may be of the same thing.
PLACE_LEVEL = 13
# So many sentences about single photos are told at most.
_TOLD = 5


@dataclass(frozen=True)
class Photos(Split):
    """Images, their latitudes and longitudes float64 (N, 2) as targets, and their authors' numbers, `UNKNOWN` where they aren't told."""

    authors_N: NDArray[np.int64]

    def take(self, indices: Sequence[int]) -> Photos:
        """The photos at these positions."""
        rows = list(indices)
        return Photos(self.images.take(rows), self.targets[rows], self.authors_N[rows])

    def fingerprint(self) -> str:
        """A hash of images, places and authors, who decide what is held out."""
        digest = hashlib.sha256(super().fingerprint().encode())
        # Authors are known again by what they took, whatever their numbers.
        _, first_A, author_N = np.unique(self.authors_N, return_index=True, return_inverse=True)
        digest.update(np.where(self.authors_N == UNKNOWN, UNKNOWN, first_A[author_N]).tobytes())
        return digest.hexdigest()[:16]

    @property
    def latitudes(self) -> NDArray[np.float64]:
        """In degrees, north positive."""
        return np.asarray(self.targets[:, 0])

    @property
    def longitudes(self) -> NDArray[np.float64]:
        """In degrees, east positive."""
        return np.asarray(self.targets[:, 1])


@dataclass(frozen=True, kw_only=True)
class PhotoSource:
    """A data set of photos and their places.

    Args:
        where: the path it was opened with.
        splits: `train`, `val` and `test` as they exist, or `all`.
        warnings: such as of photos that tell no place.
    """

    where: str
    splits: Mapping[str, Photos]
    warnings: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """A hash of images and places, by which a run knows its own data again."""
        return fingerprint_of((), self.splits)

    @property
    def training_part(self) -> Photos:
        """What a model may learn from, validation photos too where the data names none."""
        return self.splits["train"] if "train" in self.splits else self.splits[ALL]


def open_photos(where: str | Path) -> PhotoSource:
    """Open a CSV or Parquet with columns `image`, `lat` and `lon`, a folder that holds one, or a folder of photos with GPS in their EXIF.

    Images are named relative to the table's folder or to `images` in it; a Parquet may hold them. A column `author` and one `split`
    are used where there are any. Of a folder, photos that tell no place are left out, with a warning.

    Raises:
        ValueError: one sentence that says what is wrong, and in which line.
    """
    path = Path(where)
    if path.is_file():
        if path.suffix.lower() == ".csv":
            return _from_csv(str(where), path)
        if path.suffix.lower() == ".parquet":
            return _from_parquet(str(where), path.parent, [path])
        raise ValueError(f"{where}: places of photos are read from a CSV, a Parquet or a folder")
    if not path.is_dir():
        raise ValueError(f"{where}: there is no such folder, CSV or Parquet")
    tables = sorted(path.glob("*.csv"))
    if len(tables) > 1:
        names = ", ".join(table.name for table in tables[:3])
        raise ValueError(f"{where} has {names}: name the one that holds the places")
    if tables:
        return _from_csv(str(where), tables[0])
    files = parquet_files(path)
    return _from_parquet(str(where), path, files) if files else _from_exif(path)


def _from_csv(where: str, path: Path) -> PhotoSource:
    header, rows = read_csv(path)
    if not rows:
        raise ValueError(f"{path}: it names no photos")
    columns = _columns(header, str(path))
    image = image_column(header)
    if image is None:
        image = next((name for name in header if name not in columns.all), None)
    if image is None:
        raise ValueError(f"{path} has the columns {', '.join(header)}: which one names the images?")
    refuse_twice(str(path), rows, image)

    def place_of(row: int) -> str:
        return f"{path} line {rows[row][0]}"

    folder = image_folder(path.parent)
    photos = _photos(
        FileImages(tuple(folder / row[image].strip() for _, row in rows)),
        str(path),
        columns,
        lambda name: [row[name].strip() for _, row in rows],
        place_of,
        {},
    )
    splits = {ALL: photos}
    if columns.split is not None:
        splits = _parts(str(path), "line", photos, rows, columns.split)
    return PhotoSource(where=where, splits=splits)


def _parts(where: str, unit: str, photos: Photos, rows: Rows, split: str) -> dict[str, Photos]:
    """The photos by what a column says.

    Args:
        unit: what a row is called, for messages.
    """
    members: dict[str, list[int]] = {}
    for index, (number, row) in enumerate(rows):
        name = split_named(row[split], f"{where} {unit} {number}", split)
        members.setdefault(name, []).append(index)
    if "train" not in members:
        raise ValueError(f"{where}: no photo is in the train part")
    return {name: photos.take(indices) for name, indices in members.items()}


def _from_parquet(where: str, folder: Path, files: Sequence[Path]) -> PhotoSource:
    splits: dict[str, Photos] = {}
    authors: dict[str, int] = {}
    for name, table in read_parquet(folder, files, where).items():
        if len(table):
            splits |= _of_table(where, folder, name, table, authors)
    if not splits:
        raise ValueError(f"{where}: it names no photos")
    _refuse_without_train(where, splits)
    return PhotoSource(where=where, splits=splits)


def _refuse_without_train(where: str, splits: Mapping[str, Any]) -> None:
    if ALL not in splits and "train" not in splits:
        raise ValueError(f"{where} has {', '.join(splits)} but no train part")


def _of_table(
    where: str, folder: Path, name: str, table: Any, authors: dict[str, int]
) -> dict[str, Photos]:
    """The photos of a split's Arrow table; where files tell no splits, a column may.

    Args:
        authors: numbers of those known so far; more are added.
    """
    header = tuple(table.column_names)
    columns = _columns(header, where)
    origin = where if name == ALL else f"{where} {name}"
    # A column of bytes may be something else, such as a geometry.
    named = image_column(header) or bytes_column(table.schema)
    if named is None:
        raise ValueError(f"{where} has the columns {', '.join(header)}: none is called image")
    images: Images
    if bytes_column(table.select([named]).schema) is not None:
        images = encoded_images(table[named], origin)
    else:
        files = table[named].to_pylist()
        named_rows = [
            (row, {named: "" if file is None else str(file)}) for row, file in enumerate(files)
        ]
        refuse_twice(origin, named_rows, named, unit="row")
        place = image_folder(folder)
        images = FileImages(tuple(place / row[named] for _, row in named_rows))

    def values_of(column: str) -> Sequence[Any]:
        values: list[Any] = column_of(table, column, where, name).to_pylist()
        return values

    photos = _photos(images, origin, columns, values_of, lambda row: f"{origin} row {row}", authors)
    if name != ALL or columns.split is None:
        return {name: photos}
    rows = [(row, {columns.split: str(told)}) for row, told in enumerate(values_of(columns.split))]
    return _parts(origin, "row", photos, rows, columns.split)


def _from_exif(folder: Path) -> PhotoSource:
    """Places that cameras wrote; photos that tell none are of no use here."""
    splits: dict[str, Photos] = {}
    problems: list[str] = []
    parts = _folders_of_parts(folder)
    _refuse_without_train(str(folder), parts)
    for name, part in parts.items():
        paths = list(images_below(part))
        if not paths:
            raise ValueError(f"{part}: it holds no photos and no table of them")

        def look(index: int, paths: list[Path] = paths) -> tuple[float, float] | str:
            try:
                return read_gps(paths[index])
            except ValueError as error:
                return str(error)

        found = list(read_in_threads(look, len(paths), f"places of {name} photos"))
        problems += [told for told in found if isinstance(told, str)]
        rows = [row for row, told in enumerate(found) if not isinstance(told, str)]
        if not rows:
            more = f" and {len(paths) - 1:,} more like it" if len(paths) > 1 else ""
            raise ValueError(
                f"{found[0]}{more}: a CSV image,lat,lon tells places that photos don't"
            )
        places_N2 = np.array([found[row] for row in rows], dtype=np.float64)
        images = FileImages(tuple(paths[row] for row in rows))
        splits[name] = Photos(images, places_N2, np.full(len(rows), UNKNOWN))
    warnings = [f"left out: {problem}" for problem in problems[:_TOLD]]
    if len(problems) > _TOLD:
        warnings.append(f"left out: {len(problems) - _TOLD:,} more photos that tell no place")
    return PhotoSource(where=str(folder), splits=splits, warnings=tuple(warnings))


def _folders_of_parts(folder: Path) -> dict[str, Path]:
    """The folders of each part where all inside are called as parts are; photos have no classes to tell them by."""
    inside = class_folders(folder)
    if not inside or any(path.name.lower() not in SPLIT_NAMES for path in inside):
        return {ALL: folder}
    parts: dict[str, Path] = {}
    for path in inside:
        first = parts.setdefault(SPLIT_NAMES[path.name.lower()], path)
        if first != path:
            raise ValueError(f"{folder} has both {first.name} and {path.name}: keep one of them")
    return parts


@dataclass(frozen=True)
class _Columns:
    latitude: str
    longitude: str
    author: str | None
    split: str | None

    @property
    def all(self) -> tuple[str | None, ...]:
        return self.latitude, self.longitude, self.author, self.split


def _columns(header: Sequence[str], where: str) -> _Columns:
    latitude, longitude = find_column(header, _LATITUDES), find_column(header, _LONGITUDES)
    for found, name in ((latitude, "lat"), (longitude, "lon")):
        if found is None:
            raise ValueError(f"{where} has no column {name}: it has {', '.join(header) or 'none'}")
    assert latitude is not None
    assert longitude is not None
    return _Columns(latitude, longitude, find_column(header, _AUTHORS), split_column(header))


def _photos(
    images: Images,
    where: str,
    columns: _Columns,
    values_of: Callable[[str], Sequence[Any]],
    place_of: Callable[[int], str],
    authors: dict[str, int],
) -> Photos:
    """Photos of a table, once all its numbers are known to be places.

    Args:
        values_of: gives a column.
        place_of: tells a row, for messages.
        authors: numbers of those known so far; more are added.
    """
    latitude_N = _numbers(values_of(columns.latitude), columns.latitude, where, place_of)
    longitude_N = _numbers(values_of(columns.longitude), columns.longitude, where, place_of)
    for degrees_N, name, most, other_N in (
        (latitude_N, columns.latitude, 90, longitude_N),
        (longitude_N, columns.longitude, 180, None),
    ):
        bad_N = ~(np.abs(degrees_N) <= most)
        if bad_N.any():
            row = int(bad_N.argmax())
            hint = ""
            if other_N is not None and abs(degrees_N[row]) <= 180 and abs(other_N[row]) <= 90:
                hint = f": have {columns.latitude} and {columns.longitude} changed places?"
            raise ValueError(
                f"{place_of(row)}: {name} is {degrees_N[row]:g}, beyond ±{most} degrees{hint}"
            )
    authors_N = np.full(len(latitude_N), UNKNOWN)
    if columns.author is not None:
        told = ["" if value is None else str(value).strip() for value in values_of(columns.author)]
        authors_N = np.array(
            [authors.setdefault(name, len(authors)) if name else UNKNOWN for name in told]
        )
    return Photos(images, np.stack([latitude_N, longitude_N], axis=1), authors_N)


def _numbers(
    values: Sequence[Any], column: str, where: str, place_of: Callable[[int], str]
) -> NDArray[np.float64]:
    try:
        numbers_N = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        numbers_N = np.array([_number(value) for value in values])
    bad_N = ~np.isfinite(numbers_N)
    if not bad_N.any():
        return numbers_N
    texts = ["" if value is None else str(value) for value in values]
    if not any(texts):
        raise ValueError(f"{where}: the column {column} is empty")
    row = int(bad_N.argmax())
    if not texts[row]:
        raise ValueError(f"{place_of(row)}: {column} is empty")
    how = "a number of degrees"
    if any(sign in texts[row] for sign in "°'\"′″NSEW"):
        how = "degrees with a decimal point and a sign, as 43.4675 and -11.885"
    elif "," in texts[row]:
        how = "degrees with a decimal point, not a comma"
    raise ValueError(f"{place_of(row)}: {column} is {texts[row]!r}: write {how}")


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def divide_places(
    photos: Photos, share: float, seed: int
) -> tuple[Photos, Photos, tuple[str, ...]]:
    """Photos to learn from, about a share that is held out, and what to say of it: no place (`PLACE_LEVEL`) and no author is in both.

    Photos hang together through their authors and their places; where that chains most of them, only places are kept apart.

    Raises:
        ValueError: all photos are from one place.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    leaves_N = leaf_cells(photos.latitudes, photos.longitudes)
    places, place_N = np.unique(parents_of(leaves_N, PLACE_LEVEL), return_inverse=True)
    warnings: tuple[str, ...] = ()
    known_N = photos.authors_N != UNKNOWN
    group_N = place_N
    if known_N.any():
        authors, author_M = np.unique(photos.authors_N[known_N], return_inverse=True)
        nodes = len(places) + len(authors)
        edges = (np.ones(len(author_M)), (place_N[known_N], len(places) + author_M))
        _, component_V = connected_components(
            coo_matrix(edges, shape=(nodes, nodes)), directed=False
        )
        group_N = component_V[place_N]
    held_N = _drawn(group_N, share, seed)
    if held_N is None and known_N.any():
        warnings = (
            "authors and the places they share chain most photos together: "
            "validation keeps places apart and not authors (a column split decides it yourself)",
        )
        held_N = _drawn(place_N, share, seed)
    if held_N is None:
        raise ValueError(
            "too few places to hold any out, since photos less than about a kilometre apart stay together: "
            "a column split decides it yourself"
        )
    return (
        photos.take(np.flatnonzero(~held_N).tolist()),
        photos.take(np.flatnonzero(held_N).tolist()),
        warnings,
    )


def _drawn(group_N: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_] | None:
    """Groups that hold about a share of all, drawn by seed; None where they are too large."""
    _, group_N, counts_G = np.unique(group_N, return_inverse=True, return_counts=True)
    wanted = max(1, round(share * len(group_N)))
    held_G = np.zeros(len(counts_G), dtype=bool)
    held = 0
    for group in np.random.default_rng(seed).permutation(len(counts_G)):
        if held < wanted and held + counts_G[group] <= 1.5 * wanted:
            held_G[group] = True
            held += counts_G[group]
    smallest = int(counts_G.argmin())
    if held < wanted / 2 and counts_G[smallest] <= len(group_N) / 2:
        return np.asarray(group_N == smallest)
    return held_G[group_N] if held >= wanted / 2 and held < len(group_N) else None
