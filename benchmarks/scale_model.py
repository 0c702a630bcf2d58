"""A model of training in several processes: readers, steps, stragglers, collectives, failures.

Nothing is measured here. `benchmarks/scale.py` measures the constants, holds the simulation to real trainings and draws
the curve; docs/scale.md says what follows. Times are seconds, sizes bytes.

Source for rings and trees: Thakur, Rabenseifner, Gropp 2005; for the interval between two saves: Young 1974, Daly 2006.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mobilenets.architecture.spec import MobileNetSpec
from mobilenets.cost import cost

FLOAT = 4
# DistributedDataParallel sends gradients from the last layer on, in buckets that are closed when they reach these sizes.
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20
# A DataLoader asks each of its readers for so many batches ahead.
PREFETCH = 2


def gradient_buckets(spec: MobileNetSpec, bytes_each: int = FLOAT) -> list[int]:
    """Bytes of the gradients as DistributedDataParallel sends them, the last layer first.

    The last bucket is full when the backward pass is over, so that nothing hides the time it takes.

    >>> gradient_buckets(MobileNetSpec.parse("1.0-224"))
    [4100000, 12827904]
    """
    sizes = []
    for row in reversed(cost(spec).layers):
        if row.batch_norm_channels:
            sizes += [row.batch_norm_channels] * 2
        sizes += [row.biases] * (row.biases > 0) + [row.weights]
    buckets, open_bytes, limit = [], 0, FIRST_BUCKET
    for size in sizes:
        open_bytes += bytes_each * size
        if open_bytes >= limit:
            buckets.append(open_bytes)
            open_bytes, limit = 0, BUCKET
    return buckets + [open_bytes] * (open_bytes > 0)


def norm_channels(spec: MobileNetSpec) -> list[int]:
    """Channels of each batch norm.

    >>> channels = norm_channels(MobileNetSpec.parse("1.0-224"))
    >>> len(channels), sum(channels)
    (27, 10944)
    """
    return [row.batch_norm_channels for row in cost(spec).layers if row.batch_norm_channels]


@dataclass(frozen=True)
class Link:
    """How two neighbours talk: seconds a message takes to set off and arrive, and bytes a second."""

    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Cluster:
    """Processes, one a device, in machines that a network joins."""

    processes: int
    inside: Link
    network: Link
    per_machine: int = 8

    @property
    def machines(self) -> int:
        return -(-self.processes // self.per_machine)

    @property
    def bandwidth(self) -> float:
        """Of the slowest link of a ring through all processes."""
        return self.inside.bandwidth if self.machines == 1 else self.network.bandwidth

    @property
    def round(self) -> float:
        """Latency of a way through all processes, from the first to the last."""
        crossings = self.machines - 1
        return (self.processes - 1 - crossings) * self.inside.latency + (
            crossings * self.network.latency
        )

    @property
    def depth(self) -> float:
        """Latency of a way up a tree of all processes."""
        within = math.ceil(math.log2(min(self.processes, self.per_machine)))
        return within * self.inside.latency + (
            math.ceil(math.log2(self.machines)) * self.network.latency
        )

    def ring(self, size: float) -> float:
        """An all-reduce in a ring: each sends 2 (p - 1) / p of the bytes, in 2 (p - 1) messages.

        >>> link = Link(1e-5, 1e9)
        >>> round(1000 * Cluster(4, link, link).ring(16_927_904), 2)
        25.45
        """
        others = self.processes - 1
        return 2 * (others / self.processes * size / self.bandwidth + self.round)

    def all_reduce(self, size: float) -> float:
        """The quicker of a ring and a tree, as NCCL chooses; a tree sends all bytes up and down."""
        return min(self.ring(size), 2 * (size / self.bandwidth + self.depth))

    def all_gather(self, size: float) -> float:
        """Everyone's bytes to everyone, in a ring."""
        return (self.processes - 1) * size / self.bandwidth + self.round


def norm_seconds(spec: MobileNetSpec, cluster: Cluster) -> float:
    """What PyTorch's synchronised batch norm waits for in a step on GPUs: per layer a gather of means, deviations
    and a count on the way forward, a sum of two values a channel on the way back.

    >>> link = Link(1e-5, 1e9)
    >>> round(1000 * norm_seconds(MobileNetSpec.parse("1.0-224"), Cluster(8, link, link)), 1)
    4.3
    """
    if cluster.processes == 1:
        return 0.0
    return sum(
        cluster.all_gather(FLOAT * (2 * channels + 1)) + cluster.all_reduce(FLOAT * 2 * channels)
        for channels in norm_channels(spec)
    )


def sums_on_cpus(spec: MobileNetSpec) -> list[int]:
    """Bytes of each all-reduce of a step on CPUs: the gradients, four sums a layer of the package's own synchronised batch
    norm, and whether someone wants to stop or to save.

    >>> sizes = sums_on_cpus(MobileNetSpec.parse("1.0-224"))
    >>> len(sizes), sum(sizes)
    (111, 17103232)
    """
    norms = [
        FLOAT * size
        for channels in norm_channels(spec)
        for size in (channels + 1, channels, channels, channels + 1)
    ]
    return [*gradient_buckets(spec), *norms, 2 * FLOAT]


@dataclass(frozen=True)
class Work:
    """What a process does in a step.

    Args:
        compute: of its batch, nothing else in the way.
        read: one reader's, for its batch.
        readers: processes that read for this one.
        cores: of a machine, shared by readers and, where `on_cores`, computing.
        collective: after the slowest has computed.
        jitter: measured step times as shares of their median, drawn from.
    """

    compute: float
    read: float
    readers: int
    cores: float
    collective: float = 0.0
    jitter: Sequence[float] = (1.0,)
    on_cores: bool = False


