"""A network as convolutions, each of which computes from what one before it gave.

N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from mobilenets.architecture.layers import ConvUnit

T = TypeVar("T")
# What the first convolution computes from.
IMAGES = ""


class Head(nn.Module):
    """What follows a classifier's last feature map: pool, classify."""

    def __init__(self, pool: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.pool, self.classifier = pool, classifier

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) to (N, K)."""
        outputs_NK: Tensor = self.classifier(self.pool(features_NCHW).flatten(1))
        return outputs_NK


Step = ConvUnit | Head | nn.Conv2d


@dataclass(frozen=True)
class Steps:
    """The convolutions of a network, by name, in the order in which they compute.

    Args:
        modules: the very ones that the network has.
        sources: whose output each takes; `IMAGES` for the first.
        join: what the network makes of the outputs that no convolution takes.
    """

    modules: Mapping[str, Step]
    sources: Mapping[str, str]
    join: Callable[[Mapping[str, Tensor]], Tensor]

    def followers(self, name: str) -> list[str]:
        """Those that take this one's output."""
        return [other for other, source in self.sources.items() if source == name]

    def first(self, count: int) -> Steps:
        """The first of them, whose ends are laid flat and side by side."""
        names = list(self.modules)[:count]
        return Steps(
            {name: self.modules[name] for name in names},
            {name: self.sources[name] for name in names},
            _flat,
        )

    def walk(self, images: T, compute: Callable[[str, Step, T], T]) -> dict[str, T]:
        """What `compute` makes, step by step, of what it made before; the ends' are given back, by name.

        Args:
            images: what the first takes.
            compute: from a step's name, the step, and what it takes.
        """
        last = {source: name for name, source in self.sources.items()}
        kept = {IMAGES: images}
        for name, step in self.modules.items():
            source = self.sources[name]
            kept[name] = compute(name, step, kept[source])
            if last[source] == name:
                del kept[source]
        return kept

    def outputs(self, images: Tensor, compute: Callable[[str, Step, Tensor], Tensor]) -> Tensor:
        """The network's outputs, where `compute` stands for its steps."""
        return self.join(self.walk(images, compute))


class Stepwise(Protocol):
    """A network that can be taken apart."""

    def steps(self) -> Steps:
        """Its convolutions."""


def chain(modules: Mapping[str, Step], before: str = IMAGES) -> dict[str, str]:
    """Sources of convolutions that follow each other."""
    return dict(zip(modules, [before, *modules], strict=False))


def layer_of(step: Step) -> nn.Conv2d | nn.Linear | None:
    """The layer of a step that has weights; none in a head that only pools."""
    if isinstance(step, nn.Conv2d):
        return step
    layer = step.conv if isinstance(step, ConvUnit) else step.classifier
    return layer if isinstance(layer, nn.Conv2d | nn.Linear) else None


def _flat(ends: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([end.flatten(1) for end in ends.values()], 1)
