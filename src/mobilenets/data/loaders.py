"""Batches for training and evaluation: small images from memory, photos from disk.

What a batch holds depends on nothing but the seed, the epoch and its place in the epoch, so a
run can go on from any batch.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.data.images import BadImageError
from mobilenets.data.progress import progress
from mobilenets.data.shards.images import ShardImages
from mobilenets.data.shards.store import ShardError, reading_ahead
from mobilenets.data.splits import UNKNOWN, Images, Split
from mobilenets.data.transforms import (
    Distortion,
    distort_batch,
    distort_photo,
    fit,
    mix,
    normalise,
    seeded,
)

T = TypeVar("T")
OnBadImage = Literal["stop", "skip"]
SMALL_SIDE = 96
MEMORY_LIMIT = 2**30
# In the order of training, and nothing else of it.
STILL = Distortion(mirror=False)


@dataclass(frozen=True)
class Batch:
    """Network input float32 (N, C, H, W), and class indices (N,), shares of classes (N, K), or boxes (N, M, columns).

    Args:
        whole: images of the batch in all processes together, of which these are a part.
        sizes_N2: height and width of the files' images, where a task asks for them.
        rows_N: which images of the loader's split these are.
        taught_N: what a teacher says of the images, (N, K) or (N, A, K), where there is one.
    """

    images_NCHW: Tensor
    targets_N: Tensor
    whole: int
    sizes_N2: Tensor | None = None
    rows_N: Tensor | None = None
    taught_N: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets_N)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, channels last."""
        images = self.images_NCHW.to(device, non_blocking=True, memory_format=torch.channels_last)
        targets = self.targets_N.to(device, non_blocking=True)
        taught = None if self.taught_N is None else self.taught_N.to(device, non_blocking=True)
        return replace(self, images_NCHW=images, targets_N=targets, taught_N=taught)

    def resized(self, size: Sequence[int]) -> Batch:
        """The batch at another height and width, antialiased.

        >>> batch = Batch(torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64), whole=2)
        >>> batch.resized([24, 24]).images_NCHW.shape
        torch.Size([2, 3, 24, 24])
        """
        if tuple(size) == tuple(self.images_NCHW.shape[-2:]):
            return self
        images = F.interpolate(self.images_NCHW, list(size), mode="bilinear", antialias=True)
        return replace(self, images_NCHW=images.contiguous(memory_format=torch.channels_last))

    def take(self, places_M: Tensor) -> Batch:
        """Some images of the batch.

        >>> batch = Batch(torch.zeros(3, 3, 8, 8), torch.arange(3), whole=3)
        >>> batch.take(torch.tensor([2, 0])).targets_N.tolist()
        [2, 0]
        """

        def of(values_N: Tensor | None) -> Tensor | None:
            return None if values_N is None else values_N[places_M.to(values_N.device)]

        return Batch(
            self.images_NCHW[places_M.to(self.images_NCHW.device)],
            self.targets_N[places_M.to(self.targets_N.device)],
            len(places_M),
            of(self.sizes_N2),
            of(self.rows_N),
            of(self.taught_N),
        )

    def pieces(self, count: int) -> Iterator[Batch]:
        """The batch in `count` pieces, for gradients that are gathered before a step.

        >>> batch = Batch(torch.zeros(5, 3, 8, 8), torch.zeros(5, dtype=torch.int64), whole=5)
        >>> [len(piece) for piece in batch.pieces(2)]
        [3, 2]
        """
        if count == 1:
            yield self
            return
        taught = (None,) * count if self.taught_N is None else self.taught_N.tensor_split(count)
        for images, targets, told in zip(
            self.images_NCHW.tensor_split(count),
            self.targets_N.tensor_split(count),
            taught,
            strict=True,
        ):
            yield Batch(images, targets, self.whole, taught_N=told)


@dataclass(frozen=True)
class Shard:
    """Which part of every batch a process works on: images `rank`, `rank + processes`, and so on."""

    rank: int = 0
    processes: int = 1

    def of(self, rows: Tensor) -> Tensor:
        """The rows of a batch that this process works on."""
        return rows[self.rank :: self.processes]


WHOLE = Shard()