@dataclass(frozen=True)
class Step:
    """Mean seconds of a step, and where they go; the parts add up to the whole."""

    seconds: float
    compute: float
    data: float
    stragglers: float
    collective: float


class _Machine:
    """Cores that all tasks on them share evenly."""

    def __init__(self, cores: float) -> None:
        self._cores, self._now, self._done = cores, 0.0, 0.0
        self._tasks: list[tuple[float, int, Callable[[float], None]]] = []
        self._count = 0

    @property
    def _rate(self) -> float:
        return min(1.0, self._cores / len(self._tasks)) if self._tasks else 1.0

    def _advance(self, now: float) -> None:
        self._done += (now - self._now) * self._rate
        self._now = now

    def begin(self, now: float, work: float, then: Callable[[float], None]) -> None:
        self._advance(now)
        self._count += 1
        heapq.heappush(self._tasks, (self._done + work, self._count, then))

    def next_end(self) -> float:
        if not self._tasks:
            return math.inf
        return self._now + max(0.0, self._tasks[0][0] - self._done) / self._rate

    def end_next(self) -> None:
        now = self.next_end()
        self._advance(now)
        _, _, then = heapq.heappop(self._tasks)
        then(now)


class _Process:
    """Readers that work ahead, and a network that takes their batches in order."""

    def __init__(self, machine: _Machine, device: _Machine, work: Work) -> None:
        self.machine, self.device, self.work = machine, device, work
        self.queues = [deque[int]() for _ in range(work.readers)]
        self.busy = [False] * work.readers
        self.ready: set[int] = set()
        self.asked = self.taken = 0
        self.waiting: Callable[[float], None] | None = None

    def ask(self, now: float) -> None:
        reader = self.asked % len(self.queues)
        self.queues[reader].append(self.asked)
        self.asked += 1
        self._read(reader, now)

    def _read(self, reader: int, now: float) -> None:
        if self.busy[reader] or not self.queues[reader]:
            return
        batch = self.queues[reader].popleft()
        self.busy[reader] = True

        def done(then: float) -> None:
            self.busy[reader] = False
            self.ready.add(batch)
            self._read(reader, then)
            self._hand_over(then)

        self.machine.begin(now, self.work.read, done)

    def take(self, now: float, seconds: float, came: list[float], ends: list[float]) -> None:
        """Compute on the next batch for so long; when it came and when that ended is noted."""

        def compute(then: float) -> None:
            came.append(then)
            self.device.begin(then, seconds, ends.append)

        self.waiting = compute
        self._hand_over(now)

    def _hand_over(self, now: float) -> None:
        if self.waiting is None or self.taken not in self.ready:
            return
        self.ready.remove(self.taken)
        self.taken += 1
        self.ask(now)
        then, self.waiting = self.waiting, None
        then(now)


def simulate(work: Work, cluster: Cluster, steps: int = 60, seed: int = 0) -> Step:
    """Steps of all processes, event by event, after as many to fill the queues as they hold.

    Readers that begin together end together: so many steps are counted, or a few more, that each reader ends as often as
    the others.

    >>> link = Link(0.0, 1e9)
    >>> alone = Work(compute=0.1, read=0.5, readers=4, cores=4)
    >>> step = simulate(alone, Cluster(1, link, link))
    >>> round(step.seconds, 3), round(step.data, 3)
    (0.125, 0.025)
    >>> from dataclasses import replace
    >>> more = replace(alone, readers=8, cores=8)
    >>> round(simulate(more, Cluster(1, link, link)).seconds, 3)
    0.1
    """
    random = np.random.default_rng(seed)
    machines = [_Machine(work.cores) for _ in range(cluster.machines)]
    devices = [_Machine(math.inf) for _ in machines]
    every = machines if work.on_cores else machines + devices
    running = []
    for rank in range(cluster.processes):
        place = rank // cluster.per_machine
        device = machines[place] if work.on_cores else devices[place]
        running.append(_Process(machines[place], device, work))
    warm_up = 2 * PREFETCH * work.readers
    steps = -(-steps // work.readers) * work.readers
    began = starts = 0.0
    sums = {"compute": 0.0, "data": 0.0, "stragglers": 0.0}
    for process in running:
        for _ in range(PREFETCH * work.readers):
            process.ask(0.0)
    for step in range(warm_up + steps):
        if step == warm_up:
            began = starts
            sums = dict.fromkeys(sums, 0.0)
        came: list[float] = []
        ends: list[float] = []
        factors = random.choice(work.jitter, cluster.processes)
        for process, factor in zip(running, factors.tolist(), strict=True):
            process.take(starts, work.compute * factor, came, ends)
        while len(ends) < cluster.processes:
            min(every, key=_Machine.next_end).end_next()
        ended = max(ends)
        data = float(np.mean(came)) - starts
        sums["data"] += data
        sums["stragglers"] += ended - float(np.mean(ends))
        sums["compute"] += float(np.mean(ends)) - starts - data
        starts = ended + work.collective
    whole = (starts - began) / steps
    shares = {name: value / steps for name, value in sums.items()}
    return Step(seconds=whole, collective=work.collective, **shares)


def best_interval(save: float, between_failures: float) -> float:
    """Seconds between two saves that lose least to saving and to failures (Young 1974).

    >>> round(best_interval(0.5, 50_000 * 3600 / 256))
    839
    """
    return math.sqrt(2 * save * between_failures)


def interruption_factor(
    save: float, interval: float, between_failures: float, restart: float
) -> float:
    """How much longer a run takes for its saves and failures, each of which costs half an interval and a restart.

    >>> round(interruption_factor(0.5, 60, 50_000 * 3600 / 256, 300), 4)
    1.0088
    """
    return 1 + save / interval + (interval / 2 + restart) / between_failures
