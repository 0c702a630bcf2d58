"""What each of several processes did in an epoch, in one file of the run, so that a slow one is seen."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from mobilenets.data.files import write_aside
from mobilenets.runtimes.memory import peak_mb
from mobilenets.training.processes import Processes
from mobilenets.training.stages import Stages

FILE = "processes.jsonl"


def figures_of(stages: Stages, processes: Processes, device: torch.device) -> dict[str, Any]:
    """What this process did in the part of an epoch that it took part in since it was started.

    Gives its `rank`, `host`, how many `processes` there are, how often `torchrun` started them again (`restart`),
    its own `images` and `images_per_second`, the shares of its time by stage, and `peak_mb` (2^20 bytes), of the
    GPU's memory where one trains.
    """
    on_gpu = device.type == "cuda"
    most = torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else peak_mb()
    spent = sum(stages.seconds.values())
    return {
        "rank": processes.rank,
        "host": platform.node(),
        "processes": processes.count,
        "restart": int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
        "images": stages.own_images,
        "images_per_second": round(stages.own_images / (spent or 1.0), 2),
        **{stage: round(share, 4) for stage, share in stages.shares().items()},
        "peak_mb": round(most, 1),
    }


def add_to_log(folder: Path, epoch: int, lines: list[str]) -> None:
    """Write an epoch's figures of all processes, a line of JSON each, in place of what a run that goes on does again."""
    path = folder / FILE
    before = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    kept = [line for line in before if json.loads(line)["epoch"] < epoch]
    new = [json.dumps({"epoch": epoch, **json.loads(line)}) for line in lines]
    write_aside(path, "".join(f"{line}\n" for line in [*kept, *new]).encode())