def join(batches: Sequence[Batch]) -> Batch:
    """Batches as one; images that have fewer boxes than others get empty rows."""
    images = torch.cat([batch.images_NCHW for batch in batches])
    targets = [batch.targets_N for batch in batches]
    if targets[0].dim() == 3:
        most = max(rows_NMD.shape[1] for rows_NMD in targets)
        targets = [
            F.pad(rows_NMD, (0, 0, 0, most - rows_NMD.shape[1]), value=-1.0) for rows_NMD in targets
        ]
    sizes = [batch.sizes_N2 for batch in batches if batch.sizes_N2 is not None]
    return Batch(images, torch.cat(targets), len(images), torch.cat(sizes) if sizes else None)


class Loader(Protocol):
    """Batches of one split."""

    @property
    def images(self) -> int:
        """Images an epoch goes through."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def batches(self, epoch: int = 0, start: int = 0, shard: Shard = WHOLE) -> Iterator[Batch]:
        """The batches of an epoch, from batch `start` on; of each, the part of one process."""

    def still(self) -> Loader:
        """The same images in the same order, as evaluation sees them."""

    def in_order(self) -> Loader:
        """All images of the split, one after the other, as evaluation sees them."""

    def to(self, device: torch.device) -> None:
        """Make batches on a device from now on, the same ones."""

    def name(self, row: int) -> str:
        """A path, or what an error message calls an image of the split."""


@dataclass(frozen=True)
class Order:
    """Which images make up which batch.

    Args:
        shards_N: the shard that each image lies in; images of `window` shards, drawn anew in each epoch, are shuffled together.
            With no more shards than that all images are, as those that lie in none.

    >>> order = Order(6, 2, 0, shuffled=True, shards_N=torch.tensor([0, 0, 1, 1, 2, 2]), window=1)
    >>> [order.shards_N[rows].tolist() for rows in order.rows(0)]
    [[0, 0], [2, 2], [1, 1]]
    """

    count: int
    batch_size: int
    seed: int
    shuffled: bool
    drop_last: bool = False
    shards_N: Tensor | None = None
    window: int = 1

    @property
    def used(self) -> int:
        """Training leaves a last batch of one image out: batch norm needs two values a channel."""
        rest = self.count % self.batch_size
        drops_rest = self.shuffled and (rest == 1 or (self.drop_last and self.count > rest))
        return self.count - rest if drops_rest else self.count

    def rows(self, epoch: int) -> Sequence[Tensor]:
        if not self.shuffled:
            return torch.split(torch.arange(self.count), self.batch_size)
        order = self._shuffle(generator_of(self.seed, epoch))
        return torch.split(order[: self.used], self.batch_size)

    def __len__(self) -> int:
        return -(-self.used // self.batch_size)

    def _shuffle(self, random: torch.Generator) -> Tensor:
        shards = [] if self.shards_N is None else self._shards(self.shards_N)
        if len(shards) <= self.window:
            return torch.randperm(self.count, generator=random)
        drawn = torch.randperm(len(shards), generator=random).tolist()
        parts: list[Tensor] = []
        for start in range(0, len(drawn), self.window):
            rows = torch.cat([shards[number] for number in drawn[start : start + self.window]])
            parts.append(rows[torch.randperm(len(rows), generator=random)])
        return torch.cat(parts)

    @staticmethod
    def _shards(shards_N: Tensor) -> list[Tensor]:
        """The images of each shard."""
        order = torch.argsort(shards_N, stable=True)
        _, counts = torch.unique_consecutive(shards_N[order], return_counts=True)
        return list(torch.split(order, counts.tolist()))

    def straight(self) -> Order:
        """All of them, from the first to the last."""
        return replace(self, shuffled=False)


@dataclass(frozen=True)
class GroupedOrder:
    """Batches of several images of each of several classes, so that there is something to compare.

    Every image stands in one group an epoch; a class whose last group is not full lends it some of its images again, and a class
    of one image has nothing to compare and is left out.

    Args:
        targets_N: class indices.
        group: images of a class that stand together.

    >>> order = GroupedOrder(torch.tensor([0, 0, 0, 1, 1, 2]), batch_size=4, seed=0, group=2)
    >>> order.used, [len(rows) for rows in order.rows(0)]
    (6, [4, 2])
    """

    targets_N: Tensor
    batch_size: int
    seed: int
    group: int

    @property
    def used(self) -> int:
        return self.group * sum(-(-len(rows) // self.group) for rows in self._classes())

    def rows(self, epoch: int) -> Sequence[Tensor]:
        random = generator_of(self.seed, epoch)
        groups: list[Tensor] = []
        for rows in self._classes():
            order = rows[torch.randperm(len(rows), generator=random)]
            whole = -(-len(rows) // self.group) * self.group
            groups += torch.split(order.repeat(-(-whole // len(rows)))[:whole], self.group)
        shuffled = torch.randperm(len(groups), generator=random)
        return torch.split(torch.cat([groups[place] for place in shuffled]), self.batch_size)

    def __len__(self) -> int:
        return -(-self.used // self.batch_size)

    def straight(self) -> Order:
        """All images, from the first to the last."""
        return Order(len(self.targets_N), self.batch_size, self.seed, shuffled=False)

    def _classes(self) -> list[Tensor]:
        """Images of each class that has two."""
        order = torch.argsort(self.targets_N, stable=True)
        classes, counts = torch.unique_consecutive(self.targets_N[order], return_counts=True)
        rows = zip(classes.tolist(), torch.split(order, counts.tolist()), strict=True)
        return [places for one, places in rows if one != UNKNOWN and len(places) > 1]


def _order_of(
    targets_N: Tensor,
    batch_size: int,
    seed: int,
    *,
    shuffled: bool,
    drop_last: bool,
    group: int | None,
    images: Images | None = None,
    window: int = 1,
) -> Order | GroupedOrder:
    if group is not None and shuffled:
        return GroupedOrder(targets_N, batch_size, seed, group)
    shards_N = torch.from_numpy(images.shards) if isinstance(images, ShardImages) else None
    return Order(len(targets_N), batch_size, seed, shuffled, drop_last, shards_N, window)


class MemoryLoader:
    """Small images, decoded once, kept as uint8 and gathered by index.

    Args:
        pixels_NHWC: uint8 images at the input size.
        targets_N: class indices.
        distortion: training's distortions and order; None gives the images as they are, in order.
        drop_last: leave an incomplete last batch of training out.
        group: so many images of a class stand together in training.
        images: what they were decoded from, for their names.
    """

    def __init__(
        self,
        pixels_NHWC: Tensor,
        targets_N: Tensor,
        preprocessing: Preprocessing,
        batch_size: int,
        distortion: Distortion | None = None,
        seed: int = 0,
        *,
        drop_last: bool = False,
        group: int | None = None,
        images: Images | None = None,
    ) -> None:
        self._images = images
        self._pixels_NHWC = pixels_NHWC
        self._targets_N = targets_N
        self._preprocessing = preprocessing
        self._distortion = distortion
        shuffled = distortion is not None
        self._order = _order_of(
            targets_N, batch_size, seed, shuffled=shuffled, drop_last=drop_last, group=group
        )
        self._mirrored_first_N = torch.rand(len(targets_N), generator=generator_of(seed)) < 0.5

    @property
    def images(self) -> int:
        return self._order.used

    def __len__(self) -> int:
        return len(self._order)

    def batches(self, epoch: int = 0, start: int = 0, shard: Shard = WHOLE) -> Iterator[Batch]:
        for position, rows_N in enumerate(self._order.rows(epoch)):
            if position < start:
                continue
            distortion, targets_N = self._distortion, self._targets_N[rows_N]
            if distortion is None:
                images_NCHW = self._network_input(self._pixels_NHWC[shard.of(rows_N)])
                yield Batch(images_NCHW, shard.of(targets_N), len(rows_N), rows_N=shard.of(rows_N))
                continue
            # Drawn for the whole batch, so that any number of processes sees the same images.
            random = generator_of(self._order.seed, epoch, position)
            mirrored_N = None
            if distortion.alternate:
                mirrored_N = self._mirrored_first_N[rows_N] ^ (epoch % 2 == 1)
            pixels_NHWC = distort_batch(self._pixels_NHWC, rows_N, distortion, random, mirrored_N)
            if distortion.mixup or distortion.cutmix:
                images_NCHW = self._network_input(pixels_NHWC)
                images_NCHW, targets_N = mix(images_NCHW, targets_N, distortion, random)
                images_NCHW = shard.of(images_NCHW)
            else:
                images_NCHW = self._network_input(shard.of(pixels_NHWC))
            yield Batch(images_NCHW, shard.of(targets_N), len(rows_N), rows_N=shard.of(rows_N))

    def still(self) -> MemoryLoader:
        other = copy.copy(self)
        other._distortion = self._distortion and STILL
        return other

    def in_order(self) -> MemoryLoader:
        other = copy.copy(self)
        other._distortion, other._order = None, self._order.straight()
        return other

    def to(self, device: torch.device) -> None:
        self._pixels_NHWC = self._pixels_NHWC.to(device)
        self._targets_N = self._targets_N.to(device)

    def name(self, row: int) -> str:
        return f"image {row}" if self._images is None else self._images.name(row)

    def _network_input(self, pixels_NHWC: Tensor) -> Tensor:
        # A permuted view of NHWC is channels_last already: no copy is made for the layout.
        return normalise(pixels_NHWC.permute(0, 3, 1, 2), self._preprocessing)


class Photos(Dataset[Any], ABC):
    """What worker processes are asked for by (epoch, index); of an image that can't be read they give what is wrong.

    Args:
        distortion: training's changes, of which `still` leaves none.
    """

    def __init__(
        self, split: Any, preprocessing: Preprocessing, distortion: Any, seed: int, still: Any
    ) -> None:
        self.distortion = distortion
        self._still = still
        self._split = split
        self._preprocessing = preprocessing
        self._seed = seed

    @abstractmethod
    def __getitem__(self, asked: tuple[int, int]) -> Any:
        """One image, changed as its epoch says."""

    @property
    def images(self) -> Images:
        """Those that are read."""
        images: Images = self._split.images
        return images

    def name(self, index: int) -> str:
        """What an error message calls an image."""
        return self.images.name(index)

    def still(self) -> Self:
        """The same without changes."""
        return self.changed_by(self.distortion and self._still)

    def changed_by(self, distortion: Any) -> Self:
        """The same with other changes."""
        other = copy.copy(self)
        other.distortion = distortion
        return other


class DiskLoader(ABC):
    """Images read from disk in worker processes, normalised a batch at a time.

    Args:
        workers: processes that read; by default half of the cores, shared by the processes that train on this machine.
    """

    def __init__(
        self,
        photos: Photos,
        preprocessing: Preprocessing,
        order: Order | GroupedOrder,
        workers: int | None,
    ) -> None:
        self._photos = photos
        self._preprocessing = preprocessing
        self._order = order
        self._workers = _default_workers() if workers is None else workers
        self._device = torch.device("cpu")
        self._asked: list[list[tuple[int, int]]] = []
        self._reader: DataLoader[Any] | None = None
        self._lasting = True

    @property
    def images(self) -> int:
        return self._order.used

    def __len__(self) -> int:
        return len(self._order)

    def batches(self, epoch: int = 0, start: int = 0, shard: Shard = WHOLE) -> Iterator[Batch]:
        whole = self._order.rows(epoch)[start:]
        rows = [shard.of(batch) for batch in whole]
        self._asked[:] = [[(epoch, int(row)) for row in batch] for batch in rows]
        if self._reader is None:
            self._reader = self._start_reader()
        with self._ahead(whole) as reached:
            for position, (read, rows_N) in enumerate(zip(self._reader, rows, strict=True), start):
                if isinstance(read, str):
                    # Its processes end now, and not when Python finds that nobody has it any more.
                    self._reader = None
                    raise BadImageError(read)
                reached(position - start)
                batch = self._batch(read, rows_N, (self._order.seed, epoch, position))
                yield replace(batch, whole=len(whole[position - start]), rows_N=rows_N)

    @contextmanager
    def _ahead(self, rows: Sequence[Tensor]) -> Iterator[Callable[[int], None]]:
        """Bring shards from elsewhere before their images are read; gives what to tell which batch is reached."""
        images = self._photos.images
        if not (isinstance(images, ShardImages) and images.store.fetches):
            yield lambda _: None
            return
        shards_N = torch.from_numpy(images.shards)
        asked = [torch.unique(shards_N[batch]).tolist() for batch in rows]
        window = self._order.window if isinstance(self._order, Order) else 1
        with reading_ahead(images.store, asked, window) as reached:
            yield reached

    def _start_reader(self) -> DataLoader[Any]:
        workers = min(self._workers, len(self._asked))
        # The reader must not know who has it: in a circle, Python would take its queues apart before it could tell its processes
        # to end, and wait five seconds for each of them.
        stacker = copy.copy(self)
        return DataLoader(
            self._photos,
            batch_sampler=self._asked,
            num_workers=workers,
            collate_fn=stacker._stack,
            prefetch_factor=2 if workers else None,
            # Processes that begin anew in each epoch make training copy its memory each time, page by page.
            persistent_workers=self._lasting and workers > 0,
            pin_memory=self._device.type == "cuda",
            # It draws a seed for its workers: not from the generator that dropout draws from.
            generator=torch.Generator(),
        )

    def still(self) -> Self:
        return self._reading(self._photos.still(), self._order)

    def in_order(self) -> Self:
        return self._reading(self._photos.changed_by(None), self._order.straight())

    def _reading(self, photos: Photos, order: Order | GroupedOrder) -> Self:
        other = copy.copy(self)
        other._photos, other._order, other._asked, other._reader = photos, order, [], None
        # Read once: processes that outlive it would be known to those that begin later, which can't end them.
        other._lasting = False
        return other

    def to(self, device: torch.device) -> None:
        self._device, self._reader = device, None

    def name(self, row: int) -> str:
        return self._photos.name(row)

    def _network_input(self, pixels_NCHW: Tensor) -> Tensor:
        return normalise(pixels_NCHW.to(self._device, non_blocking=True), self._preprocessing)

    @abstractmethod
    def _stack(self, read: list[Any]) -> Any:
        """What a worker sends of a batch, or what is wrong with one of its images."""

    @abstractmethod
    def _batch(self, read: Any, rows_N: Tensor, seed: tuple[int, int, int]) -> Batch:
        """A batch of that, of the images in these rows; what is drawn for it is drawn from the seed."""


class PhotoLoader(DiskLoader):
    """Photos and their classes.

    Mixing pairs images within a process; all else is the same for any number of processes.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        batch_size: int,
        distortion: Distortion | None = None,
        seed: int = 0,
        workers: int | None = None,
        *,
        drop_last: bool = False,
        group: int | None = None,
        window: int = 1,
    ) -> None:
        photos = _Photos(split, preprocessing, distortion, seed, STILL)
        targets_N = torch.from_numpy(split.targets)
        shuffled = distortion is not None
        order = _order_of(
            targets_N,
            batch_size,
            seed,
            shuffled=shuffled,
            drop_last=drop_last,
            group=group,
            images=split.images,
            window=window,
        )
        super().__init__(photos, preprocessing, order, workers)
        self._targets_N = targets_N

    def _stack(self, read: list[Tensor | str]) -> Tensor | str:
        problem = next((image for image in read if isinstance(image, str)), None)
        if problem:
            return problem
        if not read:
            preprocessing = self._preprocessing
            size = (preprocessing.channel_count, preprocessing.height, preprocessing.width)
            return torch.zeros(0, *size, dtype=torch.uint8)
        return torch.stack([image for image in read if isinstance(image, Tensor)])

    def _batch(self, read: Tensor, rows_N: Tensor, seed: tuple[int, int, int]) -> Batch:
        images_NCHW = self._network_input(read)
        targets_N = self._targets_N[rows_N].to(self._device)
        distortion = self._photos.distortion
        if distortion is not None:
            images_NCHW, targets_N = mix(images_NCHW, targets_N, distortion, generator_of(*seed))
        return Batch(images_NCHW, targets_N, len(rows_N))


