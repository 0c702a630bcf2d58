"""What noise in training images costs, and what cleaning wins back, one kind of noise at a time.

    python benchmarks/noise.py --shared SHARED [--weights coral/0.5-160] [--runs runs/noise]

Kinds, each put in on purpose for 0, 20 and 40 % of the images:

- wrong labels: training images go to another class; cleaned by `mobilenets doctor --fix --noisy`;
- copies across classes: a re-encoded copy of training images goes to a second class; cleaned by `doctor --fix`;
- leaks: a re-encoded copy of test images is taught from, under its right label; cleaned by `doctor --fix`.

Few images: all 370 of `data/pets37.tar` (37 breeds, ten each) in five stratified folds, a fifth tested, learnt by
`train --recipe probe` from --weights, with whose features the doctor judges too. Many: scikit-learn's digits (1,438 of ten
classes, wrong labels only), three seeds, learnt by `train --recipe digits`, judged by pixels. Test images that
leaked count apart from the others. What is done is kept in --runs and not done again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.model_selection import StratifiedKFold

from mobilenets.data.sources import open_source
from mobilenets.training.device import provenance
from shared_data import imported, unpacked
from verb import mobilenets

SHARES = (0.0, 0.2, 0.4)
# What the doctor is told against each kind of noise, besides --fix.
KINDS = {"wrong labels": ["--noisy"], "copies across classes": [], "leaks": []}
FOLDS, SEEDS = 5, 3
JPEG_QUALITY = 80


@dataclass(frozen=True)
class Photo:
    """A file and its right label."""

    path: Path
    label: str


@dataclass(frozen=True)
class Setting:
    """Images to teach from and to test, how they are learnt, and who judges their labels."""

    name: str
    seed: int
    taught: list[Photo]
    tested: list[Photo]
    train: list[object]
    judge: list[object]


def pets(shared: Path, weights: Path, runs: Path) -> Iterator[Setting]:
    paths = sorted(unpacked(shared, "pets37", runs).glob("*/*/*.jpg"))
    photos = [Photo(path, path.parent.name) for path in paths]
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    labels = [photo.label for photo in photos]
    for seed, (taught, tested) in enumerate(folds.split(photos, labels)):
        yield Setting(
            "pets37",
            seed,
            [photos[row] for row in taught],
            [photos[row] for row in tested],
            ["--weights", weights, "--recipe", "probe"],
            ["--run", weights],
        )


def digits(runs: Path) -> Iterator[Setting]:
    source = open_source("digits")
    parts: dict[str, list[Photo]] = {}
    for part in ("train", "test"):
        split = source.split(part)
        for index, target in enumerate(split.targets):
            path = runs / "digits" / part / f"{index}.png"
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(split.images.read(index, 1)[0].numpy()).save(path)
            parts.setdefault(part, []).append(Photo(path, source.labels[target]))
    learn = ["--recipe", "digits", "--model", "0.5-16-s4-shallow", "--epochs", 10]
    for seed in range(SEEDS):
        yield Setting("digits", seed, parts["train"], parts["test"], learn, [])


def spoil(setting: Setting, kind: str, share: float, folder: Path) -> set[Path]:
    """Write `train` with noise and `test` without; the tested images that leaked."""
    random = np.random.default_rng(setting.seed)
    labels = sorted({photo.label for photo in setting.taught})

    def other(label: str) -> str:
        return str(random.choice([name for name in labels if name != label]))

    def place(photo: Photo, part: str, label: str, name: str, *, encoded_again: bool) -> Path:
        target = folder / part / label / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if encoded_again:
            Image.open(photo.path).convert("RGB").save(target, "JPEG", quality=JPEG_QUALITY)
        else:
            shutil.copyfile(photo.path, target)
        return target

    concerned = setting.tested if kind == "leaks" else setting.taught
    count = round(share * len(concerned))
    rows = set(random.choice(len(concerned), count, replace=False).tolist())
    for row, photo in enumerate(setting.taught):
        name = f"{row}{photo.path.suffix}"
        wrong = kind == "wrong labels" and row in rows
        label = other(photo.label) if wrong else photo.label
        place(photo, "train", label, name, encoded_again=False)
        if kind == "copies across classes" and row in rows:
            place(photo, "train", other(photo.label), f"{row}-again.jpg", encoded_again=True)
    leaked = set()
    for row, photo in enumerate(setting.tested):
        name = f"{row}{photo.path.suffix}"
        target = place(photo, "test", photo.label, name, encoded_again=False)
        if kind == "leaks" and row in rows:
            leaked.add(target)
            place(photo, "train", photo.label, f"{row}-leaked.jpg", encoded_again=True)
    return leaked


def trial(setting: Setting, kind: str, share: float, place: Path) -> dict[str, dict[str, int]]:
    """One setting with one share of one kind of noise: as it is, and cleaned."""
    results = {}
    for way in ("as it is", "cleaned"):
        shutil.rmtree(place, ignore_errors=True)
        data, run = place / "photos", place / "run"
        leaked = spoil(setting, kind, share, data)
        before = len(list(data.glob("train/*/*")))
        if way == "cleaned":
            judge = setting.judge if KINDS[kind] else []
            mobilenets("doctor", data, "--fix", *KINDS[kind], *judge)
        there = ["--output", run, "--seed", setting.seed, "--device", "cpu"]
        mobilenets("train", data, *setting.train, *there)
        tested = sorted(data.glob("test/*/*"))
        right = {True: 0, False: 0}
        for answer in mobilenets("predict", run, *tested):
            path = Path(answer["image"])
            right[path in leaked] += answer["predictions"][0]["label"] == path.parent.name
        results[way] = {
            "before": before,
            "taught": len(list(data.glob("train/*/*"))),
            "leaked": len(leaked),
            "leaked_right": right[True],
            "unseen": len(tested) - len(leaked),
            "unseen_right": right[False],
        }
    shutil.rmtree(place)
    return results


def summary(trials: list[dict]) -> dict[str, object]:
    """Means and deviations over folds or seeds, in percent; the gain is that of pairs."""

    def top1(what: str, way: str) -> list[float]:
        return [100 * t[way][f"{what}_right"] / t[way][what] for t in trials]

    def spread(values: list[float]) -> list[float]:
        return [statistics.fmean(values), statistics.stdev(values)]

    found: dict[str, object] = {}
    for what in ("unseen", "leaked"):
        if all(t["as it is"][what] for t in trials):
            before, after = top1(what, "as it is"), top1(what, "cleaned")
            gains = [b - a for a, b in zip(before, after, strict=True)]
            found[what] = {
                "as it is": spread(before),
                "cleaned": spread(after),
                "gain": spread(gains),
            }
    dropped = [1 - t["cleaned"]["taught"] / t["cleaned"]["before"] for t in trials]
    return found | {"dropped": statistics.fmean(dropped)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--weights", default="coral/0.5-160")
    parser.add_argument("--runs", type=Path, default=Path("runs/noise"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/noise.json"))
    options = parser.parse_args()
    runs = options.runs
    weights = imported(options.shared, options.weights, runs / "weights")
    settings = {
        "pets37": (list(KINDS), list(pets(options.shared, weights, runs))),
        "digits": (["wrong labels"], list(digits(runs))),
    }
    curve = []
    for name, (kinds, folds) in settings.items():
        for kind in kinds:
            for share in SHARES:
                trials = []
                for setting in folds:
                    file = runs / "trials" / f"{name}-{kind}-{share}-{setting.seed}.json"
                    if not file.is_file():
                        file.parent.mkdir(parents=True, exist_ok=True)
                        found = trial(setting, kind, share, runs / "trial")
                        file.write_text(json.dumps(found))
                    trials.append(json.loads(file.read_text()))
                row = {"data": name, "kind": kind, "share": share, **summary(trials)}
                print(row, flush=True)
                curve.append({**row, "trials": trials})
    content = {
        "command": f"python benchmarks/noise.py --shared SHARED --weights {options.weights}",
        "weights": options.weights,
        "curve": curve,
        **provenance(torch.device("cpu")),
    }
    options.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
