"""Lists of pairs of images: Labeled Faces in the Wild's `pairs.txt`, and CSV.

Shapes: P pairs.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mobilenets.data.images import IMAGE_SUFFIXES
from mobilenets.data.loaders import make_loader
from mobilenets.data.splits import UNKNOWN, FileImages, Split
from mobilenets.tasks.embedding.verification import (
    FOLDS,
    SamePairs,
    Verification,
    accuracy_by_folds,
    verify,
)
from mobilenets.training.run import Run

BATCH = 64

_ANSWERS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True)
class Pairs:
    """Pairs of images, whether each is of the same, and which fold it is in."""

    files: tuple[tuple[Path, Path], ...]
    same_P: NDArray[np.bool_]
    fold_P: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.files)


def read_pairs(path: Path, images: Path) -> Pairs:
    """Read a list of pairs.

    Args:
        path: `pairs.txt` (in its first line, folds and pairs of each kind in a fold; then `NAME 1 2` for the first and second image
            of a person, and `NAME 1 OTHER 2`), or a CSV of two images and 1 or 0, and a fold where it has a fourth column.
        images: the folder they are in; `NAME/NAME_0001.jpg` in the first case, or `NAME/1.jpg`.

    Raises:
        ValueError: names the line that is wrong, or the image that is not there.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: can't be read ({error})") from None
    rows = _read_csv(path, text) if path.suffix.lower() == ".csv" else _read_lfw(path, text)
    if not rows:
        raise ValueError(f"{path}: it lists no pairs")
    files = []
    for line, first, second, _, _ in rows:
        found = [_find(images, name) for name in (first, second)]
        for name, file in zip((first, second), found, strict=True):
            if file is None:
                raise ValueError(f"{path} line {line}: there is no image {name} in {images}")
        files.append((found[0], found[1]))
    same_P = np.array([same for *_, same, _ in rows])
    folds = [fold for *_, fold in rows]
    fold_P = np.array(folds if None not in folds else _deal(same_P), dtype=np.int64)
    return Pairs(tuple(files), same_P, fold_P)  # type: ignore[arg-type]


def judge_pairs(run: Run, pairs: Pairs, device: torch.device) -> tuple[Verification, SamePairs]:
    """How well a run tells pairs, and their similarities: accuracy by a threshold that fits the other folds.

    Raises:
        BadImageError: an image can't be read.
        ValueError: all pairs are of one kind.
    """
    files = sorted({file for pair in pairs.files for file in pair})
    place_of = {file: place for place, file in enumerate(files)}
    nobody = np.full(len(files), UNKNOWN)
    split = Split(FileImages(tuple(files)), nobody)
    loader, _ = make_loader(split, run.preprocessing, BATCH, what="images of pairs")
    network = run.model.to(device).eval()
    with torch.inference_mode():
        outputs = [
            network(batch.to(device).images_NCHW).float().cpu() for batch in loader.batches()
        ]
    embeddings_ND = F.normalize(torch.cat(outputs), dim=1).numpy()
    first, second = np.array([[place_of[file] for file in pair] for pair in pairs.files]).T
    alike_P = (embeddings_ND[first] * embeddings_ND[second]).sum(1)
    both = alike_P[pairs.same_P], alike_P[~pairs.same_P]
    found = verify(*both)
    if len(np.unique(pairs.fold_P)) > 1:
        accuracy, spread = accuracy_by_folds(alike_P, pairs.same_P, pairs.fold_P)
        found = replace(found, accuracy=accuracy, accuracy_spread=spread)
    return found, both


# Line, both images without their suffix or with it, whether they are the same, and the fold.
_Row = tuple[int, str, str, bool, int | None]


def _read_lfw(path: Path, text: str) -> list[_Row]:
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, words) for number, words in lines if words]
    if not lines:
        return []
    head = lines[0][1]
    if not 1 <= len(head) <= 2 or not all(word.isdigit() for word in head):
        raise ValueError(
            f"{path}: the first line says how many folds and how many pairs in each, such as 10 300"
        )
    folds, each = (int(head[0]), int(head[1])) if len(head) == 2 else (1, int(head[0]))
    if len(lines) - 1 != 2 * folds * each:
        raise ValueError(
            f"{path}: {folds} folds of {each} pairs of the same and {each} of others are {2 * folds * each} lines, "
            f"and there are {len(lines) - 1}"
        )
    rows: list[_Row] = []
    for place, (number, words) in enumerate(lines[1:]):
        same = len(words) == 3
        numbers = (words[1], words[2]) if same else (words[1], words[-1])
        if len(words) not in (3, 4) or not all(word.isdigit() for word in numbers):
            raise ValueError(
                f"{path} line {number}: NAME 1 2 or NAME 1 OTHER 2, not {' '.join(words)}"
            )
        names = (words[0], words[0]) if same else (words[0], words[2])
        first, second = (f"{name}/{image}" for name, image in zip(names, numbers, strict=True))
        fold = place // (2 * each) if folds > 1 else None
        rows.append((number, first, second, same, fold))
    return rows


def _read_csv(path: Path, text: str) -> list[_Row]:
    rows: list[_Row] = []
    for number, words in enumerate(csv.reader(text.splitlines()), 1):
        if not words:
            continue
        answer = words[2].strip().lower() if len(words) in (3, 4) else ""
        fold = words[3].strip() if len(words) == 4 else None
        if answer not in _ANSWERS or (fold is not None and not fold.isdigit()):
            if number == 1:
                continue
            raise ValueError(
                f"{path} line {number}: two images, 1 or 0 and perhaps a fold, not {','.join(words)}"
            )
        place = None if fold is None else int(fold)
        rows.append((number, words[0].strip(), words[1].strip(), _ANSWERS[answer], place))
    return rows


def _find(folder: Path, name: str) -> Path | None:
    """An image by its path, or by its identity and its number."""
    if (folder / name).is_file():
        return folder / name
    person, _, number = name.rpartition("/")
    stems = [name]
    if number.isdigit():
        stems.append(f"{person}/{Path(person).name}_{int(number):04}")
    for stem in stems:
        for suffix in sorted(IMAGE_SUFFIXES):
            if (folder / f"{stem}{suffix}").is_file():
                return folder / f"{stem}{suffix}"
    return None


def _deal(same_P: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Folds with about as many pairs of each kind."""
    fold_P = np.zeros(len(same_P), dtype=np.int64)
    for kind in (True, False):
        places = np.flatnonzero(same_P == kind)
        fold_P[places] = np.arange(len(places)) % FOLDS
    return fold_P
