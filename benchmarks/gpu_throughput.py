"""Training speed on a GPU: precision, memory layout and compilation, one by one and together.

    python benchmarks/gpu_throughput.py --data CIFAR10 [--model 1.0-32-s8] [--batch-size 256] [--seconds 6]

CIFAR10 is a folder of Parquet files in the Hub's layout. A step is what `mobilenets train` does on a GPU: a batch
taken from images in the GPU's memory and distorted there, forward, backward, SGD. Each combination is warmed up
(and compiled) first, then timed to a synchronised end. Prints images/s and the ratio to plain fp32, and
writes docs/results/gpu_throughput.json.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from mobilenets import create_model
from mobilenets.architecture import MobileNetSpec, Preprocessing
from mobilenets.data.loaders import Loader, make_loader
from mobilenets.data.sources import open_source
from mobilenets.data.transforms import Distortion
from mobilenets.training.device import determinism, provenance

WARM_UP = 20
DISTORTION = Distortion(shift=0.125)


@dataclass(frozen=True)
class Way:
    """A way to compute the same steps."""

    bf16: bool
    channels_last: bool
    compiled: bool

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "NCHW"
        compiled = ", compiled" * self.compiled
        return f"{'bf16' if self.bf16 else 'fp32'}, {layout}{compiled}"


WAYS = [
    Way(bf16, channels_last, compiled)
    for bf16, channels_last, compiled in (
        (False, False, False),
        (False, True, False),
        (True, False, False),
        (True, True, False),
        (False, False, True),
        (True, True, True),
    )
]


def images_per_second(way: Way, model_name: str, loader: Loader, seconds: float) -> float:
    layout = torch.channels_last if way.channels_last else torch.contiguous_format
    torch.manual_seed(0)
    model = create_model(model_name, num_classes=10).train().cuda().to(memory_format=layout)
    stepped = torch.compile(model) if way.compiled else model
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    steps = images = 0
    epoch, began = 0, 0.0
    while True:
        for batch in loader.batches(epoch):
            if steps == WARM_UP:
                torch.cuda.synchronize()
                began = time.perf_counter()
            inputs_NCHW = batch.images_NCHW.contiguous(memory_format=layout)
            with torch.autocast("cuda", torch.bfloat16, enabled=way.bf16):
                loss = F.cross_entropy(stepped(inputs_NCHW), batch.targets_N)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            images += len(batch) * (steps > WARM_UP)
            # A queue that is waited for now and then is never longer than the time that is left.
            if steps % 10 == 0:
                torch.cuda.synchronize()
                if steps > WARM_UP and time.perf_counter() - began > seconds:
                    assert loss.isfinite()
                    return images / (time.perf_counter() - began)
        epoch += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="1.0-32-s8")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--output", type=Path, default=Path("docs/results/gpu_throughput.json"))
    options = parser.parse_args()
    spec = MobileNetSpec.parse(options.model)
    preprocessing = Preprocessing(spec.height, spec.across, crop_fraction=1.0)
    split = open_source(str(options.data)).split("train")
    loader, _ = make_loader(split, preprocessing, options.batch_size, DISTORTION, drop_last=True)
    loader.to(torch.device("cuda"))
    speeds: dict[str, int] = {}
    for way in WAYS:
        torch.compiler.reset()
        with determinism(False):
            speed = images_per_second(way, options.model, loader, options.seconds)
        speeds[str(way)] = round(speed)
        first = next(iter(speeds.values()))
        print(f"{way}: {speed:,.0f} images/s, {speed / first:.2f} times", flush=True)
        # Compiling takes minutes: what is measured stays, should time run out.
        content = {
            "command": f"python benchmarks/gpu_throughput.py --data CIFAR10 --model {options.model} "
            f"--batch-size {options.batch_size}",
            "model": options.model,
            "batch_size": options.batch_size,
            "images_per_second": speeds,
            **provenance(torch.device("cuda")),
        }
        options.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
