"""Training speed at 32x32, ours against the plain form, in one run and in turns.

    python benchmarks/train_throughput.py [--data DATA] [--photos PHOTOS] [--seconds S] [--rounds N]

Width 1.0, s16, 10 classes, fp32, SGD. "Plain" is what a tutorial writes: NCHW, batches of 256, a
DataLoader over torchvision transforms on PIL images. "Ours" is what `mobilenets train` does: a
`Session` of the `cifar` recipe without its average (the plain form has none), channels last, batches
of 64, images in memory, freed memory kept. Prints images/s, the ratio, the share of the machine's fp32
limit (two large matrix products give it, three passes a step, two FLOPs a mult-add), where the
time of a step goes, and the memory of the process. `--photos` adds a folder of photos at 224 pixels,
read by worker processes: what a step waits for. Data: a Parquet folder of CIFAR-10, or random images
of its size without --data.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from mobilenets import create_model, tasks
from mobilenets.architecture import MobileNetSpec, Preprocessing
from mobilenets.cost import cost
from mobilenets.data.loaders import make_loader
from mobilenets.data.sources import open_source
from mobilenets.data.splits import ArrayImages, Split
from mobilenets.data.transforms import Distortion
from mobilenets.training.memory import keep_freed_memory
from mobilenets.training.processes import ALONE
from mobilenets.training.run import Run
from mobilenets.training.session import Session
from mobilenets.training.stages import Stages
from mobilenets.training.task import TrainingData

MODEL, PHOTO_MODEL = "1.0-32-s16", "0.5-224"
TARGET, LIMIT_TARGET, DATA_TARGET = 3.0, 0.6, 0.05


class Pictures(Dataset):
    """PIL images with a tutorial's transforms."""

    def __init__(self, split: Split) -> None:
        from PIL import Image
        from torchvision import transforms

        self.images = [
            Image.fromarray(split.images.read(i, 3).permute(1, 2, 0).numpy())
            for i in range(len(split))
        ]
        self.targets = split.targets
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * 3, (0.5,) * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), int(self.targets[index])


def load(data: str | None) -> Split:
    """Up to 8,192 training images."""
    if data is not None:
        split = open_source(data).split("train")
        return split.take(list(range(min(len(split), 8192))))
    import numpy as np

    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (4096, 32, 32, 3), dtype=np.uint8)
    return Split(ArrayImages(pixels, "random"), random.integers(0, 10, 4096))


def plain(split: Split, seconds: float) -> dict[str, float]:
    """The tutorial's loop."""
    model = create_model(MODEL, num_classes=10).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(Pictures(split), batch_size=256, shuffle=True, drop_last=True)
    clock = Clock(seconds)
    while True:
        for images_NCHW, targets_N in loader:
            loss = F.cross_entropy(model(images_NCHW), targets_N)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if clock.ended(len(targets_N)):
                return {"images_per_second": clock.speed}


def ours(split: Split, seconds: float, model: str, recipe_name: str) -> dict[str, float]:
    """Steps of a training session, as `mobilenets train` takes them."""
    keep_freed_memory()
    kind, spec = tasks.find("classification"), MobileNetSpec.parse(model)
    recipe = kind.recipes()[recipe_name].override({"ema_decay": None, "batch_size": 64})
    labels = tuple(str(target) for target in range(int(split.targets.max()) + 1))
    task = kind(labels, Preprocessing(spec.height, spec.across, crop_fraction=1.0))
    distortion = Distortion(**recipe.augmentation.model_dump())
    loader, _ = make_loader(split, task.preprocessing, 64, distortion)
    run = Run.create("none", task, spec, recipe, {}, write=False)
    session = Session(
        run, TrainingData(loader, loader, {}), recipe, torch.device("cpu"), ALONE, None
    )
    clock, stages, epoch = Clock(seconds), Stages(), 0
    while True:
        stages.restart()
        for batch in loader.batches(epoch):
            stages.lap("data")
            session.step(batch, 1.0, stages)
            was_warm = clock.warm
            if clock.ended(len(batch)):
                return {"images_per_second": clock.speed, **stages.shares()}
            if clock.warm and not was_warm:
                stages = Stages()
            stages.restart()
        epoch += 1


