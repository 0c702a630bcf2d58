"""Training at 224 pixels from shards against images in memory, in turns; and how well windows of shards shuffle.

    python benchmarks/shards.py --shared SHARED [--seconds S] [--rounds N]

CIFAR-10 (JPEG), each image made larger to 224 pixels, 0.25-224, batches of 64, recipe `modern` without its average: steps of a
`Session`, as `mobilenets train` takes them. `memory` reads the encoded images of the Hub's Parquet from memory, `tar` and `parquet` the
shards that `mobilenets shard` wrote from them, `server` the same tar files from a server on loopback, fetched anew each time. Each
reading is a process of its own. Shuffling is judged by the mix of classes in batches of 256: the mean distance (half of the sum of
differences) between a batch's shares of the ten classes and the set's, for 140 shards of which the images were shuffled when they were
written, or not. Written to docs/results/shards.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobilenets import tasks
from mobilenets.architecture import MobileNetSpec, Preprocessing
from mobilenets.data.loaders import Order, PhotoLoader
from mobilenets.data.shards.store import CACHE
from mobilenets.data.shards.write import Choices, write_shards
from mobilenets.data.sources import open_source
from mobilenets.data.transforms import Distortion
from mobilenets.training.device import provenance
from mobilenets.training.memory import keep_freed_memory
from mobilenets.training.processes import ALONE
from mobilenets.training.run import Run
from mobilenets.training.session import Session
from mobilenets.training.stages import Stages
from mobilenets.training.task import TrainingData

MODEL, BATCH, WORKERS = "0.25-224", 64, 1
SOURCES = ("memory", "tar", "parquet", "server")
SHARD, SHARDS = 20e6, 140
OUTPUT = Path("docs/results/shards.json")


class Quiet(SimpleHTTPRequestHandler):
    """A folder on loopback."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def train(where: str, seconds: float) -> float:
    """Images a second, after a warm-up of a quarter of the time."""
    keep_freed_memory()
    kind, spec = tasks.find("classification"), MobileNetSpec.parse(MODEL)
    recipe = kind.recipes()["modern"].override({"ema_decay": None, "batch_size": BATCH})
    source = open_source(where)
    task = kind(source.labels, Preprocessing(spec.height, spec.across))
    distortion = Distortion(min_area=recipe.augmentation.min_area)
    loader = PhotoLoader(
        source.splits["train"], task.preprocessing, BATCH, distortion, 0, WORKERS,
        window=recipe.shuffle_shards,
    )  # fmt: skip
    run = Run.create("none", task, spec, recipe, {}, write=False)
    data = TrainingData(loader, loader, {})
    session = Session(run, data, recipe, torch.device("cpu"), ALONE, None)
    stages, images, started, warm = Stages(), 0, time.perf_counter(), False
    for batch in loader.batches(0):
        session.step(batch, 1.0, stages)
        images += len(batch)
        spent = time.perf_counter() - started
        if not warm and spent > seconds / 4:
            images, started, warm = 0, time.perf_counter(), True
        elif warm and spent > seconds:
            break
    return images / (time.perf_counter() - started)


def throughput(shared: Path, place: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """Each source in turns, in a process of its own."""
    memory = shared / "data" / "cifar10"
    source = open_source(str(memory))
    for name, layout in (("tar", "webdataset"), ("parquet", "parquet")):
        write_shards(source, place / name, Choices(layout, SHARD))
    del source
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(place / "tar")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    places = {
        "memory": memory,
        "tar": place / "tar",
        "parquet": place / "parquet",
        "server": address,
    }
    speeds: dict[str, list[float]] = {name: [] for name in SOURCES}
    for turn in range(rounds):
        for name in SOURCES:
            command = [
                sys.executable,
                __file__,
                "--read",
                str(places[name]),
                "--seconds",
                str(seconds),
            ]
            environment = {**os.environ, CACHE: str(place / f"kept-{name}-{turn}")}
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            )
            speeds[name].append(float(done.stdout))
            print(f"{name}: {speeds[name][-1]:.1f} images/s", flush=True)
    server.shutdown()
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "images_per_second": {
            name: [round(v, 1) for v in values] for name, values in speeds.items()
        },
        "of_memory": {name: round(medians[name] / medians["memory"], 3) for name in SOURCES[1:]},
    }


def mixing() -> list[dict[str, Any]]:
    """How far the classes of batches are from those of the set, by window."""
    targets = np.repeat(np.arange(10), 5000)
    shuffled = np.random.default_rng(0).permutation(targets)
    shards_N = torch.arange(50_000) // -(-50_000 // SHARDS)
    rows = []
    for written, labels in (("shuffled", shuffled), ("by class", targets)):
        for window in (1, 8, 32, SHARDS):
            order = Order(50_000, 256, 0, shuffled=True, shards_N=shards_N, window=window)
            distances = [
                np.abs(np.bincount(labels[batch.numpy()], minlength=10) / len(batch) - 0.1).sum()
                / 2
                for batch in order.rows(0)
            ]
            distance = round(float(np.mean(distances)), 3)
            rows.append({"written": written, "window": window, "distance": distance})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(train(options.read, options.seconds))
        return
    with tempfile.TemporaryDirectory() as place:
        found = throughput(options.shared, Path(place), options.seconds, options.rounds)
    content = {
        "command": "python benchmarks/shards.py --shared SHARED",
        "model": MODEL,
        "batch": BATCH,
        "workers": WORKERS,
        "throughput": found,
        "shards": SHARDS,
        "mixing": mixing(),
        **provenance(torch.device("cpu")),
    }
    OUTPUT.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps({**found["of_memory"], "mixing": content["mixing"]}, indent=1))


if __name__ == "__main__":
    main()
