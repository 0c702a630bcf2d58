"""What is wrong with images and their boxes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

from mobilenets.data.boxes import BoxSource, BoxSplit, flaws, open_boxes, same_shape, size_of
from mobilenets.data.doctor import (
    SPLIT_ORDER,
    Finding,
    Item,
    Report,
    Severity,
    about,
    count_of,
    printable,
    report_on,
)
from mobilenets.data.images import BadImageError

_SEVERITY: dict[str, Severity] = {
    "degenerate-box": "error",
    "box-outside": "warning",
    "duplicate-box": "warning",
}
# A class this much rarer than one whose name differs by a letter is a slip of the pen.
_RARE = 0.05


def check(where: str) -> Report:
    """Look at every image and every box of a data set.

    Raises:
        ValueError: there are no annotations, or they can't be read, in one sentence.
    """
    started = time.monotonic()
    source = open_boxes(where)
    names = sorted(source.splits, key=SPLIT_ORDER.index)
    findings = list(_class_findings(source))
    for name in names:
        findings += _box_findings(name, source.splits[name])
    items = {name: _items(name, source.splits[name]) for name in names}
    return report_on(where, items, findings, started)


def _items(name: str, split: BoxSplit) -> list[Item]:
    return [
        Item(split.images, index, printable(str(path)), name, "", path)
        for index, path in enumerate(split.images.paths)
    ]


def _box_findings(name: str, split: BoxSplit) -> Iterator[Finding]:
    empty = 0
    for index, (item, things) in enumerate(zip(_items(name, split), split.objects, strict=True)):
        empty += not things
        for _, flaw in flaws(split, index):
            detail = f"{flaw.told}: {flaw.detail}"
            yield Finding(
                kind=flaw.kind,
                severity=_SEVERITY[flaw.kind],
                name=item.name,
                detail=printable(detail),
                split=name,
            )
        try:
            found = size_of(split.images.paths[index])
        except BadImageError:
            continue
        if not same_shape(split.sizes[index], found):
            told, held = (f"{width} x {height}" for height, width in (split.sizes[index], found))
            detail = f"its annotation says {told} pixels, the file {held}"
            yield about(item, "another-shape", "error", detail)
    if empty:
        detail = f"{count_of(empty, 'image')} without a box: they teach what is background"
        yield Finding(kind="without-boxes", severity="note", name=name, detail=detail, split=name)


def _class_findings(source: BoxSource) -> Iterator[Finding]:
    counted = {
        name: Counter(thing.label for things in split.objects for thing in things)
        for name, split in source.splits.items()
    }
    train = counted.get("train") or counted.get("all") or Counter()
    everywhere = sum(counted.values(), Counter[int]())
    for index, label in enumerate(source.labels):
        if everywhere[index] and not train[index]:
            yield _class_finding("class-not-in-train", "error", label, "no box in a training image")
        elif not train[index]:
            yield _class_finding("empty-class", "note", label, "no box: it is never learned")
        for other in source.labels[:index]:
            yield from _alike(source, everywhere, label, other)


def _alike(source: BoxSource, counted: Counter[int], label: str, other: str) -> Iterator[Finding]:
    """Two names that only a slip of the pen tells apart."""
    few, many = sorted((label, other), key=lambda name: counted[source.labels.index(name)])
    ones, others = (counted[source.labels.index(name)] for name in (few, many))
    same = label.casefold().strip() == other.casefold().strip()
    if same or (one_letter_apart(label, other) and 0 < ones <= _RARE * others):
        detail = (
            f"{count_of(ones, 'box')} where {printable(many)} has {others:,}, and the names are alike"
        ).replace("boxs", "boxes")
        yield Finding(
            kind="similar-class-names",
            severity="warning",
            name=printable(few),
            detail=detail,
            label=printable(few),
            other=printable(many),
        )


def one_letter_apart(first: str, second: str) -> bool:
    """Whether one letter more, less or other makes one name of the other.

    >>> one_letter_apart("person", "persn"), one_letter_apart("cat", "car"), one_letter_apart("cat", "dog")
    (True, True, False)
    """
    short, long = sorted((first, second), key=len)
    if first == second or len(long) - len(short) > 1:
        return False
    place = next(
        (n for n, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short)
    )
    rest = short[place + (len(short) == len(long)) :]
    return rest == long[place + 1 :]


def _class_finding(kind: str, severity: Severity, label: str, detail: str) -> Finding:
    return Finding(
        kind=kind, severity=severity, name=printable(label), detail=detail, label=printable(label)
    )
