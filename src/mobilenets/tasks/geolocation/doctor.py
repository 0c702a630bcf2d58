"""What is wrong with photos and their places."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mobilenets.data.doctor import (
    SPLIT_ORDER,
    Finding,
    Item,
    Report,
    count_of,
    printable,
    report_on,
)
from mobilenets.data.splits import UNKNOWN
from mobilenets.tasks.geolocation.cells import Ids, leaf_cells, parents_of
from mobilenets.tasks.geolocation.data import PLACE_LEVEL, Photos, open_photos

# Of all photos, how many may be of one author or one point before it is said.
_LARGE_SHARE = 0.2


def check(where: str) -> Report:
    """Look at every photo and every place of a data set.

    Raises:
        ValueError: there are no places, or they can't be read, in one sentence.
        ImportError: S2 is not installed, and how to.
    """
    started = time.monotonic()
    source = open_photos(where)
    names = sorted(source.splits, key=SPLIT_ORDER.index)
    places: dict[str, Ids] = {}
    findings: list[Finding] = [
        Finding(
            kind="no-place",
            severity="warning",
            name=where,
            detail=warning.removeprefix("left out: "),
        )
        for warning in source.warnings
    ]
    for name in names:
        photos = source.splits[name]
        places[name] = parents_of(leaf_cells(photos.latitudes, photos.longitudes), PLACE_LEVEL)
        findings += _place_findings(name, photos)
    for position, name in enumerate(names):
        for later in names[position + 1 :]:
            one, other = source.splits[name], source.splits[later]
            findings += _shared(name, later, "place", places[name], places[later])
            findings += _shared(
                name,
                later,
                "author",
                *(part.authors_N[part.authors_N != UNKNOWN] for part in (one, other)),
            )
    items = {name: _items(name, source.splits[name]) for name in names}
    return report_on(where, items, findings, started)


def _items(name: str, photos: Photos) -> list[Item]:
    return [
        Item(photos.images, index, printable(photos.images.name(index)), name, "")
        for index in range(len(photos))
    ]


def _place_findings(name: str, photos: Photos) -> Iterator[Finding]:
    nowhere = np.flatnonzero((photos.targets == 0).all(axis=1))
    if len(nowhere):
        yield Finding(
            kind="null-island",
            severity="error" if name in ("train", "all") else "warning",
            name=printable(photos.images.name(int(nowhere[0]))),
            detail=f"{count_of(len(nowhere), 'photo')} of {name} at 0, 0, which is written where a place is not known",
            split=name,
        )
    _, counts = np.unique(photos.targets, axis=0, return_counts=True)
    if counts.max() > max(10, _LARGE_SHARE * len(photos)):
        yield Finding(
            kind="one-point",
            severity="warning",
            name=name,
            detail=f"{counts.max():,} of {len(photos):,} photos have the very same place, as if it had been filled in",
            split=name,
        )
    whole = photos.targets == photos.targets.round()
    if len(photos) >= 10 and whole.all():
        yield Finding(
            kind="whole-degrees",
            severity="warning",
            name=name,
            detail="all places are whole degrees, up to 110 km from where the photos were taken",
            split=name,
        )
    known = photos.authors_N[photos.authors_N != UNKNOWN]
    if len(known):
        _, counts = np.unique(known, return_counts=True)
        if counts.max() > max(10, _LARGE_SHARE * len(photos)):
            yield Finding(
                kind="one-author",
                severity="note",
                name=name,
                detail=f"{counts.max():,} of {len(photos):,} photos are of one author",
                split=name,
            )


def _shared(
    name: str, later: str, what: str, one: NDArray[np.generic], other: NDArray[np.generic]
) -> Iterator[Finding]:
    """Near-copies leak from one split into another where both have photos of one place or one author."""
    shared = int(np.isin(other, one).sum())
    if shared:
        yield Finding(
            kind=f"shared-{what}",
            severity="warning",
            name=later,
            detail=f"{count_of(shared, 'photo')} of {later} {'is' if shared == 1 else 'are'} "
            + (
                f"less than about a kilometre from one of {name}"
                if what == "place"
                else f"by an author of photos of {name}"
            ),
            split=later,
        )
