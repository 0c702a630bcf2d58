"""What is wrong with images sorted into classes: folders, class sizes, labels.

It reads a folder as `open_source` does, and goes on where that stops.
"""

from __future__ import annotations

import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.data.doctor import (
    SPLIT_ORDER,
    Examined,
    Finding,
    Item,
    Report,
    Severity,
    about,
    count_of,
    examine,
    items_of,
    printable,
    sort_findings,
)
from mobilenets.data.images import IMAGE_SUFFIXES, images_below
from mobilenets.data.sources import class_folders, is_image_folder, open_source, split_folders
from mobilenets.data.splits import ALL, FileImages
from mobilenets.tasks.classification.plausibility import (
    FEWEST_IN_CLASS,
    FOLDS,
    MOST_WORK,
    Verdict,
    feature_count,
    judge,
    network_features,
    pixel_features,
)

# The largest training class over the smallest.
UNBALANCED = 10
FEW_IMAGES = 5
_HIDDEN_CLUTTER = frozenset({"thumbs.db", "desktop.ini"})


@dataclass
class _Layout:
    """What stands where: images, class names in the order of training, and odd files."""

    items: list[Item]
    labels: list[str]
    folders: dict[str, Path] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def train(self) -> str:
        """The split that training reads."""
        return "train" if any(item.split == "train" for item in self.items) else ALL


def check(
    where: str,
    *,
    network: nn.Module | None = None,
    preprocessing: Preprocessing | None = None,
    noisy: bool = False,
) -> Report:
    """Look at every image and label of a data set.

    Args:
        where: as `open_source` takes it.
        network, preprocessing: a trained model, whose features judge the labels; without one,
            simple features of the pixels do.
        noisy: many labels are expected to be wrong: those of training images that look so are errors.

    Raises:
        ValueError: there are no images, or nothing that could be opened, in one sentence.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for label in ("ant", "bee"):
    ...         path = Path(folder, label, "1.png")
    ...         path.parent.mkdir()
    ...         Image.linear_gradient("L").save(path)
    ...     [finding.kind for finding in check(folder).errors]
    ['contradictory-labels', 'contradictory-labels']
    """
    started = time.monotonic()
    layout = _read_folder(Path(where)) if is_image_folder(where) else _read_source(where)
    examined = examine(layout.items)
    readable = [layout.items[row] for row in examined.rows_N]
    findings = [*layout.findings, *examined.findings, *_class_sizes(layout, readable)]
    doubts, not_checked = _labels(layout, readable, examined, network, preprocessing, noisy=noisy)
    counted = Counter((item.split, item.label) for item in readable)
    splits = sorted({item.split for item in layout.items}, key=SPLIT_ORDER.index)
    return Report(
        where=where,
        findings=sort_findings([*findings, *doubts]),
        images={
            split: {
                printable(label): counted[split, label]
                for label in layout.labels or [""]
                if counted[split, label] or split == layout.train
            }
            for split in splits
        },
        not_checked=(*examined.not_checked, *not_checked),
        seconds=time.monotonic() - started,
        items=tuple(layout.items),
    )


def _read_source(where: str) -> _Layout:
    source = open_source(where)
    return _Layout(items_of(source), list(source.labels))


def _read_folder(folder: Path) -> _Layout:
    try:
        open_source(folder)
        refusal = None
    except ValueError as error:
        refusal = str(error)
    parts = split_folders(folder)
    first = parts.get("train", [folder])[0]
    layout = _Layout([], [path.name for path in class_folders(first)])
    if "train" not in parts and ALL not in parts:
        names = {
            path.name for paths in parts.values() for part in paths for path in class_folders(part)
        }
        layout.labels = sorted(names)
    trained = tuple(layout.labels)
    for split in sorted(parts, key=SPLIT_ORDER.index):
        for part in parts[split]:
            _read_split(layout, folder, split, part, trained)
    if not layout.labels:
        _add(layout, folder, ALL, "", images_below(folder))
    elif ALL not in parts:
        within = {part for paths in parts.values() for part in paths}
        _note_loose(layout, folder, folder, "")
        for beside in class_folders(folder):
            count = 0 if beside in within else sum(1 for _ in images_below(beside))
            if count:
                detail = f"a folder beside the splits, never read: {count_of(count, 'image')}"
                layout.findings.append(_folder_finding(folder, beside, "image-left-out", detail))
    if not layout.items:
        raise ValueError(refusal or f"{folder}: it holds no images")
    layout.findings += _similar_names(folder, first, layout.labels)
    told = any(finding.severity == "error" for finding in layout.findings)
    if refusal and not told:
        layout.findings.append(
            Finding(kind="layout", severity="error", name=".", detail=printable(refusal))
        )
    return layout


