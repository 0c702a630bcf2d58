"""Images of people or things that are told apart: a folder for each of them, or no more than images.

Shapes: N images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobilenets.data.images import images_below
from mobilenets.data.sources import class_folders, split_folder_of_each
from mobilenets.data.splits import ALL, UNKNOWN, FileImages, Split, fingerprint_of


@dataclass(frozen=True, kw_only=True)
class IdentitySource:
    """A data set of images of identities.

    Args:
        where: the path it was opened with.
        identities: their names, sorted; none where images alone are known.
        splits: `train`, `val` and `test` as they exist, or `all`; targets are places among the identities, or `UNKNOWN`.
    """

    where: str
    identities: tuple[str, ...]
    splits: Mapping[str, Split]

    def fingerprint(self) -> str:
        """A hash of names and targets, by which a run knows its own data again."""
        return fingerprint_of(self.identities, self.splits)


def open_identities(where: str | Path) -> IdentitySource:
    """Open a folder with a folder for each identity, as Labeled Faces in the Wild has, or a folder of images alone.

    Either may lie in `train`, `val` and `test`, which may hold other identities each.

    Raises:
        ValueError: one sentence that says what is wrong.
    """
    folder = Path(where)
    if not folder.is_dir():
        raise ValueError(f"{where}: there is no such folder")
    parts = split_folder_of_each(folder)
    if ALL not in parts and "train" not in parts:
        raise ValueError(f"{folder} has {', '.join(parts)} but no train folder")
    found = {name: _members(part) for name, part in parts.items()}
    identities = tuple(sorted({person for members in found.values() for person in members} - {""}))
    place_of = {person: place for place, person in enumerate(identities)} | {"": UNKNOWN}
    splits = {}
    for name, members in found.items():
        paths = [path for person in sorted(members) for path in members[person]]
        targets = [place_of[person] for person in sorted(members) for _ in members[person]]
        if not paths:
            raise ValueError(f"{parts[name]}: it holds no images")
        splits[name] = Split(FileImages(tuple(paths)), np.array(targets, dtype=np.int64))
    return IdentitySource(where=str(where), identities=identities, splits=splits)


def _members(folder: Path) -> dict[str, list[Path]]:
    """Images by identity; where there are no two folders of them, all without one."""
    people = {path.name: list(images_below(path)) for path in class_folders(folder)}
    people = {name: paths for name, paths in people.items() if paths}
    return people if len(people) > 1 else {"": list(images_below(folder))}


def hold_out_identities(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Split by seed into images to train on and those of a share of the identities, of whom none is in the other part;
    where identities are not known, by image.

    Raises:
        ValueError: there are too few.
    """
    people = np.unique(split.targets)
    by_image = len(people) == 1 and people[0] == UNKNOWN
    pool: NDArray[np.int64] = np.arange(len(split)) if by_image else people
    least = 1 if by_image else 2
    count = max(least, round(len(pool) * share))
    if len(pool) - count < least:
        what = "images" if by_image else "identities"
        raise ValueError(
            f"{len(pool)} {what} are too few to hold {count} of them out: give a val folder"
        )
    held = np.random.default_rng(seed).permutation(pool)[:count]
    is_held_N = np.isin(np.arange(len(split)) if by_image else split.targets, held)
    return (
        split.take(np.flatnonzero(~is_held_N).tolist()),
        split.take(np.flatnonzero(is_held_N).tolist()),
    )


def whole_identities(split: Split, limit: int) -> Split:
    """So many images at most, of as few identities as hold them: pairs need two of one."""
    if len(split) <= limit:
        return split
    order_N = np.argsort(split.targets, kind="stable")
    return split.take(order_N[:limit].tolist())


def alone(split: Split) -> list[int]:
    """Places of identities of which there is one image."""
    people, counts = np.unique(split.targets[split.targets != UNKNOWN], return_counts=True)
    places: list[int] = people[counts == 1].tolist()
    return places


def numbered(split: Split) -> tuple[Split, int]:
    """The same with identities numbered from 0 on, without gaps, and how many there are."""
    known_N = split.targets != UNKNOWN
    people, places = np.unique(split.targets[known_N], return_inverse=True)
    targets_N = split.targets.copy()
    targets_N[known_N] = places
    return Split(split.images, targets_N), len(people)
