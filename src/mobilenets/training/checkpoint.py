"""A run's JSON, weights and state, each written whole or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from mobilenets.data.files import write_aside


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    write_aside(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, whole or not at all."""
    plain = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    write_aside(path, save(plain, metadata={"format": "pt"}))


def write_training_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write what a run needs to go on; it loads with `weights_only=True`."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    write_aside(path, content.getvalue())