class _Photos(Photos):
    """Gives uint8 images (C, H, W)."""

    def __getitem__(self, asked: tuple[int, int]) -> Tensor | str:
        epoch, index = asked
        try:
            image_CHW = self._split.images.read(index, self._preprocessing.channel_count)
        except (BadImageError, ShardError) as error:
            return str(error)
        if self.distortion is None:
            return fit(image_CHW, self._preprocessing)
        mirrored = None
        if self.distortion.alternate:
            mirrored = bool((mixed(self._seed, index) ^ epoch) & 1)
        with seeded(generator_of(self._seed, epoch, index)):
            return distort_photo(image_CHW, self.distortion, self._preprocessing, mirrored)


def make_loader(
    split: Split,
    preprocessing: Preprocessing,
    batch_size: int,
    distortion: Distortion | None = None,
    seed: int = 0,
    *,
    drop_last: bool = False,
    group: int | None = None,
    window: int = 1,
    what: str = "images",
    on_bad_image: OnBadImage = "stop",
) -> tuple[Loader, tuple[str, ...]]:
    """Read or check every image of a split, then serve batches of it.

    Small images (up to 96 pixels a side, 1 GiB in all) are kept in memory, others stay on disk.
    Every image is decoded once before training starts, so a damaged one is found at the start and
    not hours later; those of shards when they are written, or when they are first used.

    Args:
        distortion: for training; None for evaluation.
        drop_last: leave an incomplete last batch of training out.
        group: so many images of a class stand together in batches of training.
        window: so many shards are shuffled together, where images lie in some.
        what: what the progress bar calls the images.
        on_bad_image: `stop` raises for images that can't be read, `skip` leaves them out.

    Returns:
        The loader, and one sentence for each image that was left out.

    Raises:
        BadImageError: names the damaged images (with `stop`).
        ValueError: no image is left.
    """
    how: dict[str, Any] = {
        "preprocessing": preprocessing,
        "batch_size": batch_size,
        "distortion": distortion,
        "seed": seed,
        "drop_last": drop_last,
        "group": group,
    }
    in_memory = _fits_in_memory(split, preprocessing)
    pixels: list[Tensor | None] = []
    problems: list[str] = []

    def read(index: int) -> Tensor | str | None:
        try:
            image_CHW = split.images.read(index, preprocessing.channel_count)
        except BadImageError as error:
            return str(error)
        return fit(image_CHW, preprocessing).permute(1, 2, 0) if in_memory else None

    shards = split.images if isinstance(split.images, ShardImages) else None
    if shards is not None and shards.checked and not in_memory:
        return PhotoLoader(split, **how, window=window), ()
    good: list[int] = []
    for index, result in enumerate(read_in_threads(read, len(split), what)):
        if isinstance(result, str):
            problems.append(result)
        else:
            good.append(index)
            pixels.append(result)
    refuse_bad_images(problems, len(split), what, on_bad_image)
    if shards is not None and not problems:
        shards.note_checked()
    kept = split if len(good) == len(split) else split.take(good)
    if not in_memory:
        return PhotoLoader(kept, **how, window=window), tuple(problems)
    stacked_NHWC = torch.stack([image for image in pixels if image is not None])
    targets_N = torch.from_numpy(kept.targets)
    small = MemoryLoader(stacked_NHWC, targets_N, **how, images=kept.images)
    return small, tuple(problems)


