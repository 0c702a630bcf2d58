"""What a teacher is worth: face attributes without a label, and CIFAR-10 beside the labels.

    python benchmarks/distillation.py --shared SHARED [--cifar cifar10-folder] [--only attributes cifar] [--names NAME ...]
                                      [--seeds 0 1 2] [--runs runs/distillation]

SHARED holds `data/faces_attr.tar` and the quantised ImageNet weights; `--cifar` is as benchmarks/cifar10.py takes it. Each
training leaves one JSON file in docs/results/distillation/; what is there is not run again. A teacher is trained once, with the
first seed.

- `attributes`: a teacher, 1.0-128 from ImageNet's weights, learns from labels; students from its answers alone, and the same
  students from the labels.
- `cifar`: 0.25-32-s16 with and without a teacher of width 1.0 and s8, by the same recipe; on a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from mobilenets.training.device import provenance
from shared_data import imported, unpacked
from verb import mobilenets


@dataclass(frozen=True)
class Study:
    """One training: what on, from which weights, by which teacher, and how."""

    data: str
    options: str
    weights: str = ""
    teacher: str = ""
    device: str = "cpu"

    def command(self) -> str:
        """As a reader would type it."""
        start = f" --weights {self.weights}" if self.weights else ""
        taught = f" --teacher runs/{self.teacher}" if self.teacher else ""
        return f"mobilenets train {self.data} {self.options}{start}{taught}"


FACES = "--task attributes --model"
ALONE = "--recipe attributes-distil --set distillation.sees=whole"
# One teacher teaches all.
TEACHERS_SEED = 0
ON_GPU = (
    "--recipe cifar --epochs 40 --set precision=bf16 --set batch_size=256 --set optimizer.norm_bias_lr=1 "
    "--set schedule.warmup=0.1 --set growth=null --set whiten=false"
)
STUDIES = {
    "attributes": {
        "teacher-1.0-128": Study("faces_attr", f"{FACES} 1.0-128 --epochs 6", "coral/1.0-224"),
        **{
            f"{how}-{model}": Study(
                "faces_attr",
                f"{FACES} {model} {more}--epochs 8".replace("  ", " "),
                weights,
                "teacher-1.0-128" if how == "distilled" else "",
            )
            for model, weights in (("0.5-128", "coral/0.5-160"), ("0.25-96", "coral/0.25-128"))
            for how, more in (("distilled", f"{ALONE} "), ("labels", ""))
        },
    },
    "cifar": {
        "teacher-1.0-32-s8": Study(
            "cifar", f"--model 1.0-32-s8 {ON_GPU} --set augmentation.cutout=0.375", device="cuda"
        ),
        "labels-0.25-32-s16": Study("cifar", f"--model 0.25-32-s16 {ON_GPU}", device="cuda"),
        "distilled-0.25-32-s16": Study(
            "cifar", f"--model 0.25-32-s16 {ON_GPU}", teacher="teacher-1.0-32-s8", device="cuda"
        ),
    },
}


def train(study: Study, seed: int, folder: Path, options: argparse.Namespace) -> dict:
    """Train once, and evaluate where there is a test part."""
    data = (
        options.cifar
        if study.data == "cifar"
        else unpacked(options.shared, study.data, options.runs)
    )
    command: list[object] = ["train", data, *study.options.split()]
    if study.weights:
        place = options.runs / study.weights.replace("/", "-")
        command += ["--weights", imported(options.shared, study.weights, place)]
    if study.teacher:
        command += ["--teacher", options.runs / f"{study.teacher}-{TEACHERS_SEED}"]
    began = time.monotonic()
    found = mobilenets(
        *command, "--seed", seed, "--device", study.device, "--output", folder, "--overwrite"
    )
    found.pop("run")
    seconds = round(time.monotonic() - began)
    test = mobilenets("evaluate", folder, data) if study.data == "cifar" else None
    return {"seconds": seconds, "val": found, "test": test}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--only", nargs="*", default=list(STUDIES))
    parser.add_argument("--names", nargs="*", help="of trainings; else all")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/distillation"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/distillation"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        for seed in options.seeds:
            for title, study in STUDIES[name].items():
                file = options.output / f"{name}-{title}-{seed}.json"
                another = title.startswith("teacher") and seed != TEACHERS_SEED
                if file.is_file() or another or title not in (options.names or STUDIES[name]):
                    continue
                result = {
                    "study": name,
                    "name": title,
                    "seed": seed,
                    "command": f"{study.command()} --seed {seed}",
                    **train(study, seed, options.runs / f"{title}-{seed}", options),
                    **provenance(torch.device(study.device)),
                }
                file.write_text(json.dumps(result, indent=1) + "\n")
                print(file, result["seconds"], "s", flush=True)


if __name__ == "__main__":
    main()
