"""Batches for training and evaluation: small images from memory, photos from disk.

What a batch holds depends on nothing but the seed, the epoch and its place in the epoch, so a
run can go on from any batch.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.data.images import BadImageError
from mobilenets.data.progress import progress
from mobilenets.data.sources import Split
from mobilenets.data.transforms import Distortion, distort_batch, distort_photo, fit, normalise

OnBadImage = Literal["stop", "skip"]
SMALL_SIDE = 96
MEMORY_LIMIT = 2**30


@dataclass(frozen=True)
class Batch:
    """Network input float32 (N, C, H, W), and class indices (N,)."""

    images_NCHW: Tensor
    targets_N: Tensor

    def __len__(self) -> int:
        return len(self.targets_N)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, channels last."""
        images = self.images_NCHW.to(device, non_blocking=True, memory_format=torch.channels_last)
        return Batch(images, self.targets_N.to(device, non_blocking=True))


class Loader(Protocol):
    """Batches of one split."""

    @property
    def images(self) -> int:
        """Images an epoch goes through."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `start` on."""


@dataclass(frozen=True)
class _Order:
    """Which images make up which batch."""

    count: int
    batch_size: int
    seed: int
    shuffled: bool

    @property
    def used(self) -> int:
        """Training leaves a last batch of one image out: batch norm needs two values a channel."""
        return self.count - (self.shuffled and self.count % self.batch_size == 1)

    def rows(self, epoch: int) -> Sequence[Tensor]:
        if not self.shuffled:
            return torch.split(torch.arange(self.count), self.batch_size)
        order = torch.randperm(self.count, generator=_generator(self.seed, epoch))
        return torch.split(order[: self.used], self.batch_size)

    def __len__(self) -> int:
        return -(-self.used // self.batch_size)


class MemoryLoader:
    """Small images, decoded once, kept as uint8 and gathered by index.

    Args:
        pixels_NHWC: uint8 images at the input size.
        targets_N: class indices.
        distortion: training's distortions and order; None gives the images as they are, in order.
    """

    def __init__(
        self,
        pixels_NHWC: Tensor,
        targets_N: Tensor,
        preprocessing: Preprocessing,
        batch_size: int,
        distortion: Distortion | None = None,
        seed: int = 0,
    ) -> None:
        self._pixels_NHWC = pixels_NHWC
        self._targets_N = targets_N
        self._preprocessing = preprocessing
        self._distortion = distortion
        self._order = _Order(len(targets_N), batch_size, seed, shuffled=distortion is not None)

    @property
    def images(self) -> int:
        return self._order.used

    def __len__(self) -> int:
        return len(self._order)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        for position, rows_N in enumerate(self._order.rows(epoch)):
            if position < start:
                continue
            if self._distortion is None:
                pixels_NHWC = self._pixels_NHWC[rows_N]
            else:
                random = _generator(self._order.seed, epoch, position)
                pixels_NHWC = distort_batch(self._pixels_NHWC, rows_N, self._distortion, random)
            # A permuted view of NHWC is channels_last already: no copy is made for the layout.
            images_NCHW = normalise(pixels_NHWC.permute(0, 3, 1, 2), self._preprocessing)
            yield Batch(images_NCHW, self._targets_N[rows_N])


class PhotoLoader:
    """Photos read from disk in worker processes, normalised a batch at a time."""

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        batch_size: int,
        distortion: Distortion | None = None,
        seed: int = 0,
        workers: int | None = None,
    ) -> None:
        self._photos = _Photos(split, preprocessing, distortion, seed)
        self._targets_N = torch.from_numpy(split.targets)
        self._preprocessing = preprocessing
        self._order = _Order(len(split), batch_size, seed, shuffled=distortion is not None)
        self._workers = _default_workers() if workers is None else workers

    @property
    def images(self) -> int:
        return self._order.used

    def __len__(self) -> int:
        return len(self._order)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        rows = self._order.rows(epoch)[start:]
        asked = [[(epoch, int(row)) for row in batch] for batch in rows]
        loader = DataLoader(
            self._photos,
            batch_sampler=asked,
            num_workers=min(self._workers, len(asked)),
            collate_fn=_stack,
            prefetch_factor=2 if self._workers and asked else None,
            # It draws a seed for its workers: from the global generator, a resumed epoch would
            # draw one more than an epoch that ran through, and dropout would differ.
            generator=torch.Generator(),
        )
        for pixels_NCHW, rows_N in zip(loader, rows, strict=True):
            if isinstance(pixels_NCHW, str):
                raise BadImageError(pixels_NCHW)
            yield Batch(normalise(pixels_NCHW, self._preprocessing), self._targets_N[rows_N])


