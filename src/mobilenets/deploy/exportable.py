"""What is exported: a network with batch norm folded, and what its user must know."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mobilenets.architecture.detector import Spec
from mobilenets.architecture.layers import ConvUnit
from mobilenets.architecture.network import MobileNet
from mobilenets.architecture.preprocessing import Preprocessing, channel_order
from mobilenets.architecture.spec import MobileNetSpec
from mobilenets.deploy.fold import fold_batch_norm
from mobilenets.training.run import Run

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
        network: in evaluation mode, batch norm folded; images (N, C, H, W) to outputs (N, K).
        input_shape: an image's (C, H, W).
        labels: of the outputs; empty where they have none.
        int8: how to quantise it; None leaves it in float.
    """

    network: nn.Module
    input_shape: tuple[int, int, int]
    preprocessing: Preprocessing
    labels: tuple[str, ...] = field(default=())
    int8: Int8 | None = None

    @classmethod
    def of_run(cls, run: Run) -> Self:
        """A run's network, folded.

        Raises:
            ValueError: it detects: only classifiers are exported.
        """
        if not isinstance(run.spec, MobileNetSpec):
            raise ValueError(f"{run.folder} is a {run.spec}: detectors can't be exported yet")
        model = cls.of_network(run.model, run.spec)
        labels = list(run.labels)
        head = run.model.classifier
        if isinstance(head, nn.Linear):
            # A recipe may ask for more outputs than there are classes.
            labels += [f"unused {number}" for number in range(len(labels), head.out_features)]
        return replace(model, preprocessing=run.preprocessing, labels=tuple(labels))

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


class Head(nn.Module):
    """What follows the last feature map: pool, classify."""

    def __init__(self, network: MobileNet) -> None:
        super().__init__()
        self.pool, self.classifier = network.pool, network.classifier

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) to (N, K)."""
        outputs_NK: Tensor = self.classifier(self.pool(features_NCHW).flatten(1))
        return outputs_NK


def steps_of(network: nn.Module) -> dict[str, ConvUnit | Head]:
    """The network as a chain, by name: each step computes from what the one before gave.

    >>> from mobilenets.architecture.spec import MobileNetSpec
    >>> names = list(steps_of(MobileNet(MobileNetSpec())))
    >>> names[0], names[1], names[-1], len(names)
    ('conv0', 'block1.depthwise', 'classifier', 28)
    """
    assert isinstance(network, MobileNet)
    units = {
        name: unit for name, unit in network.body.named_modules() if isinstance(unit, ConvUnit)
    }
    return {**units, "classifier": Head(network)}


def weighted_layer(step: ConvUnit | Head) -> nn.Conv2d | nn.Linear | None:
    """The layer of a step that has weights; none in a head that only pools."""
    layer = step.conv if isinstance(step, ConvUnit) else step.classifier
    return layer if isinstance(layer, nn.Conv2d | nn.Linear) else None
