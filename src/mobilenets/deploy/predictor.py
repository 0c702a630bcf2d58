"""Predictions the fast way: images are read in threads while the network works on those before them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Event

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobilenets.data.files import read_json
from mobilenets.data.images import BadImageError
from mobilenets.data.video import Frame, Pictures
from mobilenets.deploy.bundle import MANIFEST, checksums, folder_of
from mobilenets.deploy.target import FLOAT, TARGETS, Target
from mobilenets.runtimes.model import Model, find_runtime
from mobilenets.runtimes.timing import time_once
from mobilenets.training.run import Run
from mobilenets.training.stages import Stages
from mobilenets.training.task import Prediction

BATCH = 32
# Frames of a large video take much memory.
FRAMES = 8
TORCH = "torch"
# So many calls tell which runtime is the fastest.
TRIALS = 5


@dataclass(frozen=True)
class Engine:
    """A runtime with a run's network in it: a batch (N, C, H, W) gives outputs (N, K)."""

    runtime: str
    outputs: Callable[[Tensor], NDArray[np.float32]]


def find_engine(run: Run, wanted: str = "auto", *, batch: int = 1) -> Engine:
    """The runtime that a run predicts with.

    Args:
        wanted: `auto` takes the fastest on this machine of those for which the run was exported in floats and
            proven equal, and `torch` where there are none.
        batch: images at a time, for which it is to be fast.

    Raises:
        ValueError: the runtime is unknown, or there is no export of these weights that was proven.
        ImportError: it is not installed.
    """
    targets = {target.runtime: target for target in TARGETS.values() if target.runtime}
    if wanted not in ("auto", TORCH, *targets):
        raise ValueError(f"--runtime is auto, {TORCH}, {', '.join(targets)}, not {wanted!r}")
    engines: list[Engine] = []
    if wanted != TORCH:
        asked = targets.values() if wanted == "auto" else [targets[wanted]]
        files = {target.runtime: file for target in asked if (file := _proven(run, target))}
        for name, file in files.items():
            try:
                engines.append(_engine(name, find_runtime(name).open(file)))
            except (ValueError, ImportError):
                # One that is missing, or can't read its file any more, is none of those to choose from.
                if wanted != "auto":
                    raise
    if engines:
        return engines[0] if len(engines) == 1 else _fastest(engines, run, batch)
    if wanted not in ("auto", TORCH):
        raise ValueError(
            f"{run.folder} has no export of its weights that was proven equal: "
            f"mobilenets export {run.folder} --to {targets[wanted].name} --overwrite"
        )
    return Engine(TORCH, lambda inputs_NCHW: run.outputs(inputs_NCHW).numpy())


def _engine(runtime: str, model: Model) -> Engine:
    return Engine(runtime, lambda inputs_NCHW: model.run(inputs_NCHW.contiguous().numpy()))


def _fastest(engines: Sequence[Engine], run: Run, batch: int) -> Engine:
    """The one whose quickest call is the quickest, after one to warm up."""
    spec = run.spec
    images_NCHW = torch.zeros(batch, spec.input_channels, spec.height, spec.across)

    def milliseconds(engine: Engine) -> float:
        return min(time_once(lambda: engine.outputs(images_NCHW)) for _ in range(TRIALS + 1))

    return min(engines, key=milliseconds)


def batch_for(pictures: Pictures) -> int:
    """How many of them go through the network together; a camera's frames are answered one by one."""
    if pictures.live:
        return 1
    most = FRAMES if pictures.videos else BATCH
    return most if pictures.count is None else max(1, min(pictures.count, most))


def predict_images(
    run: Run,
    images: Iterable[Path | Frame | BadImageError],
    engine: Engine,
    *,
    batch_size: int = BATCH,
    stages: Stages | None = None,
    over: Event | None = None,
) -> Iterator[tuple[Path | Frame | BadImageError, Prediction | BadImageError]]:
    """What a run says of each image, in order, or what is wrong with it.

    Args:
        images: files, frames, and what is known to be wrong; they are asked for in a thread of their own.
        batch_size: images that go through the network together; more is faster, and an answer waits for all of them.
        stages: notes how long this thread waited for `images`, for the `network`, and for all else.
        over: set when no more answers are wanted, so that who gives the images can stop looking for the next.
    """
    stages, over = stages or Stages(), over or Event()
    waiting = iter(images)

    def prepare(image: Path | Frame | BadImageError) -> Tensor | BadImageError:
        if isinstance(image, BadImageError):
            return image
        try:
            return run.prepare(image.pixels_HWC if isinstance(image, Frame) else image)
        except BadImageError as error:
            return error

    with _readers(1) as ahead, _readers(os.cpu_count()) as pool:

        def take() -> list[tuple[Path | Frame | BadImageError, Tensor | BadImageError]]:
            group = list(islice(waiting, batch_size))
            return list(zip(group, pool.map(prepare, group), strict=True))

        following = ahead.submit(take)
        try:
            while group := following.result():
                stages.lap("images")
                following = ahead.submit(take)
                readable = [tensor for _, tensor in group if isinstance(tensor, Tensor)]
                outputs = engine.outputs(torch.cat(readable)) if readable else None
                stages.lap("network")
                predictions = iter([] if outputs is None else run.task.decode(outputs))
                for image, tensor in group:
                    yield image, tensor if isinstance(tensor, BadImageError) else next(predictions)
                stages.count(len(readable))
                stages.lap("labels")
        finally:
            over.set()
            # What is still being taken needs the other threads.
            following.exception()


@contextmanager
def _readers(count: int | None) -> Iterator[ThreadPoolExecutor]:
    """Threads that read one image at a time each: PyTorch's own would only get into their way."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        # Threads that others start later take the number that was set last.
        torch.set_num_threads(before)


def _proven(run: Run, target: Target) -> Path | None:
    """A float file whose manifest says that it is equal, of just these weights and bytes."""
    folder = folder_of(run, target, FLOAT)
    file = folder / target.file
    try:
        manifest = read_json(folder / MANIFEST)
        proven = (
            manifest["parity"]["holds"] is True
            and manifest.get("weights_sha256") == run.weights_sha256
            and manifest.get("sha256") == checksums(file)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return file if proven and file.exists() else None