def _read_split(
    layout: _Layout, folder: Path, split: str, part: Path, trained: Sequence[str]
) -> None:
    for path in class_folders(part):
        layout.folders.setdefault(path.name, path)
        images = list(images_below(path))
        _add(layout, folder, split, path.name, images)
        layout.findings += _strays(folder, split, path.name, sorted(path.rglob("*")))
        if path.name not in trained:
            near = next((name for name in trained if _plain(name) == _plain(path.name)), None)
            detail = "no training images: train refuses a class that stands only here" + (
                f"; did you mean {printable(near)}?" if near else ""
            )
            layout.labels.append(path.name)
            layout.findings.append(
                _folder_finding(
                    folder, path, "class-not-in-train", detail, "error", split, path.name, path
                )
            )
        elif not images and split in ("train", ALL):
            detail = "no images: the class keeps its place among the outputs and is never learned"
            layout.findings.append(
                _folder_finding(folder, path, "empty-class", detail, "warning", split, path.name)
            )
    if layout.labels:
        _note_loose(layout, folder, part, split)


def _add(
    layout: _Layout, folder: Path, split: str, label: str, paths: Sequence[Path] | Iterator[Path]
) -> None:
    images = FileImages(tuple(paths))
    layout.items += [
        Item(images, index, _name(folder, path), split, label, path)
        for index, path in enumerate(images.paths)
    ]


def _note_loose(layout: _Layout, folder: Path, part: Path, split: str) -> None:
    """Files directly in a folder that holds class folders: training reads none of them."""
    layout.findings += _strays(folder, split, "", sorted(part.iterdir()), loose=True)


def _strays(
    folder: Path, split: str, label: str, paths: Sequence[Path], *, loose: bool = False
) -> Iterator[Finding]:
    """Files that training passes over in silence; hidden ones are no one's business."""
    for path in paths:
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.name.lower() in _HIDDEN_CLUTTER or path.is_dir():
            continue
        item = Item(FileImages((path,)), 0, _name(folder, path), split, label, path)
        named_so = path.suffix.lower() in IMAGE_SUFFIXES
        if not path.exists():
            yield about(item, "dead-link", "warning", "a link to a file that is not there")
        elif not path.is_file():
            continue
        elif named_so and loose:
            yield about(item, "image-left-out", "warning", "not in a class folder: it is not read")
        elif not named_so:
            holds = _holds(path)
            ending = f"ends in {printable(path.suffix)}" if path.suffix else "has no ending"
            if holds:
                detail = f"holds a {holds} image, but its name {ending}: it is not read"
                yield about(item, "image-left-out", "warning", detail)
            else:
                yield about(item, "other-file", "note", "no image: it is not read")


def _holds(path: Path) -> str | None:
    """The format of the image in a file; None where there is none."""
    try:
        with Image.open(path) as image:
            return image.format
    except Exception:
        return None


def _name(folder: Path, path: Path) -> str:
    return printable(path.relative_to(folder).as_posix())


def _folder_finding(
    folder: Path,
    path: Path,
    kind: str,
    detail: str,
    severity: Severity = "warning",
    split: str = "",
    label: str = "",
    moved: Path | None = None,
) -> Finding:
    return Finding(
        kind=kind,
        severity=severity,
        name=_name(folder, path),
        detail=detail,
        split=split,
        label=label,
        path=moved,
    )


def _plain(name: str) -> str:
    """A class name as a hurried reader takes it."""
    return unicodedata.normalize("NFKC", name).casefold().strip()


def _similar_names(folder: Path, first: Path, labels: Sequence[str]) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for label in labels:
        other = seen.setdefault(_plain(label), label)
        if other != label and (first / label).is_dir() and (first / other).is_dir():
            detail = (
                f"a class of its own beside {printable(other)}: capitals or spaces tell them apart"
            )
            yield Finding(
                kind="similar-class-names",
                severity="warning",
                name=_name(folder, first / label),
                detail=detail,
                label=printable(label),
                other=printable(other),
            )


