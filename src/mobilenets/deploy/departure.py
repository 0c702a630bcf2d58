"""The layer at which an exported file starts to compute something else."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mobilenets.deploy.exportable import Exportable, steps_of
from mobilenets.deploy.target import Target
from mobilenets.training.agreement import MAX_RELATIVE_DIFFERENCE, compare


class _Beginning(nn.Module):
    """The first layers of a network, what they put out laid flat."""

    def __init__(self, network: nn.Module, layers: int) -> None:
        super().__init__()
        self._first = steps_of(copy.deepcopy(network)).first(layers)
        # So that the graph has their weights, and no others.
        self.steps = nn.ModuleList(self._first.modules.values())

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self._first.outputs(images_NCHW, lambda _, step, x: step(x))


def find_departure(model: Exportable, target: Target, images_NCHW: Tensor) -> str:
    """The first layer whose output differs, found by exporting parts of the network."""
    try:
        steps = steps_of(model.network)
    except ValueError:
        return "a layer that could not be told: it can't be taken apart"
    names = list(steps.modules)
    if _is_equal(model, target, images_NCHW, len(names)):
        return "what follows on the last layer"
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
        target.write(replace(model, network=part, labels=(), form="network", selection=None), path)
        executed = target.open(path)
        assert executed is not None
        outputs = executed.run(images_NCHW.contiguous().numpy())
    with torch.inference_mode():
        expected = part(images_NCHW).numpy()
    return compare(expected, outputs).relative_difference < MAX_RELATIVE_DIFFERENCE
