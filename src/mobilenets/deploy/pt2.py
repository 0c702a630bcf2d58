"""PyTorch's own exported programs."""

from __future__ import annotations

from pathlib import Path

import torch

from mobilenets.deploy.exportable import Exportable
from mobilenets.deploy.pt2e import quantise


def write(model: Exportable, path: Path) -> None:
    """Write a `.pt2` that takes any number of images."""
    program = model.program(any_batch=True)
    if model.int8 is not None:
        program = model.program(any_batch=True, network=quantise(model, program.module()))
    torch.export.save(program, path)
