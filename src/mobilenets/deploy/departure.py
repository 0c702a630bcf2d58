"""The layer at which an exported file starts to compute something else."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mobilenets.deploy.exportable import Exportable, steps_of
from mobilenets.deploy.parity import MAX_RELATIVE_DIFFERENCE, compare
from mobilenets.deploy.target import Target


class _Beginning(nn.Module):
    """The first layers of a network, their feature map laid flat."""

    def __init__(self, network: nn.Module, layers: int) -> None:
        super().__init__()
        self.steps = nn.Sequential(*list(steps_of(copy.deepcopy(network)).values())[:layers])

    def forward(self, images_NCHW: Tensor) -> Tensor:
        outputs: Tensor = self.steps(images_NCHW)
        return outputs.flatten(1)


def find_departure(model: Exportable, target: Target, images_NCHW: Tensor) -> str:
    """The first layer whose output differs, found by exporting parts of the network."""
    names = list(steps_of(model.network))
    equal, differs = 0, len(names)
    while differs - equal > 1:
        middle = (equal + differs) // 2
        if _is_equal(model, target, images_NCHW, middle):
            equal = middle
        else:
            differs = middle
    return names[differs - 1]


def _is_equal(model: Exportable, target: Target, images_NCHW: Tensor, layers: int) -> bool:
    part = _Beginning(model.network, layers).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / target.file
        target.write(replace(model, network=part, labels=()), path)
        executed = target.open(path)
        assert executed is not None
        outputs = executed.run(images_NCHW.contiguous().numpy())
    with torch.inference_mode():
        expected = part(images_NCHW).numpy()
    return compare(expected, outputs).relative_difference < MAX_RELATIVE_DIFFERENCE
