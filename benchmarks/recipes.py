"""Every recipe on a slice of CIFAR-10, with the same model, epochs and images, and its curve.

    python benchmarks/recipes.py --data CIFAR10 [--only NAME ...] [--epochs 15] [--output docs/results]

CIFAR10 is a folder of Parquet files in the Hub's layout. The first 8,000 training images train, the
next 2,000 choose the epoch, the first 2,000 test images are evaluated once at the end. `article`
takes the paper's strides, as the article did; `finetune` starts from the run of `cifar` and learns the
handwritten digits, beside `random`, the same recipe from random weights. Writes recipes.json and recipes.png, where
what is not among --only stays; the runs go to --runs and are not kept in the project.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mobilenets.training.curves import curve_of, read_curves
from mobilenets.training.device import provenance
from verb import mobilenets

TRAIN, VAL, TEST = 8000, 2000, 2000
MODELS = {"article": "1.0-32", "paper": "0.5-32-s16", "cifar": "0.5-32-s16", "modern": "0.5-32-s16"}
ON_DIGITS = ("finetune", "random")


def slice_of(data: Path, folder: Path) -> Path:
    """A Parquet folder with the first rows of each split."""
    folder.mkdir(parents=True, exist_ok=True)
    train = pq.read_table(next(data.glob("train-*.parquet")))
    test = pq.read_table(next(data.glob("test-*.parquet")))
    pq.write_table(train.slice(0, TRAIN), folder / "train-00000.parquet")
    pq.write_table(train.slice(TRAIN, VAL), folder / "validation-00000.parquet")
    pq.write_table(test.slice(0, TEST), folder / "test-00000.parquet")
    return folder


def name_of(argument: object) -> str:
    """What a reader types: paths by their last part."""
    return argument.name if isinstance(argument, Path) else str(argument)


def trained(name: str, data: object, folder: Path, *arguments: object) -> dict:
    """Train, evaluate on the test part, and keep the curve."""
    started = time.monotonic()
    options = ["--output", folder, "--overwrite", *arguments]
    best = mobilenets("train", data, *options)
    seconds = round(time.monotonic() - started)
    test = mobilenets("evaluate", folder, data, "--split", "test")
    print(f"{name}: val {best['top1']:.4f}, test {test['top1']:.4f}, {seconds} s", flush=True)
    rows = read_curves(folder)
    return {
        "command": " ".join(["mobilenets train", name_of(data), *map(name_of, arguments)]),
        "model": best["model"],
        "seconds": seconds,
        "best_epoch": best["epoch"],
        "val_top1": best["top1"],
        "test_top1": test["top1"],
        "curve": curve_of(rows, ("train/loss", "train/top1", "val/loss", "val/top1")),
        **provenance(torch.device("cpu")),
    }


def draw(results: dict[str, dict], path: Path) -> None:
    """Losses and accuracy of all recipes by epoch."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for number, (name, result) in enumerate(results.items()):
        epochs = range(1, len(result["curve"]["val/loss"]) + 1)
        colour = f"C{number}"
        loss.plot(epochs, result["curve"]["val/loss"], color=colour, label=name)
        loss.plot(epochs, result["curve"]["train/loss"], color=colour, linestyle=":")
        accuracy.plot(epochs, result["curve"]["val/top1"], color=colour, label=name)
    loss.set(title="Loss: validation, and training dotted", xlabel="epoch", yscale="log")
    accuracy.set(title="Validation top-1", xlabel="epoch", ylim=(0, 1))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside right", frameon=False)
    for axes in (loss, accuracy):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[*MODELS, *ON_DIGITS])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    file = options.output / "recipes.json"
    results = json.loads(file.read_text())["recipes"] if file.is_file() else {}
    data = slice_of(options.data, options.runs / "cifar-slice")
    for name in (*MODELS, *ON_DIGITS):
        if name not in options.only:
            continue
        digits = name in ON_DIGITS
        start = ["--model", MODELS.get(name, MODELS["cifar"])]
        if name == "finetune":
            start = ["--weights", options.runs / "cifar"]
        results[name] = trained(
            name,
            "digits" if digits else data,
            options.runs / name,
            *("--recipe", "finetune" if digits else name, *start, "--epochs", options.epochs),
        )
    options.output.mkdir(parents=True, exist_ok=True)
    everything = {
        "data": f"CIFAR-10 (JPEG): {TRAIN} train, {VAL} val, {TEST} test",
        "seed": 0,
        "epochs": options.epochs,
        "recipes": results,
    }
    file.write_text(json.dumps(everything, indent=1) + "\n")
    draw(results, options.output / "recipes.png")


if __name__ == "__main__":
    main()
