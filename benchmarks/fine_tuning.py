"""What trained weights are worth on small sets of photos, against the same network from scratch.

    python benchmarks/fine_tuning.py --shared SHARED [--only NAME ...] [--runs runs/fine-tuning]

SHARED holds `data/hymenoptera.tar` (ants and bees), `data/pets37.tar` (37 breeds, ten images each) and the
quantised ImageNet weights of width 1.0. Each study leaves one JSON file in docs/results/fine_tuning/.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from mobilenets.tasks.classification.metrics import interval
from mobilenets.training.device import provenance
from shared_data import imported, unpacked
from verb import mobilenets

WEIGHTS = "coral/1.0-224"


@dataclass(frozen=True)
class Study:
    """One training on one set of photos."""

    data: str
    options: str
    weights: bool = True


STUDIES = {
    "hymenoptera-finetune": Study("hymenoptera", "--epochs 8"),
    "hymenoptera-probe": Study("hymenoptera", "--recipe probe"),
    "hymenoptera-scratch": Study("hymenoptera", "--model 1.0-224 --max-time 2m", weights=False),
    "pets37-finetune": Study("pets37", "--folds 5 --epochs 5"),
    "pets37-probe": Study("pets37", "--folds 5 --recipe probe"),
    "pets37-scratch": Study("pets37", "--folds 5 --model 1.0-224 --max-time 2m", weights=False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(STUDIES))
    parser.add_argument("--runs", type=Path, default=Path("runs/fine-tuning"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/fine_tuning"))
    options = parser.parse_args()
    weights = imported(options.shared, WEIGHTS, options.runs / "weights")
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        study, file = STUDIES[name], options.output / f"{name}.json"
        if file.is_file():
            continue
        data = unpacked(options.shared, study.data, options.runs)
        start = ["--weights", weights] if study.weights else []
        there = ["--output", options.runs / name, "--overwrite", "--seed", 0, "--device", "cpu"]
        began = time.monotonic()
        found = mobilenets("train", data, *start, *study.options.split(), *there)
        found.pop("run")
        found.pop("runs", None)
        if "top1" in found:
            right = round(found["top1"] * found["images"])
            found["top1_interval"] = list(interval(right, found["images"]))
        result = {
            "study": name,
            "command": f"mobilenets train {study.data} {f'--weights {WEIGHTS} ' * study.weights}{study.options}",
            "seconds": round(time.monotonic() - began),
            **found,
            **provenance(torch.device("cpu")),
        }
        file.write_text(json.dumps(result, indent=1) + "\n")
        print(name, found.get("top1", found.get("mean")), result["seconds"], "s", flush=True)


if __name__ == "__main__":
    main()