class Clock:
    """Counts images after a warm-up of a quarter of the time."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.warm, self.images, self.started = seconds, False, 0, time.perf_counter()

    def ended(self, images: int) -> bool:
        self.images += images
        spent = time.perf_counter() - self.started
        if not self.warm and spent > self.seconds / 4:
            self.warm, self.images, self.started = True, 0, time.perf_counter()
            return False
        self.speed = self.images / max(spent, 1e-9)
        return self.warm and spent > self.seconds


def matrix_limit() -> float:
    """The best of ten large matrix products, in GFLOP/s."""
    a, b = torch.randn(2, 2048, 2048)
    times = []
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * 2048**3 / min(times) / 1e9


def measure(options: argparse.Namespace) -> None:
    """One measurement in a process of its own."""
    torch.manual_seed(0)
    if options.kind == "limit":
        result = {"gflops": matrix_limit()}
    elif options.kind == "plain":
        result = plain(load(options.data), options.seconds)
    elif options.kind == "photos":
        split = open_source(options.photos).split("train")
        result = ours(split, options.seconds, PHOTO_MODEL, "modern")
    else:
        result = ours(load(options.data), options.seconds, MODEL, "cifar")
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result))


def rounds(kind: str, options: argparse.Namespace) -> Iterator[dict[str, float]]:
    command = [sys.executable, __file__, "--kind", kind, "--seconds", str(options.seconds)]
    for name in ("data", "photos"):
        if getattr(options, name):
            command += [f"--{name}", getattr(options, name)]
    while True:
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        yield json.loads(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a Parquet folder of CIFAR-10")
    parser.add_argument("--photos", help="a folder of photos, such as hymenoptera")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        measure(options)
        return
    flops = 3 * 2 * cost(MobileNetSpec.parse(MODEL), num_classes=10).mult_adds
    sources = {kind: rounds(kind, options) for kind in ("limit", "plain", "ours")}
    results: dict[str, list[dict[str, float]]] = {kind: [] for kind in sources}
    for number in range(options.rounds):
        for kind, source in sources.items():
            results[kind].append(next(source))
        limit, slow, fast = (results[kind][-1] for kind in ("limit", "plain", "ours"))
        reached = fast["images_per_second"] * flops / limit["gflops"] / 1e9
        print(
            f"round {number + 1}: plain {slow['images_per_second']:.0f}, ours "
            f"{fast['images_per_second']:.0f} images/s, "
            f"{fast['images_per_second'] / slow['images_per_second']:.2f} times; "
            f"{limit['gflops']:.0f} GFLOP/s possible, {100 * reached:.0f} % reached; data "
            f"{100 * fast['data']:.1f} % of a step; {slow['peak_mb']:.0f} and "
            f"{fast['peak_mb']:.0f} MB",
            flush=True,
        )
    middle = {
        kind: statistics.median(result["images_per_second"] for result in results[kind])
        for kind in ("plain", "ours")
    }
    limit = statistics.median(result["gflops"] for result in results["limit"])
    data = statistics.median(result["data"] for result in results["ours"])
    print(
        f"{MODEL} on {torch.get_num_threads()} threads, medians: plain {middle['plain']:.0f}, ours "
        f"{middle['ours']:.0f} images/s, {middle['ours'] / middle['plain']:.2f} times (aim "
        f"{TARGET:g}); {100 * middle['ours'] * flops / limit / 1e9:.0f} % of the fp32 limit (aim "
        f"{100 * LIMIT_TARGET:.0f}); data {100 * data:.1f} % of a step (aim under "
        f"{100 * DATA_TARGET:.0f})"
    )
    if options.photos:
        photos = next(rounds("photos", options))
        print(
            f"{PHOTO_MODEL} on photos: {photos['images_per_second']:.1f} images/s, a step waits for "
            f"data {100 * photos['data']:.1f} % of its time; {photos['peak_mb']:.0f} MB"
        )


if __name__ == "__main__":
    main()
