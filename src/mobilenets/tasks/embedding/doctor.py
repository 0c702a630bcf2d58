"""What is wrong with images of identities."""

from __future__ import annotations

import time
from collections.abc import Iterator

from mobilenets.data.doctor import SPLIT_ORDER, Finding, Item, Report, printable, report_on
from mobilenets.data.splits import UNKNOWN, Split
from mobilenets.tasks.embedding.data import IdentitySource, alone, open_identities


def check(where: str) -> Report:
    """Look at every image of a data set, and at how many each identity has.

    Raises:
        ValueError: there is no such folder, or it holds no images, in one sentence.
    """
    started = time.monotonic()
    source = open_identities(where)
    names = sorted(source.splits, key=SPLIT_ORDER.index)
    findings: list[Finding] = []
    for name in names:
        findings += _lonely(source.identities, name, source.splits[name])
    findings += _shared(source)
    items = {name: _items(source, name, source.splits[name]) for name in names}
    return report_on(where, items, findings, started)


def _items(source: IdentitySource, name: str, split: Split) -> list[Item]:
    return [
        Item(
            split.images,
            index,
            printable(split.images.name(index)),
            name,
            "" if place == UNKNOWN else source.identities[place],
        )
        for index, place in enumerate(split.targets.tolist())
    ]


def _lonely(identities: tuple[str, ...], name: str, split: Split) -> Iterator[Finding]:
    lonely = alone(split)
    for place in lonely[:5]:
        yield Finding(
            kind="single-image",
            severity="note",
            name=printable(identities[place]),
            detail=f"one image in {name}: triplets leave it out, and it has nothing to be compared with",
            split=name,
        )
    if len(lonely) > 5:
        yield Finding(
            kind="single-image",
            severity="warning",
            name=name,
            detail=f"{len(lonely):,} of {len(set(split.targets.tolist()) - {UNKNOWN}):,} identities have one image",
            split=name,
        )


def _shared(source: IdentitySource) -> Iterator[Finding]:
    """Identities that are trained on say little of those that were never seen."""
    if "train" not in source.splits:
        return
    taught = set(source.splits["train"].targets.tolist()) - {UNKNOWN}
    for name, split in source.splits.items():
        both = taught & set(split.targets.tolist())
        if name != "train" and both:
            yield Finding(
                kind="shared-identity",
                severity="warning",
                name=printable(source.identities[min(both)]),
                detail=f"{len(both):,} identities stand in train and in {name}: the figures flatter",
                split=name,
            )
