"""Training speed at 32x32, ours against the plain form, in one run and in turns.

    python benchmarks/train_throughput.py [--data DATA] [--seconds S]

Width 1.0, s16, 10 classes, fp32, SGD. "Plain" is what a tutorial writes: NCHW, batches of 256, a
DataLoader over torchvision transforms on PIL images. "Ours" is what `mobilenets train` does: channels
last, batches of 64, images in memory, freed memory kept. Prints images/s, the ratio, and the memory
of the process. Data: a Parquet folder of CIFAR-10, or random images of its size without --data.
"""

from __future__ import annotations

import argparse
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
from mobilenets.data.loaders import MemoryLoader, make_loader
from mobilenets.data.sources import Split, open_source
from mobilenets.data.transforms import Distortion
from mobilenets.training.memory import keep_freed_memory
from mobilenets.training.optimizers import build_optimizer

MODEL = "1.0-32-s16"
TARGET = 3


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

    from mobilenets.data.sources import ArrayImages

    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (4096, 32, 32, 3), dtype=np.uint8)
    return Split(ArrayImages(pixels, "random"), random.integers(0, 10, 4096))


def plain_batches(split: Split) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    loader = DataLoader(Pictures(split), batch_size=256, shuffle=True, drop_last=True)
    while True:
        yield from loader


def our_batches(split: Split) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    distortion = Distortion(mirror=True, shift=0.125)
    preprocessing = Preprocessing(32, 32, crop_fraction=1.0)
    loader, _ = make_loader(split, preprocessing, 64, distortion)
    assert isinstance(loader, MemoryLoader)
    epoch = 0
    while True:
        for batch in loader.batches(epoch):
            batch = batch.to(torch.device("cpu"))
            yield batch.images_NCHW, batch.targets_N
        epoch += 1


def measure(kind: str, data: str | None, seconds: float) -> None:
    """Train for a while and print images/s and the peak memory; run in a process of its own."""
    torch.manual_seed(0)
    split = load(data)
    model = create_model(MODEL, num_classes=10).train()
    if kind == "ours":
        keep_freed_memory()
        model = model.to(memory_format=torch.channels_last)
        recipe = tasks.find("classification").recipes()["cifar"]
        optimizer = build_optimizer(model, recipe.optimizer)
        batches = our_batches(split)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        batches = plain_batches(split)
    images, started = 0, time.perf_counter()
    warm = False
    while True:
        images_NCHW, targets_N = next(batches)
        loss = F.cross_entropy(model(images_NCHW), targets_N)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        images += len(targets_N)
        if not warm and time.perf_counter() - started > seconds / 4:
            warm, images, started = True, 0, time.perf_counter()
        elif warm and time.perf_counter() - started > seconds:
            break
    speed = images / (time.perf_counter() - started)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{speed:.1f} {memory:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a Parquet folder of CIFAR-10")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", choices=("plain", "ours"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        measure(options.kind, options.data, options.seconds)
        return
    speeds: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(options.rounds):
        for kind, spent in speeds.items():
            command = [sys.executable, __file__, "--kind", kind, "--seconds", str(options.seconds)]
            command += ["--data", options.data] if options.data else []
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            speed, memory = answer.split()
            spent.append(float(speed))
            print(f"{kind}: {speed} images/s, {memory} MB", flush=True)
    plain, ours = (statistics.median(speeds[kind]) for kind in ("plain", "ours"))
    spec = MobileNetSpec.parse(MODEL)
    print(
        f"{spec}: plain {plain:.0f}, ours {ours:.0f} images/s on {torch.get_num_threads()} threads: "
        f"{ours / plain:.2f} times, target {TARGET}"
    )


if __name__ == "__main__":
    main()
