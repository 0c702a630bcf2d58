"""How many images a second `predict --engine ray` takes, against plain `predict`; and that a killed process costs no image.

    python benchmarks/bulk.py --shared SHARED [--turns 2]

SHARED holds the ImageNet weights of 0.25-128 and CIFAR-10's test split, whose 10,000 JPEG files are written to a folder. Both ways, as a user
starts them, predict all of them in turns; the quicker turn of each counts, since whatever else the machine did made the others slower.
`images_per_second` leaves out what comes before the first answer, which `start_seconds` is for Ray, and `seconds` is of the whole
command. Then one of Ray's processes is killed on the way, and each image is looked for in the results. Written to docs/results/bulk.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import torch

from exports import PUBLISHED, run_of
from mobilenets.training.device import provenance
from verb import mobilenets

MODEL = PUBLISHED[0]
COMMAND = [sys.executable, "-m", "mobilenets", "predict"]


def photos_of(shared: Path, place: Path) -> Path:
    """CIFAR-10's test images as files, unless they are there."""
    folder = place / "cifar10"
    if not folder.is_dir():
        folder.mkdir(parents=True)
        table = pq.read_table(shared / "data" / "cifar10" / "test-00000-of-00001.parquet")
        for number, image in enumerate(table["img"].to_pylist()):
            (folder / f"{number:05}.jpg").write_bytes(image["bytes"])
    return folder


def exported(shared: Path, place: Path, photos: Path) -> Path:
    folder = run_of(MODEL, shared, place)
    if not (folder / "onnx").is_dir():
        mobilenets("export", folder, "--to", "onnx", "--images", photos / "000*.jpg")
    return folder


def plain(run: Path, photos: Path) -> dict:
    started = time.perf_counter()
    done = subprocess.run([*COMMAND, run, photos], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - started
    assert done.stdout.count("\n") == 10_000
    found = re.search(r"through (\S+), ([\d,]+) images/s", done.stderr)
    return {
        "seconds": round(seconds, 1),
        "images_per_second": int(found[2].replace(",", "")),
        "runtime": found[1],
    }


def started_bulk(run: Path, photos: Path, output: Path, workers: int) -> subprocess.Popen:
    shutil.rmtree(output, ignore_errors=True)
    options = ["--engine", "ray", "--workers", workers, "--output", output, "--json"]
    command = [*map(str, [*COMMAND, run, photos, *options])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def bulk(run: Path, photos: Path, output: Path, workers: int) -> dict:
    started = time.perf_counter()
    said = json.loads(started_bulk(run, photos, output, workers).communicate()[0])
    seconds = time.perf_counter() - started
    assert said["predicted"] == 10_000
    return {
        "seconds": round(seconds, 1),
        **{key: said[key] for key in ("images_per_second", "start_seconds", "runtime")},
    }


def workers_below(ancestor: int) -> list[int]:
    """The processes of Ray with a network in them that a command has started."""
    parents, found = {}, []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(process.name)] = int(
                (process / "stat").read_text().rpartition(")")[2].split()[1]
            )
            if "ray::MapWorker" in (process / "cmdline").read_text():
                found.append(int(process.name))
        except OSError:
            continue

    def below(process: int) -> bool:
        return process == ancestor or (process in parents and below(parents[process]))

    return [process for process in found if below(process)]


def killed(run: Path, photos: Path, output: Path, workers: int) -> dict:
    """One process is killed once there are results of it and the others."""
    command = started_bulk(run, photos, output, workers)
    while not list(output.glob("part-*.parquet")):
        time.sleep(0.1)
    time.sleep(2)
    victim = workers_below(command.pid)[0]
    os.kill(victim, signal.SIGKILL)
    # Others have gone on with their work since, or it was killed when all was done.
    assert command.poll() is None
    said = json.loads(command.communicate()[0])
    names = Counter(pq.read_table(output, columns=["image"])["image"].to_pylist())
    return {
        "killed": 1,
        "images": said["images"],
        "predicted": said["predicted"],
        "failed": said["failed"],
        "rows": sum(names.values()),
        "images_in_rows": len(names),
        "images_more_than_once": sum(count > 1 for count in names.values()),
        "images_per_second": said["images_per_second"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/bulk"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/bulk.json"))
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    photos = photos_of(options.shared, options.runs)
    run = exported(options.shared, options.runs, photos)
    place = options.runs / "results"
    turns = {"predict": [], "ray": []}
    for _ in range(options.turns):
        turns["predict"].append(plain(run, photos))
        turns["ray"].append(bulk(run, photos, place, options.workers))
        print(json.dumps({name: some[-1] for name, some in turns.items()}), flush=True)
    best = {name: max(one["images_per_second"] for one in some) for name, some in turns.items()}
    result = {
        "command": "python benchmarks/bulk.py --shared SHARED",
        "model": "0.25-128",
        "images": 10_000,
        "workers": options.workers,
        "cores": os.cpu_count(),
        **turns,
        "of_predict": round(best["ray"] / best["predict"], 3),
        "one_killed": killed(run, photos, place, options.workers),
        **provenance(torch.device("cpu")),
    }
    print(json.dumps(result["one_killed"]), result["of_predict"])
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
