"""Training time for ImageNet against the number of GPUs: constants, a check against real trainings, and the curve.

    python benchmarks/scale.py measure --shared SHARED [--only PART ...]
    python benchmarks/scale.py curve

`measure` (five minutes on two cores, nothing else running) times each constant of `scale_model.py` on its own: photos read and
distorted by the project's loader, archives read, all-reduces over loopback, steps of a training session by batch
size, a state written. Then it trains in 1, 2 and 4 processes and puts the images a second beside what the simulation says.
`curve` simulates 1 to 256 GPUs. Both write docs/results/scale.json, `curve` also docs/scale.svg.

SHARED holds `data/imagenet_samples.tar` (1,000 photos of ImageNet, short side 256) and `data/pets37.tar`. One thread a process.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image
from torch.nn.parallel import DistributedDataParallel

from mobilenets import tasks
from mobilenets.architecture import MobileNetSpec, Preprocessing
from mobilenets.cost import Cost, cost
from mobilenets.data.loaders import Batch, PhotoLoader
from mobilenets.data.sources import FileImages, Split
from mobilenets.data.transforms import Distortion
from mobilenets.training.device import provenance
from mobilenets.training.loop import SAVE_EVERY
from mobilenets.training.memory import keep_freed_memory
from mobilenets.training.processes import ALONE, Processes, processes, synchronise_batch_norm
from mobilenets.training.run import Run
from mobilenets.training.session import Session
from mobilenets.training.stages import Stages
from mobilenets.training.task import TrainingData
from scale_model import (
    FLOAT,
    Cluster,
    Link,
    Work,
    best_interval,
    gradient_buckets,
    interruption_factor,
    norm_seconds,
    simulate,
    sums_on_cpus,
)
from shared_data import unpacked

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "docs" / "results" / "scale.json"
PARTS = ("photos", "archive", "collectives", "steps", "state", "training")
CROPPED = Distortion(mirror=True, min_area=0.35)
MODERN = replace(CROPPED, randaugment=9, randaugment_share=0.5)
# ImageNet's training archive has 147,897,477,120 bytes for 1,281,167 photos, mostly 500 pixels long.
IMAGES, VALIDATION, LONG_SIDE = 1_281_167, 50_000, 500
QUALITY = 98
READ_BATCH = 32
# Batches that are timed, and the one that the trainings take.
BATCHES = {"1.0-224": (4, 8, 16, 32), "0.25-128": (8, 16, 32, 64)}
TRAINED = {"1.0-224": (8, 8), "0.25-128": (32, 20)}
# The curve. No GPU has been timed on 1.0-224, nor a network between machines: docs/scale.md has the bounds.
MODEL, EPOCHS, GPU_BATCH = "1.0-224", 90, 256
COUNTS = [2**power for power in range(9)]
# Images a second of trainings of 1.0-32-s8 on an H100, slowest and fastest (docs/log.md, "A GPU for a quarter of an hour").
SESSION_SPEEDS = (10_000, 15_000)
INSIDE = Link(1e-5, 1e11)
# 419 failures in 54 days of 16,384 H100s (arXiv 2407.21783, section 3.3.4).
GPU_SECONDS_BETWEEN_FAILURES = 16_384 * 54 * 86_400 / 419
CORES_HERE = 2
MESSAGES = (4, 4_096, 43_776, 262_144, 1_880_288, 16_927_904)


# Measuring ----------------------------------------------------------------------------------


def photos_of(folder: Path) -> Split:
    paths = tuple(sorted(folder.rglob("*.jpg")))
    return Split(FileImages(paths), np.zeros(len(paths), dtype=np.int64))


def enlarged(samples: Path, folder: Path, count: int = 400) -> Path:
    """Stand-ins for the original files, which are not here: the samples at the originals' length and size in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(samples.rglob("*.jpg"))[:count]:
        photo = Image.open(path).convert("RGB")
        scale = LONG_SIDE / max(photo.size)
        size = (round(photo.width * scale), round(photo.height * scale))
        photo.resize(size, Image.Resampling.LANCZOS).save(folder / path.name, quality=QUALITY)
    return folder


