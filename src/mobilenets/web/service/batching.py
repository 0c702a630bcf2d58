"""Images of concurrent requests through the network together.

They are read in threads as they come, and one more thread has the network. What was read while it worked is its next
batch, so that batches grow with the load, and an image that is alone does not wait.

Shapes: N images of a batch, P parts of an image, C channels, H height, W width.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mobilenets.data.images import BadImageError, read_image
from mobilenets.data.parts import Part
from mobilenets.deploy.predictor import Engine
from mobilenets.training.run import Run
from mobilenets.training.task import Prediction
from mobilenets.web.service.limits import FORMATS, Limits
from mobilenets.web.service.metrics import Metrics
from mobilenets.web.service.refusal import busy

Answer = dict[str, Any] | BadImageError


@dataclass(frozen=True)
class Upload:
    """An image file as it was sent, and what the client calls it."""

    name: str | None
    content: bytes


@dataclass(eq=False)
class _Item:
    """An image on its way; `prepared` are inputs (P, C, H, W) and what of the image they are."""

    upload: Upload | None
    score: float | None
    answer: asyncio.Future[Answer]
    prepared: tuple[torch.Tensor, tuple[Part, ...]] | BadImageError | None = field(default=None)


class Batcher:
    """Answers for images, many at a time; `start` and `stop` it in a running event loop."""

    def __init__(self, run: Run, engine: Engine, limits: Limits, metrics: Metrics) -> None:
        self._run = run
        self._engine = engine
        self._limits = limits
        self._metrics = metrics
        self._ready: deque[_Item] = deque()
        self._reading = 0
        self._waiting = 0
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Get the threads and the network ready.

        Raises:
            ValueError: the run's network or its export can't be used.
        """
        threads = torch.get_num_threads()
        self._loop = asyncio.get_running_loop()
        # PyTorch's own threads would only get into the way of those that read.
        self._readers = ThreadPoolExecutor(
            os.cpu_count(), "reader", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._large_reader = ThreadPoolExecutor(
            1, "large-reader", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._network = ThreadPoolExecutor(
            1, "network", initializer=torch.set_num_threads, initargs=(threads,)
        )
        self._threads = threads
        await self._loop.run_in_executor(self._network, self._warm_up)
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """End when nothing waits any more."""
        self._worker.cancel()
        await asyncio.wait([self._worker])
        for pool in (self._readers, self._large_reader, self._network):
            await asyncio.to_thread(pool.shutdown)
        # Threads that others start later take the number that was set last.
        torch.set_num_threads(self._threads)

    @property
    def waiting(self) -> int:
        """Images that are read or wait for the network."""
        return self._waiting

    async def answers(self, uploads: Sequence[Upload], score: float | None = None) -> list[Answer]:
        """What the run says of each image as `Prediction.to_dict`, or what is wrong with it; cancelled, none is asked any more.

        Args:
            score: the least that a box is told with.

        Raises:
            RefusalError: too many images wait already.
        """
        if self._waiting + len(uploads) > self._limits.waiting:
            raise busy(f"{self._waiting} images wait already: try again in a second")
        items = [_Item(upload, score, self._loop.create_future()) for upload in uploads]
        self._count(len(items))
        for item in items:
            item.answer.add_done_callback(self._done)
            self._reading += 1
            self._readers.submit(self._read, item)
        return await asyncio.gather(*(item.answer for item in items))

    def _count(self, more: int) -> None:
        self._waiting += more
        self._metrics.waiting.set(self._waiting)

    def _done(self, answer: asyncio.Future[Answer]) -> None:
        self._count(-1)
        if answer.cancelled() or answer.exception() is not None:
            outcome = "dropped"
        else:
            outcome = "unreadable" if isinstance(answer.result(), BadImageError) else "answered"
        self._metrics.images.labels(outcome).inc()

    def _read(self, item: _Item) -> None:
        """In a reader's thread."""
        assert item.upload is not None
        if _pixels(item.upload.content) > self._limits.large:
            self._large_reader.submit(self._read_now, item)
        else:
            self._read_now(item)

    def _read_now(self, item: _Item) -> None:
        upload, item.upload = item.upload, None
        assert upload is not None
        failed: Exception | None = None
        try:
            if not item.answer.cancelled():
                item.prepared = self._prepare(upload)
        except BadImageError as error:
            item.prepared = error
        # Such as memory that is not there; who asked is to be told, and the next image read.
        except Exception as error:
            failed = error
        self._loop.call_soon_threadsafe(self._was_read, item, failed)

    def _prepare(self, upload: Upload) -> tuple[torch.Tensor, tuple[Part, ...]]:
        pixels_CHW = read_image(
            upload.content,
            self._run.preprocessing.channel_count,
            upload.name or "the image",
            formats=FORMATS,
            most_pixels=self._limits.pixels,
        )
        shorter, longer = sorted(pixels_CHW.shape[1:])
        # It is scaled by its shorter side: a line of pixels would fill the memory.
        if longer > self._limits.longest * shorter:
            raise BadImageError(
                f"{upload.name or 'the image'}: longer than {self._limits.longest} times its width"
            )
        return self._run.prepare_pixels(pixels_CHW, None)

    def _was_read(self, item: _Item, failed: Exception | None) -> None:
        self._reading -= 1
        if not item.answer.done():
            if failed is not None:
                item.answer.set_exception(failed)
            elif isinstance(item.prepared, BadImageError):
                item.answer.set_result(item.prepared)
            else:
                self._ready.append(item)
        self._changed.set()

    async def _work(self) -> None:
        while True:
            items = await self._take()
            try:
                told = await self._loop.run_in_executor(self._network, self._predict, items)
            # Whatever it is, the next batch is to be answered.
            except Exception as error:
                for item in items:
                    if not item.answer.done():
                        item.answer.set_exception(error)
                continue
            for item, prediction in zip(items, told, strict=True):
                if not item.answer.done():
                    item.answer.set_result(prediction)

    async def _take(self) -> list[_Item]:
        """The next batch: images are waited for a moment where some are just being read."""
        until: float | None = None
        while True:
            self._changed.clear()
            if self._ready:
                now = self._loop.time()
                until = now + self._limits.wait_ms / 1000 if until is None else until
                if len(self._ready) >= self._limits.batch or not self._reading or now >= until:
                    items = [
                        self._ready.popleft()
                        for _ in range(min(self._limits.batch, len(self._ready)))
                    ]
                    items = [item for item in items if not item.answer.done()]
                    if items:
                        return items
                    until = None
                    continue
            try:
                async with asyncio.timeout_at(until):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _predict(self, items: Sequence[_Item]) -> list[dict[str, Any]]:
        """In the network's thread: one call for all."""
        inputs: list[torch.Tensor] = []
        places: list[tuple[Part, ...]] = []
        for item in items:
            assert isinstance(item.prepared, tuple)
            inputs.append(item.prepared[0])
            places.append(item.prepared[1])
        outputs = self._engine.outputs(inputs[0] if len(inputs) == 1 else torch.cat(inputs))
        self._metrics.batches.observe(len(items))
        scores = [item.score for item in items]
        return [
            self._run.task.join([prediction], parts).to_dict()
            for prediction, parts in zip(self._decode(outputs, scores), places, strict=True)
        ]

    def _decode(
        self, outputs: NDArray[np.float32], scores: Sequence[float | None]
    ) -> list[Prediction]:
        """Predictions of a batch, in which each image may have a least score of its own."""
        found: dict[int, Prediction] = {}
        for score in dict.fromkeys(scores):
            task = self._run.task.reading(self._engine.form, score)
            rows = [row for row, own in enumerate(scores) if own == score]
            chosen = outputs if len(rows) == len(scores) else outputs[rows]
            found.update(zip(rows, task.decode(chosen), strict=True))
        return [found[row] for row in range(len(scores))]

    def _warm_up(self) -> None:
        spec = self._run.spec
        for batch in (1, self._limits.batch):
            self._engine.outputs(torch.zeros(batch, spec.input_channels, spec.height, spec.across))


def _pixels(content: bytes) -> int:
    """How many pixels an image file says that it has; what is wrong with it is told where it is read."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.width * image.height
    except Exception:
        return 0