def read_in_threads(read: Callable[[int], T], count: int, what: str) -> Iterator[T]:
    """What `read` makes of each index, in order, with a progress bar."""
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress(f"reading {what}", count) as advance,
    ):
        for start in range(0, count, 1024):
            indices = range(start, min(start + 1024, count))
            yield from pool.map(read, indices)
            advance(len(indices))


def evenly(count: int, limit: int) -> list[int]:
    """So many places at most of a number of them, evenly spaced.

    >>> evenly(9, 3), evenly(2, 3)
    ([0, 4, 8], [0, 1])
    """
    return [round(place) for place in np.linspace(0, count - 1, min(limit, count)).tolist()]


def refuse_bad_images(
    problems: Sequence[str], images: int, what: str, on_bad_image: OnBadImage
) -> None:
    """Stop where images can't be read and must be, or where none can.

    Raises:
        BadImageError: names the first of them.
        ValueError: no image is left.
    """
    if problems and on_bad_image == "stop":
        more = f" and {len(problems) - 1} more like it" if len(problems) > 1 else ""
        raise BadImageError(f"{problems[0]}{more}; --on-bad-image skip leaves such images out")
    if len(problems) == images:
        raise ValueError(
            f"no {what} can be read" + (f"; the first: {problems[0]}" if problems else "")
        )


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


def _default_workers() -> int:
    # On few cores the network needs them itself, and decoding takes a small share of a step. Processes that `torchrun` started
    # on this machine share them.
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, (os.cpu_count() or 1) // 2 // processes)


def mixed(*numbers: int) -> int:
    """One seed made of several numbers, such as seed, epoch and position."""
    return int(
        np.random.SeedSequence((len(numbers), *numbers)).generate_state(1, np.uint64)[0] >> 1
    )


def generator_of(*numbers: int) -> torch.Generator:
    """A generator seeded by several numbers."""
    return torch.Generator().manual_seed(mixed(*numbers))
