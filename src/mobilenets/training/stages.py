"""Where the time of training goes: data, forward, backward, step."""

from __future__ import annotations

import time

STAGES = ("data", "forward", "backward", "step")


class Stages:
    """Seconds by stage. On a GPU, work is queued, and waits where a result is first needed.

    >>> stages = Stages()
    >>> stages.lap("data")
    >>> list(stages.shares())
    ['data']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._images = 0
        self.own_images = 0
        self._last = time.perf_counter()

    def restart(self) -> None:
        """Leave out what happened since the last lap."""
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Book the time since the last lap on a stage."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def count(self, images: int, own: int | None = None) -> None:
        """Note images that went through all stages, and how many of them in this process, where there are several."""
        self._images += images
        self.own_images += images if own is None else own

    def images_per_second(self) -> float:
        """Images noted over the time of all stages."""
        return self._images / (sum(self.seconds.values()) or 1.0)

    def shares(self) -> dict[str, float]:
        """Each stage's share of the time."""
        total = sum(self.seconds.values()) or 1.0
        return {stage: spent / total for stage, spent in self.seconds.items()}

    def __str__(self) -> str:
        return ", ".join(f"{stage} {100 * share:.0f} %" for stage, share in self.shares().items())
