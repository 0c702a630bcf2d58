"""What is wrong with images and their attributes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from mobilenets.data.doctor import (
    SPLIT_ORDER,
    Finding,
    Item,
    Report,
    printable,
    report_on,
)
from mobilenets.data.splits import Split
from mobilenets.tasks.attributes.data import open_attributes
from mobilenets.tasks.attributes.metrics import HALF


def check(where: str) -> Report:
    """Look at every image and every attribute of a data set.

    Raises:
        ValueError: there are no attributes, or they can't be read, in one sentence.
    """
    started = time.monotonic()
    source = open_attributes(where)
    names = sorted(source.splits, key=SPLIT_ORDER.index)
    findings: list[Finding] = []
    for name in names:
        findings += _attribute_findings(source.labels, name, source.splits[name])
    items = {name: _items(name, source.splits[name]) for name in names}
    return report_on(where, items, findings, started)


def _items(name: str, split: Split) -> list[Item]:
    return [
        Item(split.images, index, printable(split.images.name(index)), name, "")
        for index in range(len(split))
    ]


def _attribute_findings(labels: tuple[str, ...], name: str, split: Split) -> Iterator[Finding]:
    for place, label in enumerate(labels):
        values_N = split.targets[:, place]
        told_M = values_N[~np.isnan(values_N)]
        for answer, count in (
            ("yes", int((told_M >= HALF).sum())),
            ("no", int((told_M < HALF).sum())),
        ):
            if count == 0:
                yield Finding(
                    kind="one-sided-attribute",
                    severity="error" if name in ("train", "all") else "warning",
                    name=printable(label),
                    detail=f"no image of {name} says {answer}: its average precision is undefined",
                    split=name,
                )
        if len(told_M) < len(values_N):
            yield Finding(
                kind="untold-attribute",
                severity="note",
                name=printable(label),
                detail=f"{len(values_N) - len(told_M):,} of {len(values_N):,} images of {name} do not tell it",
                split=name,
            )
    untold = int(np.isnan(split.targets).all(1).sum())
    if untold:
        yield Finding(
            kind="image-without-attributes",
            severity="warning",
            name=name,
            detail=f"{untold:,} images tell nothing: without a teacher they teach nothing",
            split=name,
        )
