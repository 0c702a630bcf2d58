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

from mobilenets.data.images import BadImageError
from mobilenets.data.parts import Part
from mobilenets.data.video import Frame, Pictures
from mobilenets.deploy.bundle import proven_file
from mobilenets.deploy.target import FLOAT, TARGETS
from mobilenets.runtimes.model import Model, find_runtime
from mobilenets.runtimes.timing import time_once
from mobilenets.training.run import Run
from mobilenets.training.stages import Stages
from mobilenets.training.task import Form, Prediction

BATCH = 32
# Frames of a large video take much memory.
FRAMES = 8
TORCH = "torch"
# So many calls tell which runtime is the fastest.
TRIALS = 5


# Inputs (P, C, H, W), and what of the image they are.
Prepared = tuple[Tensor, tuple[Part, ...]]


@dataclass(frozen=True)
class Engine:
    """A runtime with a run's network in it: a batch (N, C, H, W) gives outputs of a form."""

    runtime: str
    outputs: Callable[[Tensor], NDArray[np.float32]]
    form: Form = "network"


def find_engine(run: Run, wanted: str = "auto", *, batch: int = 1, threads: int = 0) -> Engine:
    """The runtime that a run predicts with.

    Args:
        wanted: `auto` takes the fastest on this machine of those for which the run was exported in floats and
            proven equal, and `torch` where there are none.
        batch: images at a time, for which it is to be fast.
        threads: how many cores one call of an export may use; 0 leaves it to the runtime.

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
        files = {
            target.runtime: found for target in asked if (found := proven_file(run, target, FLOAT))
        }
        for name, (file, form) in files.items():
            try:
                engines.append(_engine(name, find_runtime(name).open(file, threads), form))
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


def _engine(runtime: str, model: Model, form: Form) -> Engine:
    return Engine(runtime, lambda inputs_NCHW: model.run(inputs_NCHW.contiguous().numpy()), form)


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
    side: int | None = None,
    score: float | None = None,
    readers: int | None = None,
) -> Iterator[tuple[Path | Frame | BadImageError, Prediction | BadImageError]]:
    """What a run says of each image, in order, or what is wrong with it.

    Args:
        images: files, frames, and what is known to be wrong; they are asked for in a thread of their own.
        batch_size: images that go through the network together; more is faster, and an answer waits for all of them.
        stages: notes how long this thread waited for `images`, for the `network`, and for all else.
        side: of parts that large images are also looked at in, in pixels.
        score: the least that a box is told with.
        over: set when no more answers are wanted, so that who gives the images can stop looking for the next.
        readers: threads that read images; as many as there are cores where None.
    """
    stages, over = stages or Stages(), over or Event()
    task = run.task.reading(engine.form, score)
    waiting = iter(images)

    def prepare(image: Path | Frame | BadImageError) -> Prepared | BadImageError:
        if isinstance(image, BadImageError):
            return image
        try:
            return run.prepare_parts(image.pixels_HWC if isinstance(image, Frame) else image, side)
        except BadImageError as error:
            return error

    with _readers(1) as ahead, _readers(readers or os.cpu_count()) as pool:

        def take() -> list[tuple[Path | Frame | BadImageError, Prepared | BadImageError]]:
            # One image alone may have hundreds of parts.
            group = list(islice(waiting, batch_size if side is None else 1))
            return list(zip(group, pool.map(prepare, group), strict=True))

        following = ahead.submit(take)
        try:
            while group := following.result():
                stages.lap("images")
                following = ahead.submit(take)
                readable = [one for _, one in group if not isinstance(one, BadImageError)]
                inputs = [inputs_PCHW for inputs_PCHW, _ in readable]
                whole = inputs[0] if len(inputs) == 1 else torch.cat(inputs) if inputs else None
                pieces = () if whole is None else torch.split(whole, BATCH)
                outputs = [engine.outputs(piece_NCHW) for piece_NCHW in pieces]
                stages.lap("network")
                predictions = iter([one for some in outputs for one in task.decode(some)])
                for image, one in group:
                    if isinstance(one, BadImageError):
                        yield image, one
                        continue
                    _, parts = one
                    yield image, task.join(list(islice(predictions, len(parts))), parts)
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
