"""Which device a model runs on."""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch

from mobilenets.cost.latency import processor

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


def machine(device: torch.device) -> str:
    """The processor that computes, in words, for figures that are kept."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def provenance(device: torch.device) -> dict[str, Any]:
    """Where and when a kept figure was measured: `machine`, `versions` and `date` (UTC)."""
    return {
        "machine": machine(device),
        "versions": {name: version(name) for name in ("mobilenets", "torch")},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Only operators that give the same bits each time; torch names the ones that can't.

    A CPU does so anyway, given the same number of threads. Where it is not wanted, a GPU tries out which
    algorithms are fastest for the shapes that come.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not wanted
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark


def check_compiler(device: torch.device) -> None:
    """Make sure that `torch.compile` can work.

    Raises:
        ValueError: there is no C++ compiler to build CPU code with.
    """
    names = [name for name in (os.environ.get("CXX"), "g++", "clang++", "cl") if name]
    if device.type == "cpu" and not any(shutil.which(name) for name in names):
        raise ValueError(
            "compile=true needs a C++ compiler (g++ or clang++) for the CPU: install one"
        )
