"""Which device a model runs on."""

from __future__ import annotations

import torch

DEVICES = ("auto", "cpu", "cuda", "mps")


def find_device(wanted: str = "auto") -> torch.device:
    """The device of that name; `auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ValueError: the name is unknown, or the device is not there.

    >>> find_device("cpu")
    device(type='cpu')
    """
    kind = wanted.split(":")[0]
    if kind not in DEVICES:
        raise ValueError(f"unknown device {wanted!r}: it is one of {', '.join(DEVICES)}")
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if kind == "auto":
        kind = next(name for name in ("cuda", "mps", "cpu") if available[name])
        return torch.device(kind)
    if not available[kind]:
        raise ValueError(f"this machine has no {wanted} device that torch can use: use auto or cpu")
    return torch.device(wanted)
