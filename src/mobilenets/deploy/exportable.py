"""What is exported: a network with batch norm folded, and what its user must know."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mobilenets.architecture.detector import Selection, Spec
from mobilenets.architecture.preprocessing import Preprocessing, channel_order
from mobilenets.architecture.steps import Steps, Stepwise, layer_of
from mobilenets.deploy.fold import fold_batch_norm
from mobilenets.training.run import Run
from mobilenets.training.task import Form

LARGEST_BATCH = 4096
LEVELS = 255


@dataclass(frozen=True, kw_only=True)
class Int8:
    """How a network becomes 8-bit integers.

    Args:
        images_NCHW: real images, preprocessed, from which the ranges of activations are taken.
        keep: layers, by their place among all that have weights, that stay in float.
        per_channel: a scale for each output channel's weights, not one for all.
    """

    images_NCHW: Tensor
    keep: frozenset[int] = frozenset()
    per_channel: bool = True


@dataclass(frozen=True, kw_only=True)
class Exportable:
    """A network as every target takes it.

    Args:
        network: in evaluation mode, batch norm folded; images (N, C, H, W) to outputs.
        input_shape: an image's (C, H, W).
        labels: of the outputs; empty where they have none.
        exclusive: whether one label alone is right.
        form: of the outputs, before a selection.
        selection: which boxes the file tells; None where it tells every output.
        gives: what a network's own outputs are called.
        int8: how to quantise it; None leaves it in float.
    """

    network: nn.Module
    input_shape: tuple[int, int, int]
    preprocessing: Preprocessing
    labels: tuple[str, ...] = field(default=())
    exclusive: bool = True
    form: Form = "network"
    selection: Selection | None = None
    gives: str = "logits"
    int8: Int8 | None = None

    @classmethod
    def of_run(cls, run: Run) -> Self:
        """A run's network, folded, and what follows on it in a file.

        Raises:
            ValueError: no file can hold it.
        """
        form: Form = "network" if run.task.selection is None else "boxes"
        model = cls.of_network(run.task.in_file(run.model, form), run.spec)
        labels = list(run.labels)
        head = getattr(run.model, "classifier", None)
        if labels and isinstance(head, nn.Linear):
            # A recipe may ask for more outputs than there are classes.
            labels += [f"unused {number}" for number in range(len(labels), head.out_features)]
        return replace(
            model,
            preprocessing=run.preprocessing,
            labels=tuple(labels),
            exclusive=run.task.exclusive,
            form=form,
            gives=run.task.output,
        )

    @classmethod
    def of_network(cls, network: nn.Module, spec: Spec) -> Self:
        """A network without labels, folded; images in [-1, 1]."""
        channels = channel_order(spec.input_channels)
        half = (0.5,) * spec.input_channels
        return cls(
            network=fold_batch_norm(network).to(memory_format=torch.contiguous_format),
            input_shape=(spec.input_channels, spec.height, spec.across),
            preprocessing=Preprocessing(spec.height, spec.across, channels, mean=half, std=half),
        )

    def with_network(self, network: nn.Module) -> Self:
        """The same with another network, such as a part of this one."""
        return replace(self, network=network)

    def quantised(self, int8: Int8 | None) -> Self:
        """The same, to be quantised so."""
        return replace(self, int8=int8)

    @property
    def output(self) -> str:
        """What the outputs are called."""
        if self.selection is not None:
            return "found"
        return self.gives if self.form == "network" else self.form

    def pixels(self, images_NCHW: Tensor) -> Tensor:
        """Values from 0 to 255 of images that are normalised."""
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1)
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return LEVELS * (images_NCHW * std + mean)

    def example(self, batch: int = 1) -> Tensor:
        """A batch of the right shape, zeros."""
        return torch.zeros(batch, *self.input_shape)

    def program(self, *, any_batch: bool, network: nn.Module | None = None) -> ExportedProgram:
        """The graph that converters start from.

        Args:
            any_batch: takes any number of images at a time, not one.
            network: in place of this one's own.
        """
        module = self.network if network is None else network
        if not any_batch:
            return torch.export.export(module, (self.example(),))
        sizes = {0: Dim("batch", min=1, max=LARGEST_BATCH)}
        # An example of one image would fix the batch size at one.
        return torch.export.export(module, (self.example(2),), dynamic_shapes=(sizes,))


def steps_of(network: nn.Module) -> Steps:
    """The network's convolutions.

    Raises:
        ValueError: it can't be taken apart.
    """
    return cast(Stepwise, network).steps()


def places_of(network: nn.Module, weights: Sequence[NDArray[np.float32]]) -> list[int]:
    """Which layers a file's convolutions are, in whatever order and layout it has them: places among all that have weights.

    >>> from mobilenets.architecture.network import MobileNet
    >>> from mobilenets.architecture.spec import MobileNetSpec
    >>> network = MobileNet(MobileNetSpec(0.25, 64))
    >>> first, last = network.body["conv0"].conv.weight, network.classifier.weight
    >>> places_of(network, [last.detach().T.numpy(), first.detach().numpy()])
    [27, 0]
    """
    layers = [layer_of(step) for step in steps_of(network).modules.values()]
    known = [_mark(layer.weight.detach().numpy()) for layer in layers if layer is not None]
    return [
        min(range(len(known)), key=lambda place: _apart(known[place], mark))
        for mark in map(_mark, weights)
    ]


# Number of values, their sum, the sum of their squares.
_Mark = tuple[int, float, float]


def _mark(values: NDArray[np.float32]) -> _Mark:
    exact = values.astype(np.float64)
    return exact.size, float(exact.sum()), float(np.square(exact).sum())


def _apart(one: _Mark, other: _Mark) -> tuple[int, float]:
    return abs(one[0] - other[0]), abs(one[1] - other[1]) + abs(one[2] - other[2])


class Placing(Protocol):
    """A network that finds boxes, as TensorFlow's post-processing takes it."""

    # Left, top, right, bottom.
    boxes_A4: Tensor

    def parts(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """How boxes are moved (N, A, 4: across, down, in width, in height), and scores, the background's first (N, A, 1 + K)."""


def tail_of(operations: Sequence[tuple[str, Collection[str], bool]]) -> set[str]:
    """Those that no convolution takes the output of, such as what places boxes: int8 leaves them in float.

    Args:
        operations: what each makes, what it takes, and whether it is a convolution, in the order in which they compute.

    >>> sorted(tail_of([("a", ["image"], True), ("b", ["a"], False), ("c", ["b"], True), ("d", ["c"], False)]))
    ['d']
    """
    needed: set[str] = set()
    tail = set()
    for name, takes, weighted in reversed(operations):
        if weighted or name in needed:
            needed.update(takes)
        else:
            tail.add(name)
    return tail
