"""The results page of the documentation and its pictures, from the JSON files under docs/results.

    python benchmarks/results_page.py [--check]

The words stand in `results_page.md` beside this file; every figure of the studies comes from a JSON
file, which holds the command that made it. `--check` writes nothing and exits with 1 where the page is not
what the JSON files say.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mobilenets.data.progress import format_seconds

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "results.md"
ARTICLE_BEST = 0.7199
RECIPE_TITLES = {
    "finetune": "`finetune`, from the run of `cifar` to the digits",
    "random": "`finetune`, from random weights to the digits",
}
# Studies of detection that train.
DETECTORS = ("ssd", "frcnn")
OURS, THEIRS, FAINT = "#0b7a4b", "#b3306b", "#d9d9d9"


def read(pattern: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(pattern))]


def results() -> dict:
    """Everything that was measured; of a study, a list by name with one entry for each seed."""
    studies: dict[str, dict[str, list[dict]]] = {}
    for result in read("cifar10/*/*.json"):
        studies.setdefault(result["study"], {}).setdefault(result["name"], []).append(result)
    # A study that is still running has no place yet.
    for study, needed in (("race", ("article", "ours")), ("ablation", ("cifar",))):
        if study in studies and not all(name in studies[study] for name in needed):
            del studies[study]
    return {
        "studies": studies,
        "claims": {result["experiment"]: result for result in read("reproduce/*.json")},
        "trials": read("reproduce/trials/*.json"),
        **_teachers(),
        "gpu_throughput": next(iter(read("gpu_throughput.json")), None),
        "weights": next(iter(read("weights.json")), None),
        "exports": next(iter(read("exports.json")), None),
        "inference": next(iter(read("inference.json")), None),
        "serving": next(iter(read("serving.json")), None),
        "pages": next(iter(read("pages.json")), None),
        "recipes": next(iter(read("recipes.json")))["recipes"],
        "fine_tuning": read("fine_tuning/*.json"),
        "noise": next(iter(read("noise.json")), None),
        "detection": {
            path.stem: json.loads(path.read_text())
            for path in sorted(RESULTS.glob("detection/*.json"))
        },
        **_places(),
    }


TILE_TITLES = {
    "hierarchical": "adaptive cells, three levels",
    "flat": "adaptive cells, the finest level alone",
    "equal": "equal cells, one level",
    "smooth": "three levels, labels smoothed over 300 km",
    "coordinates": "coordinates as three values",
}


def _places() -> dict:
    """Where satellite tiles lie: trainings by kind of division, baselines, and what the partition takes."""
    found = {
        path.stem: json.loads(path.read_text())
        for path in sorted(RESULTS.glob("geolocation/*.json"))
    }
    baselines, partition, clusters = (
        found.pop(name, None) for name in ("baselines", "cells", "clusters")
    )
    tiles: dict[str, list[dict]] = {}
    for result in found.values():
        tiles.setdefault(result["tiles"], []).append(result)
    return {
        "tiles": tiles,
        "tile_titles": TILE_TITLES,
        "tile_baselines": baselines,
        "partition": partition,
        "tile_clusters": clusters,
    }


def _teachers() -> dict:
    """What was learnt from teachers, by training; by what the table of CIFAR-10 compares, once it is whole."""
    trained = {
        path.stem: json.loads(path.read_text())
        for path in sorted(RESULTS.glob("distillation/*.json"))
    }
    verification = trained.pop("verification", None)
    students: dict[str, list[dict]] = {}
    for result in trained.values():
        if result["study"] == "cifar" and not result["name"].startswith("teacher"):
            students.setdefault(result["name"], []).append(result)
    return {
        "distillation": trained,
        "verification": verification,
        "people": [result for result in trained.values() if result["study"] == "people"],
        "cifar_students": list(students.values()) if len(students) > 1 else [],
        "lifts": [
            f"{100 * (taught['test']['top1'] - plain['test']['top1']):+.2f}"
            for taught, plain in zip(*students.values(), strict=True)
        ]
        if len(students) > 1
        else [],
    }


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def within(figures: dict, km: int) -> str:
    """A share of photos with its interval, in percent."""
    name = f"within_{km}km"
    low, high = figures["intervals"][name]
    return f"{percent(figures[name])} ({percent(low)} to {percent(high)})"


def spread(values: Iterable[float]) -> str:
    """Mean and standard deviation of shares, in percent."""
    shares = [100 * value for value in values]
    if len(shares) < 2:
        return f"{shares[0]:.2f}"
    return f"{statistics.fmean(shares):.2f} ± {statistics.stdev(shares):.2f}"


def hours(seconds: float) -> str:
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d} min"


def machines(results: list[dict]) -> str:
    return " and ".join(dict.fromkeys(f"on {result['machine']}" for result in results))


def ablation_rows(trainings: dict[str, list[dict]]) -> list[dict]:
    """The ablation, best first, each against the whole recipe."""

    def mean(name: str) -> float:
        return statistics.fmean(100 * run["val_top1"] for run in trainings[name])

    rows = []
    for name in sorted(trainings, key=mean, reverse=True):
        gap = mean(name) - mean("cifar")
        rows.append(
            {
                "name": name,
                "changed": trainings[name][0]["changed"],
                "top1": spread(run["val_top1"] for run in trainings[name]),
                "difference": "" if name == "cifar" else f"{gap:+.2f}",
            }
        )
    return rows


def reached(result: dict, top1: float) -> str:
    """What a curve did about an accuracy, after "it"."""
    curve = result["curve"]
    for seconds, value in zip(curve["seconds"], curve["val/top1"], strict=True):
        if value >= top1:
            return f"reaches it after {format_seconds(seconds)}"
    best = max(curve["val/top1"])
    return f"does not reach it in {format_seconds(curve['seconds'][-1])} (best {percent(best)} %)"


def speed_ratios(inference: dict) -> list[dict]:
    """What was compared, how many times as fast it is, and what was aimed at."""
    latency = inference["latency"]

    def milliseconds(model: str, precision: str) -> dict[str, float]:
        return {
            what.split()[0]: timing["median_ms"]
            for what, timing in latency[model].items()
            if what.endswith(precision)
        }

    largest = latency["coral/1.0-224"]
    timm, plain = (largest[name]["median_ms"] for name in ("timm eager", "plain onnxruntime"))
    floats, integers = (milliseconds("coral/1.0-224", kind) for kind in ("fp32", "int8"))
    photos = inference["photos"]
    rows: list[tuple[str, float, float | None]] = [
        (
            "1.0-224, floats, the fastest runtime, against timm eager",
            timm / min(floats.values()),
            2.8,
        ),
        (
            "1.0-224, int8, the fastest runtime, against timm eager",
            timm / min(integers.values()),
            7.5,
        ),
        ("1.0-224, floats, ONNX Runtime here against it alone", plain / floats["onnx"], 0.97),
        (f"{photos['images']:,} photos, `predict` against timm's usual loop", photos["times"], 3.0),
    ]
    for model in latency:
        floats, integers = (milliseconds(model, kind) for kind in ("fp32", "int8"))
        best = max(integers, key=lambda runtime: floats[runtime] / integers[runtime])
        name = model.removeprefix("coral/")
        aim = 1.8 if name == "1.0-224" else None
        rows.append((f"{name}, int8 against floats in {best}", floats[best] / integers[best], aim))
    return [{"what": what, "times": times, "aim": aim} for what, times, aim in rows]


def page(data: dict) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": percent,
        "within": within,
        "spread": spread,
        "minutes": format_seconds,
        "hours": hours,
    }
    environment.globals |= {
        "reached": reached,
        "machines": machines,
        "ablation_rows": ablation_rows,
        "speed_ratios": speed_ratios,
        "recipe_titles": RECIPE_TITLES,
        "detectors": DETECTORS,
    }
    return environment.get_template("results_page.md").render(**data, article_best=ARTICLE_BEST)


def tidy(*all_axes) -> None:
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)


def save(figure: Figure, name: str) -> None:
    figure.savefig(RESULTS / name, dpi=110, metadata={"Software": None})


def draw_race(article: dict, ours: dict) -> None:
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for result, colour, name in ((article, THEIRS, "the article's recipe"), (ours, OURS, "cifar")):
        times = [seconds / 60 for seconds in result["curve"]["seconds"]]
        label = f"{name}, {result['model']}"
        axes.plot(times, result["curve"]["val/top1"], ".-", color=colour, label=label)
    axes.axhline(ARTICLE_BEST, color="#888", linestyle=":")
    axes.annotate(
        "the article's best", (0, ARTICLE_BEST), xytext=(2, 4), textcoords="offset points"
    )
    axes.set(xlabel="minutes on the same cores", ylabel="validation top-1", ylim=(0, 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(frameon=False, loc="lower right")
    tidy(axes)
    save(figure, "race.png")


def draw_dynamics(article: dict, ours: dict) -> None:
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    for axes, result, name in zip(
        figure.subplots(1, 2, sharey=True),
        (article, ours),
        ("the article's recipe", "cifar, the long run"),
        strict=True,
    ):
        curve = result["curve"]
        axes.plot(curve["epoch"], curve["train/loss"], color="#888", label="training loss")
        axes.plot(curve["epoch"], curve["val/loss"], color=OURS, label="validation loss")
        axes.set(title=name, xlabel="epoch")
        axes.legend(frameon=False)
        tidy(axes)
    save(figure, "dynamics.png")


def draw_reliability(result: dict) -> None:
    rows = result["test"]["reliability"]
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot((0, 1), (0, 1), ":", color="#888", label="perfect")
    shares = [row["confidence"] for row in rows]
    axes.plot(shares, [row["top1"] for row in rows], "o-", color=OURS, label="the long run")
    axes.set(xlabel="confidence", ylabel="top-1 of images that confident", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    tidy(axes)
    save(figure, "reliability.png")


def draw_confusion(result: dict) -> None:
    labels, matrix = list(result["test"]["classes"]), np.array(result["test"]["confusion"])
    figure = Figure(figsize=(6, 5.6), layout="constrained")
    axes = figure.subplots()
    wrong = np.where(np.eye(len(labels), dtype=bool), 0, matrix)
    axes.imshow(wrong, cmap="Reds")
    for row in range(len(labels)):
        for column in range(len(labels)):
            bold = "bold" if row == column else "normal"
            text = str(matrix[row, column])
            axes.text(column, row, text, ha="center", va="center", fontsize=8, fontweight=bold)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="guess", ylabel="truth")
    save(figure, "confusion.png")


def draw_noise(noise: dict) -> None:
    panels = list(dict.fromkeys((row["data"], row["kind"]) for row in noise["curve"]))
    figure = Figure(figsize=(3.6 * len(panels), 3.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        rows = [row for row in noise["curve"] if (row["data"], row["kind"]) == panel]
        # What a leak changes is the figure of those that leaked.
        what = "leaked" if panel[1] == "leaks" else "unseen"
        rows = [row for row in rows if what in row]
        for way, colour in (("as it is", THEIRS), ("cleaned", OURS)):
            means, spreads = zip(*(row[what][way] for row in rows), strict=True)
            shares = [100 * row["share"] for row in rows]
            label = f"{way}, {what} images"
            axes.errorbar(shares, means, spreads, marker="o", capsize=3, color=colour, label=label)
        axes.set(title=", ".join(panel), xlabel="share of images, %", ylim=(0, 105))
        axes.legend(frameon=False, loc="lower left")
        tidy(axes)
    figure.axes[0].set_ylabel("top-1, %")
    save(figure, "noise.png")


def draw_detectors(trained: dict[str, dict]) -> None:
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    precise, losses = figure.subplots(1, 2)
    for (name, result), colour in zip(trained.items(), (OURS, THEIRS), strict=False):
        curve, minutes = result["curve"], [seconds / 60 for seconds in result["curve"]["seconds"]]
        precise.plot(minutes, curve["val/map50"], color=colour, label=f"{name}, {result['model']}")
        losses.plot(minutes, curve["train/loss"], ":", color=colour, label=f"{name}, training")
        if any(curve["val/loss"]):
            losses.plot(minutes, curve["val/loss"], color=colour, label=f"{name}, validation")
    precise.set(xlabel="minutes", ylabel="validation mAP50", ylim=(0, 1))
    losses.set(xlabel="minutes", ylabel="loss", yscale="log")
    for axes in (precise, losses):
        axes.legend(frameon=False)
    tidy(precise, losses)
    save(figure, "detection/curves.png")


def draw(data: dict) -> None:
    studies = data["studies"]
    if "race" in studies:
        draw_race(studies["race"]["article"][0], studies["race"]["ours"][0])
    if "long" in studies:
        long = studies["long"]["long"][0]
        draw_reliability(long)
        draw_confusion(long)
        if "race" in studies:
            draw_dynamics(studies["race"]["article"][0], long)
    if data["noise"]:
        draw_noise(data["noise"])
    trained = {name: data["detection"][name] for name in DETECTORS if name in data["detection"]}
    if trained:
        draw_detectors(trained)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    data = results()
    text = page(data)
    if options.check:
        sys.exit(0 if text == PAGE.read_text() else 1)
    PAGE.write_text(text)
    draw(data)


if __name__ == "__main__":
    main()
