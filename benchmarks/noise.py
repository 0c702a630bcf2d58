"""What noise in the labels of photos from the web costs, and what cleaning wins back.

    python benchmarks/noise.py --shared SHARED [--weights coral/0.5-160] [--runs runs/noise]

All 370 images of `data/pets37.tar` (37 breeds, ten images each) in five stratified folds: a fifth is asked, the rest
is taught from after noise was put in on purpose:

- wrong labels: 0, 20 or 40 % of the taught images go to another breed;
- copies across classes: of 10 % a re-encoded copy goes to a second breed;
- leaks: a re-encoded copy of one asked image of each breed is taught from, under its right label.

Each set is learnt by `mobilenets train --recipe probe` as it is; after `mobilenets doctor --fix`, which drops
copies across classes and splits; and after `doctor --fix --noisy --run`, which drops implausible labels too. Accuracy is
given apart for asked images that leaked, which flatters, and those that did not. What is done is kept in --runs and
not done again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.model_selection import StratifiedKFold

from mobilenets.training.device import provenance
from shared_data import imported, unpacked
from verb import mobilenets

FOLDS = 5
WRONG = (0.0, 0.2, 0.4)
ACROSS = 0.1
JPEG_QUALITY = 80
CLEANINGS: dict[str, list[str] | None] = {
    "as it is": None,
    "copies": [],
    "copies and labels": ["--noisy"],
}


def spoil(
    photos: list[Path], taught: np.ndarray, asked: np.ndarray, wrong: float, seed: int, folder: Path
) -> list[Path]:
    """Write `train` with noise and `test` without; the asked images that leaked."""
    random = np.random.default_rng(seed)
    labels = sorted({photo.parent.name for photo in photos})

    def other(label: str) -> str:
        return str(random.choice([name for name in labels if name != label]))

    def place(
        photo: Path, split: str, label: str, name: str, *, encoded_again: bool = False
    ) -> Path:
        target = folder / split / label / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if encoded_again:
            Image.open(photo).convert("RGB").save(target, "JPEG", quality=JPEG_QUALITY)
        else:
            shutil.copyfile(photo, target)
        return target

    misplaced = set(random.choice(taught, round(wrong * len(taught)), replace=False).tolist())
    twice = set(random.choice(taught, round(ACROSS * len(taught)), replace=False).tolist())
    for row in taught.tolist():
        photo, right = photos[row], photos[row].parent.name
        label = other(right) if row in misplaced else right
        place(photo, "train", label, f"{row}.jpg")
        if row in twice:
            place(photo, "train", other(label), f"{row}-again.jpg", encoded_again=True)
    leaked = []
    seen: set[str] = set()
    for row in random.permutation(asked).tolist():
        photo, label = photos[row], photos[row].parent.name
        target = place(photo, "test", label, f"{row}.jpg")
        if label not in seen:
            seen.add(label)
            leaked.append(target)
            place(photo, "train", label, f"{row}-leaked.jpg", encoded_again=True)
    return leaked


def right_among(run: Path, asked: list[Path]) -> int:
    answers = mobilenets("predict", run, *asked)
    guesses = {Path(answer["image"]): answer["predictions"][0]["label"] for answer in answers}
    return sum(guesses[path] == path.parent.name for path in asked)


def trial(
    photos: list[Path],
    fold: tuple[np.ndarray, np.ndarray],
    wrong: float,
    seed: int,
    weights: Path,
    place: Path,
) -> dict[str, dict[str, float]]:
    """One fold at one level of noise, cleaned in each way."""
    results = {}
    for cleaning, options in CLEANINGS.items():
        folder = place / cleaning.replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        leaked = spoil(photos, *fold, wrong, seed, folder / "photos")
        data = folder / "photos"
        before = len(list(data.glob("train/*/*")))
        if options is not None:
            judge = ["--run", weights] if options else []
            mobilenets("doctor", data, "--fix", *options, *judge)
        run = folder / "run"
        mobilenets(
            "train", data, "--weights", weights, "--recipe", "probe", "--seed", seed,
            "--output", run, "--device", "cpu",
        )  # fmt: skip
        unseen = [path for path in sorted(data.glob("test/*/*")) if path not in leaked]
        results[cleaning] = {
            "before": before,
            "taught": len(list(data.glob("train/*/*"))),
            "leaked": len(leaked),
            "leaked_right": right_among(run, leaked),
            "unseen": len(unseen),
            "unseen_right": right_among(run, unseen),
        }
        shutil.rmtree(folder)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--weights", default="coral/0.5-160")
    parser.add_argument("--runs", type=Path, default=Path("runs/noise"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/noise.json"))
    options = parser.parse_args()
    weights = imported(options.shared, options.weights, options.runs / "weights")
    photos = sorted(unpacked(options.shared, "pets37", options.runs).glob("*/*/*.jpg"))
    classes = [photo.parent.name for photo in photos]
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(photos, classes))
    trials = []
    for wrong in WRONG:
        for seed, fold in enumerate(folds):
            file = options.runs / f"{wrong}-{seed}.json"
            if not file.is_file():
                found = trial(photos, fold, wrong, seed, weights, options.runs / "trial")
                file.write_text(json.dumps(found))
            for cleaning, counts in json.loads(file.read_text()).items():
                trials.append({"wrong": wrong, "fold": seed, "cleaning": cleaning, **counts})
                print(trials[-1], flush=True)
    content = {
        "command": f"python benchmarks/noise.py --shared SHARED --weights {options.weights}",
        "weights": options.weights,
        "curve": [summary(trials, wrong, cleaning) for wrong in WRONG for cleaning in CLEANINGS],
        "trials": trials,
        **provenance(torch.device("cpu")),
    }
    options.output.write_text(json.dumps(content, indent=1) + "\n")


def summary(trials: list[dict], wrong: float, cleaning: str) -> dict:
    """Mean and deviation over the folds, in percent."""
    here = [t for t in trials if t["wrong"] == wrong and t["cleaning"] == cleaning]
    row: dict = {"wrong": wrong, "cleaning": cleaning}
    for what in ("unseen", "leaked"):
        shares = [100 * trial[f"{what}_right"] / trial[what] for trial in here]
        row |= {
            f"{what}_top1": statistics.fmean(shares),
            f"{what}_spread": statistics.stdev(shares),
        }
    return row | {"dropped": statistics.fmean(1 - t["taught"] / t["before"] for t in here)}


if __name__ == "__main__":
    main()