def _class_sizes(layout: _Layout, readable: Sequence[Item]) -> Iterator[Finding]:
    if len(layout.labels) < 2:
        return
    counted = Counter((item.split, item.label) for item in readable)
    train = layout.train
    sizes = {label: counted[train, label] for label in layout.labels}
    if not layout.folders:
        for label, size in sizes.items():
            if not size:
                detail = (
                    "no images: the class keeps its place among the outputs and is never learned"
                )
                yield _class_finding("empty-class", "warning", label, train, detail)
    for label, size in sizes.items():
        if 0 < size < FEW_IMAGES:
            detail = f"{count_of(size, 'training image')}: too few to learn from"
            yield _class_finding("small-class", "warning", label, train, detail)
    filled = {label: size for label, size in sizes.items() if size}
    if filled:
        small, large = min(filled, key=filled.__getitem__), max(filled, key=filled.__getitem__)
        ratio = filled[large] / filled[small]
        if ratio > UNBALANCED:
            detail = (
                f"{count_of(filled[small], 'training image')} where {printable(large)} has "
                f"{filled[large]:,}, 1 to {ratio:.0f}: train with --set class_weights=true"
            )
            yield _class_finding("unbalanced-classes", "warning", small, train, detail, large)
    for split in ("val", "test"):
        if any(item.split == split for item in layout.items):
            for label, size in filled.items():
                if size and not counted[split, label]:
                    detail = f"no images in {split}: nothing will tell how well it is learned"
                    yield _class_finding(f"class-not-in-{split}", "note", label, split, detail)


def _class_finding(
    kind: str, severity: Severity, label: str, split: str, detail: str, other: str = ""
) -> Finding:
    return Finding(
        kind=kind,
        severity=severity,
        name=printable(label),
        detail=detail,
        split=split,
        label=printable(label),
        other=printable(other),
    )


def _labels(
    layout: _Layout,
    readable: Sequence[Item],
    examined: Examined,
    network: nn.Module | None,
    preprocessing: Preprocessing | None,
    *,
    noisy: bool,
) -> tuple[list[Finding], list[str]]:
    """Findings about implausible labels, and what was not checked."""
    # What many wrong labels are judged by must know nothing of the labels that results are measured on.
    taught = [row for row, item in enumerate(readable) if not noisy or item.split == layout.train]
    counted = Counter(readable[row].label for row in taught)
    fewest = FOLDS if noisy else FEWEST_IN_CLASS
    labels = [label for label in layout.labels if counted[label] >= fewest]
    if len(labels) < 2:
        return [], [f"labels: fewer than two classes have {fewest} images"]
    skipped = [
        f"labels of {printable(label)}: it has {count_of(counted[label], 'image')}, and {fewest} are needed"
        for label in layout.labels
        if 0 < counted[label] < fewest
    ]
    index = {label: target for target, label in enumerate(labels)}
    rows = [row for row, item in enumerate(readable) if item.label in index]
    asked = [readable[row] for row in rows]
    targets_N = np.array([index[item.label] for item in asked], dtype=np.int64)
    taught_N = np.isin(rows, taught)
    if len(asked) * feature_count(network) * len(labels) > MOST_WORK:
        return [], [f"labels: {len(asked):,} images of {len(labels):,} classes would take hours"]
    if network is None or preprocessing is None:
        features_NF, what = pixel_features(examined.thumbnails_NSS3[rows]), "pixels"
        hint = "; --run RUN gives it the features of a trained model"
    else:
        features_NF, what = network_features(asked, network, preprocessing), "the run's features"
        hint = ""
    verdict = judge(features_NF, targets_N, noisy=noisy, taught_N=taught_N)
    if not verdict.trusted:
        reason = (
            f"labels: a quick model on {what} is right on {100 * verdict.accuracy:.0f} % of "
            f"{verdict.images:,} images, too few to judge by (chance is {100 / len(labels):.0f} %)"
        )
        return [], [reason + hint, *skipped]
    wrong_in = layout.train if noisy else None
    return list(_doubts(verdict, asked, labels, wrong_in)), skipped


def _doubts(
    verdict: Verdict, asked: Sequence[Item], labels: Sequence[str], wrong_in: str | None
) -> Iterator[Finding]:
    """Warnings, and errors in one split."""
    for doubt in verdict.doubts:
        item = asked[doubt.row]
        yield about(
            item,
            "implausible-label",
            "error" if item.split == wrong_in else "warning",
            f"a quick model takes it for {printable(labels[doubt.other])} "
            f"({100 * doubt.other_probability:.0f} %, {printable(item.label)} "
            f"{100 * doubt.given_probability:.1f} %; it is right on {100 * verdict.accuracy:.0f} %)",
        )
