"""How far a training run has come, and when it ends: after its epochs, or after its time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from torch import Tensor

from mobilenets.training.optimizers import lr_factor, stair_steps
from mobilenets.training.recipe import Recipe

# Fine enough that a schedule by time moves in steps too small to matter.
_TIME_STEPS = 1_000_000


@dataclass
class Standing:
    """Where a run stands; with weights, averages and optimiser it is all that going on needs.

    Args:
        epoch: the epoch that is running, from 1; 0 while a fitted classifier is judged.
        position: batches of it that are done.
        step: optimiser steps done in all.
        share: of the schedule that is done, from 0 to 1.
        seconds: spent so far, in all sessions of the run.
        images: of the running epoch that are done.
        sums: of the running epoch's losses and figures, weighted by images.
        best: the figures of the best epoch so far.
        stopping_best: the best value of the early-stopping metric.
        stale: epochs since it improved.
        processes: that the run began with; None in states of before this was kept.
    """

    epoch: int = 1
    position: int = 0
    step: int = 0
    share: float = 0.0
    seconds: float = 0.0
    images: int = 0
    sums: dict[str, Tensor | float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    stopping_best: float | None = None
    stale: int = 0
    processes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, which load with `weights_only=True`."""
        return {**asdict(self), "sums": self.plain_sums()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read back from `to_dict`."""
        return cls(**values)

    def count(self, losses: Mapping[str, Tensor], images: int) -> None:
        """Add the mean losses of some images to the sums of the epoch."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().float() * images

    def next_epoch(self) -> None:
        """Begin a new epoch."""
        self.epoch += 1
        self.position = self.images = 0
        self.sums = {}

    def plain_sums(self) -> dict[str, float]:
        """The sums as numbers; a GPU is waited for here, and not at every step."""
        return {name: float(value) for name, value in self.sums.items()}


class Plan:
    """The schedule of a run: which learning rate comes next, and whether it is over.

    With `max_seconds` in the recipe, the schedule is stretched or squeezed at each step so that it
    ends in that time, evaluations included: the share that is done grows by what is left of it over
    the steps that there is still time for. Such a run depends on the machine's speed, and repeats
    only in kind; a run by epochs repeats exactly.

    Args:
        recipe: how to train.
        images: training images an epoch goes through.
        steps_per_epoch: optimiser steps in an epoch.
        already: seconds that the command spent before training.
    """

    def __init__(
        self, recipe: Recipe, images: int, steps_per_epoch: int, already: float = 0.0
    ) -> None:
        self._schedule = recipe.schedule
        self._steps_per_epoch = steps_per_epoch
        self._stair = stair_steps(images, recipe.batch_size, recipe.schedule.every)
        self._steps = recipe.epochs * steps_per_epoch
        self._max_seconds = recipe.max_seconds
        if self._max_seconds is not None and self._schedule.name == "exponential":
            self._schedule = self._schedule.model_copy(update={"warmup": 0.0})
        self._started = time.monotonic() - already
        self._step_seconds = 0.0
        self._measured = 0
        self._evaluation_seconds = 0.0
        self._session = self._started, 0.0

    def start(self, standing: Standing) -> None:
        """Go on from where a run stands."""
        self._started -= standing.seconds
        if self._max_seconds is None:
            standing.share = standing.step / self._steps if self._steps else 1.0
        self._session = time.monotonic(), standing.share

    @property
    def seconds(self) -> float:
        """Spent by the run so far."""
        return time.monotonic() - self._started

    def factor(self, standing: Standing) -> float:
        """The next step's learning rate as a share of its peak."""
        if self._max_seconds is None:
            return lr_factor(standing.step, self._steps, self._schedule, self._stair)
        if self._schedule.name == "exponential":
            # Its stairs are a number of epochs wide, however many of them there is time for.
            return lr_factor(standing.step, math.inf, self._schedule, self._stair)
        return lr_factor(standing.share * _TIME_STEPS, _TIME_STEPS, self._schedule)

    def stepped(self, standing: Standing, seconds: float) -> None:
        """Note one more step, and how long it took."""
        standing.step += 1
        standing.position += 1
        standing.seconds = self.seconds
        if self._max_seconds is None:
            standing.share = standing.step / self._steps
            return
        # The first step compiles and warms caches up: the second one takes its place. Then a mean,
        # and from ten steps on a moving one.
        self._measured += 1
        weight = max(0.1, 1 / max(1, self._measured - 1))
        self._step_seconds += weight * (seconds - self._step_seconds)
        standing.share += (1 - standing.share) / max(1.0, self._steps_left(standing))
        if 1 - standing.share < 1e-9:
            standing.share = 1.0

    def evaluated(self, seconds: float) -> None:
        """Note how long evaluating and writing took, so that the next times are reckoned with."""
        self._evaluation_seconds = seconds

    def finished(self, standing: Standing) -> bool:
        """Whether the last step is done."""
        return standing.share >= 1.0

    def seconds_left(self, standing: Standing) -> float:
        """Until the run ends."""
        if self._max_seconds is not None:
            return max(0.0, self._max_seconds - self.seconds)
        # By the speed of this session: reading the images, and earlier sessions, tell nothing of it.
        started, share = self._session
        spent = time.monotonic() - started
        return spent / max(standing.share - share, 1e-9) * (1 - standing.share)

    def _steps_left(self, standing: Standing) -> float:
        assert self._max_seconds is not None
        left = self._max_seconds - self.seconds - self._evaluation_seconds
        # At the end of an epoch one more step costs an evaluation now, and another one after it.
        epoch_over = standing.position >= self._steps_per_epoch
        if epoch_over and left < self._step_seconds + self._evaluation_seconds:
            return 0.0
        return left / (self._step_seconds + self._evaluation_seconds / self._steps_per_epoch)
