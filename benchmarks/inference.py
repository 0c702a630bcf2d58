"""How fast predictions are against the peers, in one run on one machine.

    python benchmarks/inference.py --shared SHARED [--threads 2] [--seconds 60] [--rounds 3]

SHARED holds the ImageNet weights of 1.0-224 and `data/imagenet_samples.tar`. Needs timm and the extras litert,
executorch and openvino. Three comparisons, written to docs/results/inference.json:

- one image through 1.0-224 in every runtime, in floats and in int8, in turns with ONNX Runtime used plainly on the same file; before and after
  them timm's eager `mobilenetv1_100`, of which the quicker counts;
- `predict` on 1,000 photos from file to label, in turns with timm's usual loop: Pillow, its own transform, batches of 32, eager;
- int8 against floats in the same runtime for four sizes of the family.

timm runs in a process of its own: what ours does for its memory is of no help to it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exports import EXECUTED, PUBLISHED, run_of, samples
from mobilenets.deploy.bundle import Quantisation, export
from mobilenets.deploy.evidence import find_calibration, find_evidence
from mobilenets.deploy.peers import PEERS
from mobilenets.deploy.predictor import BATCH, find_engine, predict_images
from mobilenets.deploy.target import FLOAT, INT8, TARGETS
from mobilenets.runtimes.timing import Timing, time_calls
from mobilenets.training.device import provenance
from mobilenets.training.memory import keep_freed_memory
from mobilenets.training.run import Run
from mobilenets.training.stages import Stages

LARGEST = PUBLISHED[-1]


def bundle_of(run: Run, target: str, precision: str, images: list[str]) -> Path:
    """The model file, exported unless it is there."""
    name = target if precision == FLOAT else f"{target}-{precision}"
    file = run.folder / name / TARGETS[target].file
    if not file.exists():
        how = None
        if precision == INT8:
            how = Quantisation(calibration_NCHW=find_calibration(run, images), max_loss=100.0)
        export(
            run,
            TARGETS[target],
            file.parent,
            find_evidence(run, images, limit=100),
            how,
            overwrite=True,
        )
    return file


class Plain:
    """ONNX Runtime as its users open it, with that many threads."""

    def __init__(self, file: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(file), options)

    def run(self, images: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"images": images})[0]


def one_image(run: Run, images: list[str], threads: int, seconds: float) -> dict[str, Timing]:
    """Every runtime and precision in turns, and the peers."""
    spec = run.spec
    random = np.random.default_rng(0).standard_normal(
        (1, 3, spec.height, spec.across), dtype=np.float32
    )
    models = {}
    for target in EXECUTED:
        for precision in (FLOAT, INT8):
            file = bundle_of(run, target, precision, images)
            models[f"{target} {precision}"] = TARGETS[target].open(file, threads)
    if str(spec) == "1.0-224":
        models["plain onnxruntime"] = Plain(bundle_of(run, "onnx", FLOAT, images), threads)
    calls = {name: (lambda model=model: model.run(random)) for name, model in models.items()}
    if str(spec) != "1.0-224":
        return time_calls(calls, seconds=seconds)
    before = apart(eager, random, threads, seconds / 4)
    timings = time_calls(calls, seconds=seconds)
    after = apart(eager, random, threads, seconds / 4)
    quicker = min((before, after), key=lambda timing: timing.median_ms)
    return {**timings, "timm eager": quicker}


def eager(images: np.ndarray, threads: int, seconds: float) -> Timing:
    """What a call of the peer's network takes its users."""
    model = PEERS["timm"].open(threads)
    return time_calls({"timm": lambda: model.run(images)}, seconds=seconds)["timm"]


def apart(call: Callable, *arguments: object) -> Any:
    """What a function gives in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(call, *arguments).result()


def usual_loop(paths: list[Path]) -> float:
    """Seconds of what timm's documentation does: Pillow, its transform, batches of 32, eager."""
    import timm
    from PIL import Image

    model = timm.create_model("mobilenetv1_100", pretrained=False).eval()
    transform = timm.data.create_transform(
        **timm.data.resolve_model_data_config(model), is_training=False
    )
    started = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, len(paths), 32):
            group = paths[start : start + 32]
            batch = torch.stack([transform(Image.open(path).convert("RGB")) for path in group])
            model(batch).softmax(1).topk(5)
    return time.perf_counter() - started


def ours(run: Run, paths: list[Path]) -> tuple[float, str, str]:
    """Seconds of `predict` from file to labels, the runtime, the shares of its stages."""
    engine, stages = find_engine(run, batch=BATCH), Stages()
    started = time.perf_counter()
    for _ in predict_images(run, paths, engine, stages=stages):
        pass
    return time.perf_counter() - started, engine.runtime, str(stages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/exports"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/inference.json"))
    options = parser.parse_args()
    keep_freed_memory()
    options.runs.mkdir(parents=True, exist_ok=True)
    paths = samples(options.shared, options.runs)
    images = [str(options.runs / "imagenet_samples")]
    latency = {}
    for name in PUBLISHED:
        run = Run.load(run_of(name, options.shared, options.runs))
        seconds = options.seconds if name == LARGEST else options.seconds / 4
        timings = one_image(run, images, options.threads, seconds)
        latency[name] = {
            what: {
                "median_ms": t.median_ms,
                "lower_ms": t.lower_ms,
                "upper_ms": t.upper_ms,
                "calls": t.calls,
            }
            for what, t in timings.items()
        }
        for what, timing in timings.items():
            print(name, what, timing, flush=True)
    run = Run.load(run_of(LARGEST, options.shared, options.runs))
    both = []
    for _ in range(options.rounds):
        both.append((ours(run, paths), apart(usual_loop, paths)))
        print("photos", both[-1], flush=True)
    result = {
        "command": f"python benchmarks/inference.py --shared SHARED --threads {options.threads}",
        "threads": options.threads,
        "latency": latency,
        "photos": {
            "images": len(paths),
            "runtime": both[0][0][1],
            "stages": both[0][0][2],
            "ours_seconds": [mine[0] for mine, _ in both],
            "timm_seconds": [theirs for _, theirs in both],
            "times": statistics.median(theirs / mine[0] for mine, theirs in both),
        },
        **provenance(torch.device("cpu")),
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
