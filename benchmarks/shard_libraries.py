"""What libraries that read sharded image sets promise, and what they keep: each photo once, resuming, a failing network.

    pip install webdataset wids litdata polars datasets torchdata aiohttp
    python benchmarks/shard_libraries.py --shared SHARED [--only litdata] [--place FOLDER]

The package needs none of them, so that they are among no extra: install them into an environment of their own. The first
2,000 photos of CIFAR-10's test set are written as 1, 3 and 7 tar files, Parquet files and chunks of litdata's own kind. Each
reading is a process of its own, with batches of 64 (32 in each of two ranks), a seed, and buffers of 1,000 where there are
any. A server on loopback fails on the second of three shards. Written to docs/results/shard_libraries.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import sys
import tarfile
import tempfile
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import torch

from failing_server import FAULTS, failing_server
from mobilenets.training.device import provenance
from shard_readers import BATCH, PATIENCE, PHOTOS, READERS, Ask, readings, shares

SHARDS, WORKERS = (1, 3, 7), (1, 2, 5)
# Batches before a run stops.
STOP = 10
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "LITDATA_DISABLE_VERSION_CHECK": "1",
    # Loopback asks for no credentials, but its client does.
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def write(shared: Path, place: Path, with_litdata: bool) -> None:
    """Every kind of shard, unless it is there."""
    place.mkdir(parents=True, exist_ok=True)
    source = parquet.ParquetFile(shared / "data" / "cifar10" / "test-00000-of-00001.parquet")
    rows = next(source.iter_batches(PHOTOS)).to_pylist()
    images = [row["img"]["bytes"] for row in rows]
    (place / "files").mkdir(exist_ok=True)
    for number, image in enumerate(images):
        (place / "files" / f"{number}.png").write_bytes(image)
    for shards in SHARDS:
        for kind in ("tar", "parquet", "litdata"):
            (place / kind / str(shards)).mkdir(parents=True, exist_ok=True)
        for n, part in enumerate(shares(shards)):
            with tarfile.open(place / "tar" / str(shards) / f"{n}.tar", "w") as archive:
                for number in part:
                    member = tarfile.TarInfo(f"{number:05}.png")
                    member.size = len(images[number])
                    archive.addfile(member, io.BytesIO(images[number]))
            table = pa.table({"number": list(part), "image": [images[i] for i in part]})
            parquet.write_table(table, place / "parquet" / str(shards) / f"{n}.parquet")
        if with_litdata and not (place / "litdata" / str(shards) / "index.json").is_file():
            from litdata import index_parquet_dataset
            from litdata.streaming import Cache

            folder = place / "litdata" / str(shards)
            cache = Cache(str(folder), chunk_size=len(shares(shards)[0]))
            for number, image in enumerate(images):
                cache[number] = {"number": number, "image": image}
            cache.done()
            cache.merge()
            index_parquet_dataset(str(place / "parquet" / str(shards)))


def numbers(result: dict[str, Any]) -> list[int]:
    batches = (result["epochs"] or [[]])[0]
    return [number for batch in batches for number, _ in batch]


def kept(result: dict[str, Any], truth: dict[int, int]) -> dict[str, Any]:
    seen = Counter(numbers(result))
    came = [pair for batch in (result["epochs"] or [[]])[0] for pair in batch]
    said = [line for line in result["log"].splitlines() if re.search("(?i)warning|retry", line)]
    said = [line for line in said if not re.search("set_vital|This DataLoader", line)]
    return {
        "missing": PHOTOS - len(seen),
        "doubled": seen.total() - len(seen),
        "changed": sum(truth.get(number) != checksum for number, checksum in came),
        "error": result["error"],
        "said": said[0][-200:] if said else None,
    }


def each_once(name: str, place: Path, truth: dict[int, int]) -> list[dict[str, Any]]:
    rows = []
    for shards in SHARDS:
        for workers in WORKERS:
            (result,) = readings([Ask(name, place, shards, workers, False, epochs=1)])
            batches = [len(batch) for batch in (result["epochs"] or [[]])[0]]
            row = {"shards": shards, "workers": workers}
            row |= kept(result, truth) | {
                "foretold": result["length"],
                "batches": len(batches),
                "full_batches": batches.count(BATCH),
            }
            rows.append(row)
    return rows


def resumed(name: str, place: Path, _: dict[int, int]) -> list[dict[str, Any]]:
    """Stopped after some batches of the first epoch; (ranks, workers) before and after."""
    rows = []
    for before, after in (((1, 2), (1, 2)), ((1, 2), (1, 5)), ((1, 2), (1, 1)), ((2, 2), (1, 2))):
        ranks, workers = before
        asks = [
            Ask(name, place, 7, workers, True, BATCH // ranks, rank=rank, ranks=ranks)
            for rank in range(ranks)
        ]
        whole = readings(asks)
        stopped = readings([replace(ask, stop=STOP) for ask in asks])
        row: dict[str, Any] = {"before": before, "after": after}
        rows.append(row)
        failed = next((r["error"] for r in (*whole, *stopped) if r["error"]), None)
        if failed:
            row["error"] = failed
            continue
        (rest,) = readings([Ask(name, place, 7, after[1], True, state=stopped[0]["state"])])
        done = [number for result in stopped for number in numbers(result)]
        went_on = numbers(rest)
        # The order of a run that was not stopped: the ranks' batches in turns.
        steps = list(zip_longest(*(result["epochs"][0] for result in whole), fillvalue=[]))
        ahead = [n for step in steps[STOP:] for batch in step for n, _ in batch]
        row |= {
            "error": rest["error"],
            "lost": PHOTOS - len({*done, *went_on}),
            "repeated": len(done) + len(went_on) - len({*done, *went_on}),
            "same_order": went_on == ahead,
        }
        if ranks > 1:
            row["batches_of_ranks"] = [len(result["epochs"][0]) for result in whole]
            row["missing_in_ranks"] = PHOTOS - len({n for r in whole for n in numbers(r)})
            (alone,) = readings([Ask(name, place, 7, workers, True)])
            row["global_batches_alike"] = sum(
                {n for n, _ in one} == {n for batch in step for n, _ in batch}
                for one, step in zip(alone["epochs"][0], steps, strict=False)
            )
    return rows


def failure(
    name: str, fault: str, place: Path, address: str, truth: dict[int, int]
) -> dict[str, Any]:
    server = f"{address}/{fault}/{zlib.crc32(name.encode())}"
    started = time.perf_counter()
    (result,) = readings([Ask(name, place, 3, 1, False, server=server)])
    return kept(result, truth) | {"seconds": round(time.perf_counter() - started, 1)}


def show(name: str, found: dict[str, Any]) -> None:
    """The table of one library."""
    print(f"\n{name}: {found['images_per_second']} images a second")
    for row in found.get("each_once", []):
        print(
            f"  {row['shards']} shards, {row['workers']} workers: {row['missing']} missing, {row['doubled']} doubled, "
            f"{row['batches']} batches ({row['foretold']} foretold), {row['error'] or row['said'] or ''}"
        )
    for row in found.get("resumed", []):
        print("  resumed:", ", ".join(f"{key} {value}" for key, value in row.items()))
    for fault, row in found.get("failures", {}).items():
        print(f"  {fault}:", ", ".join(f"{key} {value}" for key, value in row.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()) / "shards")
    parser.add_argument("--only", choices=READERS)
    parser.add_argument("--output", type=Path, default=Path("docs/results/shard_libraries.json"))
    options = parser.parse_args()
    os.environ.update(QUIET)
    os.environ["HF_HOME"] = tempfile.mkdtemp()
    names = []
    for name in [options.only] if options.only else READERS:
        module = name.split(",")[0]
        if name == "files" or importlib.util.find_spec(module):
            names.append(name)
        else:
            print(f"{name} is skipped: pip install {module} torchdata", file=sys.stderr)
    has_litdata = importlib.util.find_spec("litdata") is not None
    writing = get_context("fork").Process(
        target=write, args=(options.shared, options.place, has_litdata)
    )
    writing.start()
    writing.join()
    truth = {
        int(path.stem): zlib.crc32(path.read_bytes()) for path in options.place.glob("files/*.png")
    }
    libraries: dict[str, Any] = {name: {} for name in names}
    compared = [name for name in names if name != "files"]
    # Most of it is waiting. Parquet's downloads are those of litdata's own chunks.
    networked = [name for name in compared if name != "litdata, parquet"]
    second = r"/(1\.\w+|chunk-0-1\.bin)$"
    with failing_server(options.place, second) as address, ThreadPoolExecutor(8) as pool:
        waiting = [
            (name, study, pool.submit(run, name, options.place, truth))
            for name in compared
            for study, run in (("each_once", each_once), ("resumed", resumed))
        ]
        failing = [
            (name, fault, pool.submit(failure, name, fault, options.place, address, truth))
            for name in networked
            for fault in FAULTS
        ]
        for name, study, future in waiting:
            libraries[name][study] = future.result()
        for name, fault, future in failing:
            libraries[name].setdefault("failures", {})[fault] = future.result()
    for name in names:
        ask = Ask(name, options.place, 3, 1, False, epochs=2, resize=True)
        runs = [readings([ask])[0] for _ in range(3)]
        rates = [2 * PHOTOS / run["seconds"] for run in runs if not run["error"]]
        libraries[name]["images_per_second"] = [round(rate) for rate in sorted(rates)]
        show(name, libraries[name])
    packages = {name.split(",")[0] for name in compared} | {"torchdata", "fsspec"}
    content = {
        "command": "python benchmarks/shard_libraries.py --shared SHARED",
        "photos": PHOTOS,
        "batch": BATCH,
        "stop": STOP,
        "patience_s": PATIENCE,
        "libraries": libraries,
        "library_versions": {name: importlib.metadata.version(name) for name in sorted(packages)},
        **provenance(torch.device("cpu")),
    }
    options.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