class _Photos(Dataset[Tensor | str]):
    """Asked for (epoch, index), gives a uint8 image (C, H, W), or what is wrong with it."""

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        distortion: Distortion | None,
        seed: int,
    ) -> None:
        self._split = split
        self._preprocessing = preprocessing
        self._distortion = distortion
        self._seed = seed

    def __getitem__(self, asked: tuple[int, int]) -> Tensor | str:
        epoch, index = asked
        try:
            image_CHW = self._split.images.read(index, self._preprocessing.channel_count)
        except BadImageError as error:
            return str(error)
        if self._distortion is None:
            return fit(image_CHW, self._preprocessing)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_mixed(self._seed, epoch, index))
            return distort_photo(image_CHW, self._distortion, self._preprocessing)


def make_loader(
    split: Split,
    preprocessing: Preprocessing,
    batch_size: int,
    distortion: Distortion | None = None,
    seed: int = 0,
    *,
    what: str = "images",
    on_bad_image: OnBadImage = "stop",
) -> tuple[Loader, tuple[str, ...]]:
    """Read or check every image of a split, then serve batches of it.

    Small images (up to 96 pixels a side, 1 GiB in all) are kept in memory, others stay on disk.
    Every image is decoded once before training starts, so a damaged one is found at the start and
    not hours later.

    Args:
        distortion: for training; None for evaluation.
        what: what the progress bar calls the images.
        on_bad_image: `stop` raises for images that can't be read, `skip` leaves them out.

    Returns:
        The loader, and one sentence for each image that was left out.

    Raises:
        BadImageError: names the damaged images (with `stop`).
        ValueError: no image is left.
    """
    in_memory = _fits_in_memory(split, preprocessing)
    pixels: list[Tensor | None] = []
    problems: list[str] = []

    def read(index: int) -> Tensor | str | None:
        try:
            image_CHW = split.images.read(index, preprocessing.channel_count)
        except BadImageError as error:
            return str(error)
        return fit(image_CHW, preprocessing).permute(1, 2, 0) if in_memory else None

    good: list[int] = []
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress(f"reading {what}", len(split)) as advance,
    ):
        for start in range(0, len(split), 1024):
            indices = range(start, min(start + 1024, len(split)))
            for index, result in zip(indices, pool.map(read, indices), strict=True):
                if isinstance(result, str):
                    problems.append(result)
                else:
                    good.append(index)
                    pixels.append(result)
            advance(len(indices))
    if problems and on_bad_image == "stop":
        more = f" and {len(problems) - 1} more like it" if len(problems) > 1 else ""
        raise BadImageError(f"{problems[0]}{more}; --on-bad-image skip leaves such images out")
    if not good:
        raise ValueError(f"no {what} can be read; the first: {problems[0]}")
    kept = split if len(good) == len(split) else split.take(good)
    if in_memory:
        stacked_NHWC = torch.stack([image for image in pixels if image is not None])
        targets_N = torch.from_numpy(kept.targets)
        return (
            MemoryLoader(stacked_NHWC, targets_N, preprocessing, batch_size, distortion, seed),
            tuple(problems),
        )
    return PhotoLoader(kept, preprocessing, batch_size, distortion, seed), tuple(problems)


def _fits_in_memory(split: Split, preprocessing: Preprocessing) -> bool:
    """Whether the images are small themselves: photos need their pixels for random crops."""
    for index in range(len(split)):
        try:
            sides = split.images.read(index, preprocessing.channel_count).shape[-2:]
        except BadImageError:
            continue
        values = preprocessing.height * preprocessing.width * preprocessing.channel_count
        return max(sides) <= SMALL_SIDE and len(split) * values <= MEMORY_LIMIT
    return False


def _stack(images: list[Tensor | str]) -> Tensor | str:
    problem = next((image for image in images if isinstance(image, str)), None)
    return problem or torch.stack([image for image in images if isinstance(image, Tensor)])


def _default_workers() -> int:
    # On few cores the network needs them itself, and decoding takes a small share of a step.
    return max(1, (os.cpu_count() or 1) // 2)


def _mixed(*numbers: int) -> int:
    return int(
        np.random.SeedSequence((len(numbers), *numbers)).generate_state(1, np.uint64)[0] >> 1
    )


def _generator(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(_mixed(*numbers))