def reading(split: Split, distortion: Distortion, workers: int, count: int) -> dict[str, float]:
    """Images a second through the project's loader at 224 pixels, and seconds until the first batch."""
    loader = PhotoLoader(
        split.take(list(range(min(count, len(split))))),
        Preprocessing(224, 224),
        READ_BATCH,
        distortion,
        workers=workers,
        drop_last=True,
    )
    started = time.perf_counter()
    batches = loader.batches()
    # Readers work ahead of the first batch; those that come after as many as they hold are on time.
    for _ in range(2 * workers):
        next(batches)
    first = time.perf_counter()
    seen = sum(len(batch) for batch in batches)
    speed = seen / seconds_since(first)
    # Readers that are forgotten while others are begun would be asked about by those.
    del loader, batches
    gc.collect()
    return {"images_per_second": speed, "start_seconds": first - started}


def measure_photos(shared: Path, scratch: Path) -> dict:
    samples = unpacked(shared, "imagenet_samples", scratch)
    places = {
        "short side 256": samples,
        "like the originals": enlarged(samples, scratch / "enlarged"),
        "pets37": unpacked(shared, "pets37", scratch),
    }
    results = {}
    for name, folder in places.items():
        split = photos_of(folder)
        sides = [Image.open(path).size for path in split.images.paths]
        some = range(0, len(split), max(1, len(split) // 200))
        for index in some:
            split.images.encoded(index)
        started = time.perf_counter()
        for index in some:
            split.images.read(index, 3)
        decoded = len(some) / (time.perf_counter() - started)
        count = 640 if name == "short side 256" else 384
        results[name] = {
            "photos": len(split),
            "mean_bytes": statistics.mean(p.stat().st_size for p in split.images.paths),
            "mean_pixels": statistics.mean(width * height for width, height in sides),
            "decoded_per_second": decoded,
            "one_reader": reading(split, CROPPED, 1, count),
            "two_readers": reading(split, CROPPED, 2, count),
        }
        if name != "pets37":
            results[name]["one_reader_randaugment"] = reading(split, MODERN, 1, count // 2)
    return results


def measure_archive(shared: Path) -> dict:
    """Megabytes a second of a tar of photos, out of the page cache and in it, plain and entry by entry."""
    path = shared / "data" / "imagenet_samples.tar"
    speeds: dict[str, float] = {}
    for name in ("cold", "warm"):
        with path.open("rb") as file:
            if name == "cold":
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            started = time.perf_counter()
            while file.read(2**20):
                pass
        speeds[f"{name}_megabytes_per_second"] = path.stat().st_size / 1e6 / seconds_since(started)
    started, entries = time.perf_counter(), 0
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                entries += len(file.read()) > 0
    spent = seconds_since(started)
    return {
        "bytes": path.stat().st_size,
        **speeds,
        "entries_megabytes_per_second": path.stat().st_size / 1e6 / spent,
        "entries_per_second": entries / spent,
    }


def seconds_since(started: float) -> float:
    return time.perf_counter() - started


def collectives(mine: Processes) -> dict:
    """Median seconds of an all-reduce by size and precision; latency and bandwidth of a ring by the quickest in fp32."""
    results: dict[str, dict[str, float]] = {}
    quickest: dict[int, float] = {}
    for precision in (torch.float32, torch.bfloat16):
        times: dict[str, float] = {}
        for size in MESSAGES:
            values = torch.zeros(size // 4, dtype=precision)
            repeats = 60 if size < 10**6 else 12
            spent = []
            for _ in range(repeats):
                mine.wait()
                started = time.perf_counter()
                dist.all_reduce(values)
                spent.append(seconds_since(started))
            times[str(values.numel())] = statistics.median(spent)
            if precision == torch.float32:
                quickest[size] = min(spent)
        results[str(precision).removeprefix("torch.")] = times
    others, smallest, largest = mine.count - 1, MESSAGES[0], MESSAGES[-1]
    latency = quickest[smallest] / (2 * others)
    rest = quickest[largest] - quickest[smallest]
    bandwidth = 2 * others / mine.count * largest / rest
    return {
        "seconds_by_values": results,
        "latency": latency,
        "bandwidth": bandwidth,
        "in_step": in_step(mine),
    }


def in_step(mine: Processes) -> float:
    """Seconds that a small sum takes from processes that compute before each, as synchronised batch norm has them: the
    slowest is waited for every time, and a process that has just computed is not the first to be woken.
    """
    a, b = torch.randn(2, 320, 320)
    values = torch.zeros(512)

    def spent(summing: bool) -> float:
        times = []
        for _ in range(100):
            started = time.perf_counter()
            for _ in range(2):
                a @ b
            if summing:
                dist.all_reduce(values)
            times.append(seconds_since(started))
        return statistics.mean(times[20:])

    alone = 0.0
    for rank in range(mine.count):
        mine.wait()
        if rank == mine.rank:
            alone = spent(summing=False)
    mine.wait()
    together = spent(summing=True)
    return together - alone * max(1, mine.count / CORES_HERE)


class Training:
    """A session of the `modern` recipe on photos, without RandAugment."""

    def __init__(
        self, model: str, split: Split, batch_size: int, mine: Processes = ALONE, folder: str = ""
    ) -> None:
        keep_freed_memory()
        kind, spec = tasks.find("classification"), MobileNetSpec.parse(model)
        recipe = kind.recipes()["modern"].override({"batch_size": batch_size})
        labels = tuple(f"class {number}" for number in range(1000))
        task = kind(labels, Preprocessing(spec.height, spec.across))
        self.loader = PhotoLoader(
            split, task.preprocessing, batch_size, CROPPED, workers=1, drop_last=True
        )
        run = Run.create(folder or "none", task, spec, recipe, {}, write=bool(folder))
        data = TrainingData(self.loader, self.loader, {})
        self.session = Session(run, data, recipe, torch.device("cpu"), mine, None)
        self.mine = mine

    def forever(self) -> Iterator[Batch]:
        epoch = 0
        while True:
            yield from self.loader.batches(epoch, shard=self.mine.shard)
            epoch += 1

    def step(self, batch: Batch) -> None:
        self.session.step(batch, 1.0, Stages())
        # As the loop does after each step, so that all stop at once.
        self.mine.any_of((False, False), torch.device("cpu"))


def step_times(training: Training, batch: Batch, count: int) -> list[float]:
    times = []
    for _ in range(count + 1):
        started = time.perf_counter()
        training.step(batch)
        times.append(seconds_since(started))
    return times[1:]


def measure_steps(samples: Path) -> dict:
    """Seconds of a step by batch size, with plain and with synchronised batch norm (in a group of one), and their spread."""
    split = photos_of(samples).take(list(range(128)))
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    results = {}
    for model, sizes in BATCHES.items():
        rows, spread = [], []
        for size in sizes:
            training = Training(model, split, size)
            batch = next(training.loader.batches())
            own, _ = TRAINED[model]
            times = step_times(training, batch, 20 if size == own else 4)
            row = {"batch": size, "seconds": statistics.median(times)}
            if size == own:
                spread = [spent / row["seconds"] for spent in times]
                network, images = training.session.model, batch.images_NCHW
                network.eval()
                started = time.perf_counter()
                with torch.inference_mode():
                    network(images)
                row["forward_seconds"] = seconds_since(started)
                synchronise_batch_norm(training.session.model, torch.device("cpu"))
                synchronised = step_times(training, batch, 5)
                row["synchronised_seconds"] = statistics.median(synchronised)
            rows.append(row)
        results[model] = {"by_batch": rows, "spread": sorted(spread)}
    dist.destroy_process_group()
    return results


def measure_state(samples: Path) -> dict:
    """Bytes of what going on needs, and seconds to write it."""
    split = photos_of(samples).take(list(range(16)))
    results = {}
    for model in BATCHES:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "run"
            training = Training(model, split, 8, folder=str(place))
            training.step(next(training.loader.batches()))
            times = []
            for _ in range(5):
                started = time.perf_counter()
                training.session.save()
                times.append(seconds_since(started))
            results[model] = {
                "bytes": (place / "state.pt").stat().st_size,
                "seconds": statistics.median(times),
            }
    return results


def train(samples: Path, model: str, mine: Processes) -> dict:
    """Real steps in this process and the others, images read meanwhile."""
    each, steps = TRAINED[model]
    training = Training(model, photos_of(samples), each * mine.count, mine)
    batches = training.forever()
    for _ in range(4):
        training.step(next(batches))
    mine.wait()
    started = time.perf_counter()
    for _ in range(steps):
        training.step(next(batches))
    mine.wait()
    result = {"images_per_second": steps * each * mine.count / seconds_since(started)}
    stepped = training.session._stepped
    if isinstance(stepped, DistributedDataParallel):
        told = stepped._get_ddp_logging_data()
        result["bucket_bytes"] = told.get("rebuilt_bucket_sizes") or told.get("bucket_sizes")
    return result


def part(name: str, count: int, scratch: Path, *arguments: str) -> dict:
    """A measurement in new processes of one thread, who find each other as torchrun's do."""
    command = [sys.executable, __file__, "part", name, "--scratch", str(scratch), *arguments]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    running = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **place, "RANK": str(rank)},
        )
        for rank in range(count)
    ]
    said = [process.communicate(timeout=300)[0] for process in running]
    assert not any(process.returncode for process in running)
    print(f"{name} {' '.join(arguments[1::2])} ({count})", file=sys.stderr, flush=True)
    return json.loads(said[0])


def run_part(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    samples = options.scratch / "imagenet_samples"
    with processes(torch.device("cpu")) as (mine, _):
        if options.name == "photos":
            result = measure_photos(options.shared, options.scratch)
        elif options.name == "archive":
            result = measure_archive(options.shared)
        elif options.name == "collectives":
            result = collectives(mine)
        elif options.name == "steps":
            result = measure_steps(samples)
        elif options.name == "state":
            result = measure_state(samples)
        else:
            result = train(samples, options.model, mine)
        if mine.first:
            print(json.dumps(result))


def measure(options: argparse.Namespace) -> None:
    result = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    constants = result.setdefault("constants", {})
    unpacked(options.shared, "imagenet_samples", options.scratch)
    shared = ("--shared", str(options.shared))
    for name in options.only:
        if name == "collectives":
            constants[name] = {
                str(count): part(name, count, options.scratch, *shared) for count in (2, 4)
            }
        elif name == "training":
            result["trainings"] = {
                model: {
                    str(count): part(name, count, options.scratch, *shared, "--model", model)
                    for count in (1, 2, 4)
                }
                for model in TRAINED
            }
        else:
            constants[name] = part(name, 1, options.scratch, *shared)
        result |= {
            "command": "python benchmarks/scale.py measure --shared SHARED",
            **provenance(torch.device("cpu")),
        }
        result["machine"] = result["machine"].rpartition(",")[0] + ", 1 thread a process"
        write(result)


def rounded(value: object) -> object:
    """Four digits of each float, nanoseconds at the least."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if abs(value) > 1e-9 else 0.0
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


def write(result: dict) -> None:
    RESULT.write_text(json.dumps(rounded(result), indent=1) + "\n")


# Checking and foretelling -------------------------------------------------------------------


def check(result: dict) -> list[dict]:
    """Images a second of the trainings beside what the simulation says of them, from constants measured apart."""
    constants, rows = result["constants"], []
    for model, by_count in result["trainings"].items():
        spec = MobileNetSpec.parse(model)
        each, _ = TRAINED[model]
        step = next(
            row for row in constants["steps"][model]["by_batch"] if "synchronised_seconds" in row
        )
        reader = constants["photos"]["short side 256"]["one_reader"]
        for count, measured in ((int(key), value) for key, value in by_count.items()):
            sums = [] if count == 1 else sums_on_cpus(spec)
            work = Work(
                compute=step["seconds" if count == 1 else "synchronised_seconds"],
                read=each / reader["images_per_second"],
                readers=1,
                cores=CORES_HERE,
                jitter=constants["steps"][model]["spread"],
                on_cores=True,
            )
            # All that is sent is in the measured seconds.
            cluster = Cluster(count, Link(0, 1), Link(0, 1), per_machine=count)
            foretold, idle = (
                each
                * count
                / simulate(
                    replace(work, collective=waited(sums, count, constants, in_step=in_step)),
                    cluster,
                    steps=200,
                ).seconds
                for in_step in (True, False)
            )
            seen = measured["images_per_second"]
            rows.append(
                {
                    "model": model,
                    "processes": count,
                    "measured": seen,
                    "simulated": foretold,
                    "error": foretold / seen - 1,
                    "error_with_sums_of_idle_processes": idle / seen - 1,
                }
            )
    return rows


def waited(sums: list[int], count: int, constants: dict, *, in_step: bool) -> float:
    """Seconds of the all-reduces of a step between so many processes here, between the sizes that were timed; `in_step` takes no
    less than a small one takes between processes that have just computed.
    """
    if not sums:
        return 0.0
    measured = constants["collectives"][str(count)]
    times = measured["seconds_by_values"]["float32"]
    values, seconds = zip(*((int(key), value) for key, value in times.items()), strict=True)
    return sum(
        max(
            measured["in_step"] if in_step else 0.0,
            float(np.interp(size / FLOAT, values, seconds)),
        )
        for size in sums
    )


@dataclass(frozen=True)
class Gpu:
    """What is known of one: bounds, not measurements of this network.

    Args:
        speed: images a second of a step of 1.0-224, reading left out.
        launch: seconds that no step is shorter than, as its kernels are launched from Python.
        spread: share of the deviations from the median step that were measured on CPUs.
    """

    speed: float
    launch: float
    spread: float


@dataclass(frozen=True)
class Plan:
    """How a training is set up.

    Args:
        latency: between two machines; None takes what gloo has over loopback.
        most: images of a batch on all GPUs; accuracy past Google's configuration of this network (500 epochs,
            Model Garden's `imagenet_mobilenetv1_tpu.yaml`) is unknown.
    """

    title: str
    photos: str
    gigabits: float
    synchronised: bool
    bytes_each: int
    cores: int = 16
    latency: float | None = None
    most: int = 4096


AS_IT_IS = Plan("as it is", "like the originals", 10, synchronised=True, bytes_each=4)
MENDED = Plan("mended", "short side 256", 100, synchronised=False, bytes_each=2)


def gpus(model: str) -> dict[str, Gpu]:
    """Bounds for a network from the one that was timed on a GPU, 1.0-32-s8: by the values that its layers write, of which
    memory has the work, or by mult-adds.
    """
    stored = json.loads((ROOT / "docs" / "results" / "gpu_throughput.json").read_text())
    timed, wanted = (
        cost(MobileNetSpec.parse(name), classes)
        for name, classes in ((stored["model"], 10), (model, 1000))
    )
    by_values = written_values(timed) / written_values(wanted)
    by_mult_adds = timed.mult_adds / wanted.mult_adds
    ratios = sorted((by_values, by_mult_adds))
    bare = stored["images_per_second"]["bf16, channels_last"]
    slow = Gpu(SESSION_SPEEDS[0] * ratios[0], stored["batch_size"] / SESSION_SPEEDS[0], spread=1.0)
    fast = Gpu(bare * ratios[1], stored["batch_size"] / SESSION_SPEEDS[1], spread=0.0)
    middle = Gpu(math.sqrt(slow.speed * fast.speed), math.sqrt(slow.launch * fast.launch), 0.5)
    return {"slow": slow, "middle": middle, "fast": fast}


def written_values(counted: Cost) -> int:
    return sum(
        row.layer.out_channels * math.prod(row.layer.out_size) * row.layer.repeats
        for row in counted.layers
    )


def foretell(plan: Plan, gpu: Gpu, count: int, constants: dict, model: str = MODEL) -> dict:
    """Hours of all epochs on so many GPUs, and the parts of a step."""
    spec = MobileNetSpec.parse(model)
    batch = min(GPU_BATCH, plan.most // count)
    network = network_of(plan.gigabits, constants, plan.latency)
    cluster = Cluster(count, INSIDE, network)
    compute = max(gpu.launch, batch / gpu.speed)
    *hidden, last = gradient_buckets(spec, plan.bytes_each)
    collective = 0.0
    if count > 1:
        # Two thirds of a step go back through the network, and hide what is sent meanwhile.
        early = sum(map(cluster.all_reduce, hidden))
        collective = max(0.0, early - compute * 2 / 3) + cluster.all_reduce(last)
        collective += norm_seconds(spec, cluster) * plan.synchronised
        # Whether someone wants to stop or to save.
        collective += cluster.all_reduce(2 * FLOAT)
    photos = constants["photos"][plan.photos]
    spread = constants["steps"][model]["spread"]
    step = simulate(
        Work(
            compute=compute,
            read=batch / photos["one_reader_randaugment"]["images_per_second"],
            readers=plan.cores,
            cores=plan.cores * min(count, Cluster.per_machine),
            collective=collective,
            jitter=[1 + gpu.spread * (share - 1) for share in spread],
        ),
        cluster,
        steps=48,
    )
    pair = photos["two_readers"]
    starting = pair["start_seconds"] - 4 * READ_BATCH / pair["images_per_second"]
    reading_one = 1 / (plan.cores * photos["one_reader"]["images_per_second"])
    judged = max(reading_one, 1 / (3 * gpu.speed))
    save = constants["state"][model]["seconds"]
    epoch = (
        IMAGES / (batch * count) * step.seconds
        + 2 * (VALIDATION / count * judged + starting)
        + save
    )
    begin = IMAGES / (photos["decoded_per_second"] * plan.cores)
    between = GPU_SECONDS_BETWEEN_FAILURES / count
    factor = interruption_factor(save, SAVE_EVERY, between, begin)
    return {
        "gpus": count,
        "batch": batch,
        "images_per_second": batch * count / step.seconds,
        "step": {name: 1000 * value for name, value in asdict(step).items()},
        "begin_seconds": begin,
        "epoch_seconds": epoch,
        "hours": (begin + EPOCHS * epoch) * factor / 3600,
        "best_save_interval": best_interval(save, between),
    }


def network_of(gigabits: float, constants: dict, latency: float | None = None) -> Link:
    """A network between machines at its line's rate."""
    measured = constants["collectives"]["2"]["latency"]
    return Link(measured if latency is None else latency, gigabits * 1e9 / 8)


def curve(options: argparse.Namespace) -> None:
    del options
    result = json.loads(RESULT.read_text())
    constants = result["constants"]
    result["check"] = check(result)
    known = gpus(MODEL)
    result["gpu_bounds"] = {name: asdict(gpu) for name, gpu in known.items()}
    result["curve"] = {
        plan.title: {
            **asdict(plan),
            "rows": {
                name: [foretell(plan, gpu, count, constants) for count in COUNTS]
                for name, gpu in known.items()
            },
        }
        for plan in (AS_IT_IS, MENDED)
    }
    # One change at a time, on the plan as it is.
    changes = {
        "as it is": {},
        "short side 256": {"photos": "short side 256"},
        "32 cores a GPU": {"cores": 32},
        "8 cores a GPU": {"cores": 8},
        "batch norm not synchronised": {"synchronised": False},
        "gradients summed in bf16": {"bytes_each": 2},
        "1 Gb/s": {"gigabits": 1},
        "25 Gb/s": {"gigabits": 25},
        "100 Gb/s": {"gigabits": 100},
        "10 µs between machines": {"latency": 1e-5},
        "batches of 8,192": {"most": 8192},
        "all mended": asdict(MENDED),
    }
    result["changes"] = {
        name: {
            str(count): foretell(
                replace(AS_IT_IS, **{**change, "title": name}), known["middle"], count, constants
            )["hours"]
            for count in (8, 32, 256)
        }
        for name, change in changes.items()
    }
    result["cores_a_gpu"] = {
        model: {
            photos: {
                name: gpu.speed / constants["photos"][photos][how]["images_per_second"]
                for name, gpu in gpus(model).items()
            }
            for photos in (AS_IT_IS.photos, MENDED.photos)
            for how in ("one_reader_randaugment",)
        }
        for model in TRAINED
    }
    result["collectives_ms"] = {
        f"{gigabits:g} Gb/s": {
            str(count): waits(count, gigabits, constants) for count in (2, 8, 16, 64, 256)
        }
        for gigabits in (1, 10, 25, 100)
    }
    write(result)
    draw(json.loads(RESULT.read_text()), ROOT / "docs" / "scale.svg")
    for row in result["check"]:
        print({key: rounded(value) for key, value in row.items()})


def waits(count: int, gigabits: float, constants: dict) -> dict[str, float]:
    """Milliseconds of the collectives of a step of 1.0-224."""
    spec = MobileNetSpec.parse(MODEL)
    cluster = Cluster(count, INSIDE, network_of(gigabits, constants))
    fp32, bf16 = (gradient_buckets(spec, size)[-1] for size in (4, 2))
    return {
        "gradients_fp32": 1000 * cluster.all_reduce(fp32),
        "gradients_bf16": 1000 * cluster.all_reduce(bf16),
        "batch_norm": 1000 * norm_seconds(spec, cluster),
    }


def draw(result: dict, path: Path) -> None:
    """Hours by GPUs, between the bounds, and where a step's time goes."""
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "scale"})
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    hours, parts = figure.subplots(1, 2)
    for (title, plan), colour in zip(result["curve"].items(), ("#b3306b", "#0b7a4b"), strict=True):
        slow, middle, fast = (
            [row["hours"] for row in plan["rows"][name]] for name in ("slow", "middle", "fast")
        )
        hours.fill_between(COUNTS, slow, fast, color=colour, alpha=0.15, linewidth=0)
        hours.plot(COUNTS, middle, color=colour, marker="o", markersize=4, label=title)
        if title == MENDED.title:
            ideal = [middle[0] / count for count in COUNTS]
            hours.plot(COUNTS, ideal, color="#777777", linestyle=":", label="one GPU's, divided")
    hours.set(xlabel="GPUs", ylabel="hours", title=f"{EPOCHS} epochs of ImageNet, {MODEL}")
    hours.set_xscale("log", base=2)
    hours.set_yscale("log")
    hours.set_xticks(COUNTS, [str(count) for count in COUNTS])
    hours.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    hours.legend(frameon=False)
    rows = result["curve"][AS_IT_IS.title]["rows"]["middle"]
    places, bottom = np.arange(len(COUNTS)), np.zeros(len(COUNTS))
    colours = {
        "compute": "#0b7a4b",
        "data": "#e0a526",
        "stragglers": "#9aa0a6",
        "collective": "#b3306b",
    }
    names = {
        "compute": "computes",
        "data": "waits for photos",
        "stragglers": "waits for the slowest",
        "collective": "waits for sums",
    }
    for name, colour in colours.items():
        values = np.array([row["step"][name] for row in rows])
        if not values.any():
            continue
        parts.bar(places, values, bottom=bottom, color=colour, label=names[name], width=0.7)
        bottom += values
    parts.set(xlabel="GPUs", ylabel="milliseconds", title="A step, as it is, middle of the bounds")
    parts.set_xticks(places, [str(count) for count in COUNTS])
    parts.legend(frameon=False)
    for axes in (hours, parts):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    measuring = verbs.add_parser("measure")
    measuring.add_argument("--only", nargs="*", default=PARTS, choices=PARTS)
    hidden = verbs.add_parser("part")
    hidden.add_argument("name")
    hidden.add_argument("--model")
    verbs.add_parser("curve")
    for verb in (measuring, hidden):
        verb.add_argument("--shared", type=Path, required=True)
        verb.add_argument("--scratch", type=Path, default=Path("runs/scale"))
    options = parser.parse_args()
    {"measure": measure, "part": run_part, "curve": curve}[options.verb](options)


if __name__ == "__main__":
    main()
