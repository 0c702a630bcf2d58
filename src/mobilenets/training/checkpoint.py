"""Writing files so that a crash or a full disk never spoils what was there before."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor


def write_aside(path: Path, content: bytes) -> None:
    """Write a file whole: first beside its place, then renamed into it.

    Raises:
        OSError: with the file's name, such as no space left; the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


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
