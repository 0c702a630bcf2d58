"""CIFAR-10, from five minutes to an hour and a half, and what each trick is worth.

    python benchmarks/cifar10.py STUDY --data CIFAR10 [--only NAME ...] [--output docs/results/cifar10]

CIFAR10 is a folder of Parquet files in the Hub's layout. Each training holds a tenth of the training
images out (`long`, `short` and `gpu` a twenty-fifth), and every choice, the epoch included, is made on them. The test part is looked at
when a run of `long`, `short`, `race` or `gpu` is over; `ablation` never sees it. Each run leaves one JSON
file: command, recipe, seed, figures, curve, machine, versions, date. What has its file is not run again, and a
run that was broken off goes on, as long as its folder under --runs is there.
`python benchmarks/results_page.py` makes the page and its pictures from them.

Studies: `long`, one run of width 1.0 in at most 100 minutes, exported to ONNX and evaluated there too;
`short`, three seeds in 25 minutes each; `race`, the article's own recipe for an hour against `cifar`, on
the same cores; `ablation`, runs of 5 minutes that differ in one trick; `gpu`, width 1.0 and s8, once in 7
minutes and twice in 10 and a half (both were started at once, each with --only).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from mobilenets.runtimes.onnx import OnnxModel
from mobilenets.training.curves import curve_of, read_curves
from mobilenets.training.device import provenance
from mobilenets.training.run import Run
from verb import mobilenets

CURVE = ("epoch", "seconds", "train/loss", "train/top1", "val/loss", "val/top1")


@dataclass(frozen=True)
class Training:
    """Runs: the options of `mobilenets train`, what is changed, the seeds, what comes after."""

    options: str
    changed: str = ""
    seeds: tuple[int, ...] = (0,)
    test: bool = True
    export: bool = False
    device: str = "cpu"


LONG = (
    "--model 1.0-32-s16 --recipe cifar --max-time 98m --set precision=bf16 --set batch_size=128 "
    "--set optimizer.norm_bias_lr=4 --set whiten=false "
    "--set schedule.warmup=0.1 --set growth.until=0.5 --set held_out=0.04"
)
GPU = (
    "--model 1.0-32-s8 --recipe cifar --max-time 7m --set precision=bf16 "
    "--set batch_size=256 --set optimizer.lr=0.2 --set optimizer.norm_bias_lr=1 --set schedule.warmup=0.1 "
    "--set growth=null --set whiten=false --set augmentation.cutout=0.375 --set held_out=0.04"
)
LONG_ON_GPU = (
    "--model 1.0-32-s8 --recipe cifar --max-time 10m30s --set precision=bf16 "
    "--set batch_size=512 --set drop_last=true --set optimizer.lr=0.3 --set optimizer.norm_bias_lr=1 "
    "--set schedule.warmup=0.1 --set growth=null --set whiten=false --set held_out=0.04"
)
SHORT = (
    "--model 0.5-32-s16 --recipe cifar --max-time 24m30s --set precision=bf16 --set batch_size=128 "
    "--set optimizer.norm_bias_lr=4 --set whiten=false "
    "--set schedule.warmup=0.1 --set growth.until=0.5 --set held_out=0.04"
)
FIVE_MINUTES = "--model 0.5-32-s16 --recipe cifar --max-time 5m --set precision=bf16"
TRICKS = {
    "cifar": "",
    "half the rate": "optimizer.lr=0.1",
    "no Nesterov": "optimizer.nesterov=false",
    "shift of batch norm at the same rate": "optimizer.norm_bias_lr=1",
    "pointwise layers start at random": "dirac=false",
    "first layer learnt": "whiten=false",
    "images whole from the start": "growth=null",
    "mirrored at random": "augmentation.alternate=false",
    "no shift": "augmentation.shift=0",
    "cutout of 12 pixels": "augmentation.cutout=0.375",
    "no label smoothing": "label_smoothing=0",
    "no average": "ema_decay=null",
    "fp32": "precision=fp32",
}
STUDIES: dict[str, dict[str, Training]] = {
    "long": {"long": Training(LONG, export=True)},
    "short": {"short": Training(SHORT, seeds=(0, 1, 2))},
    "race": {
        "article": Training("--model 1.0-32 --recipe article --max-time 60m"),
        "ours": Training(FIVE_MINUTES),
    },
    "ablation": {
        name: Training(FIVE_MINUTES, seeds=(0, 1), changed=changed, test=False)
        for name, changed in TRICKS.items()
    },
    "gpu": {
        "gpu": Training(GPU, device="cuda"),
        "longer mixed": Training(
            LONG_ON_GPU,
            changed="augmentation.cutmix=1 augmentation.mixup=0.2 label_smoothing=0.05",
            device="cuda",
        ),
        "longer cutout": Training(
            LONG_ON_GPU,
            changed="augmentation.cutout=0.5 optimizer.weight_decay=0.001",
            device="cuda",
        ),
    },
}


def run_of(training: Training, seed: int, data: Path, folder: Path) -> dict:
    """Train, or go on; evaluate; and give all that is worth keeping."""
    options = [*training.options.split(), "--seed", str(seed)]
    for change in training.changed.split():
        options += ["--set", change]
    if (folder / "state.pt").is_file():
        best = mobilenets("train", "--resume", folder, "--device", training.device)
    else:
        there = ["--output", folder, "--overwrite", "--device", training.device]
        best = mobilenets("train", data, *options, *there)
    rows = read_curves(folder)
    run = Run.load(folder)
    result = {
        "command": f"mobilenets train {data.name} {' '.join(options)}",
        "data": "CIFAR-10 (JPEG)",
        "model": best["model"],
        "seed": seed,
        "changed": training.changed,
        "recipe": run.recipe.model_dump(exclude={"expected"}),
        "seconds": round(rows[-1]["seconds"]),
        "epochs": len(rows),
        "best_epoch": best["epoch"],
        "val_top1": best["top1"],
        "curve": curve_of(rows, CURVE),
        **provenance(torch.device(training.device)),
    }
    if "val_raw/top1" in rows[-1]:
        result["last_val_top1"] = {
            "averaged": rows[-1]["val/top1"],
            "raw": rows[-1]["val_raw/top1"],
        }
    if training.test:
        result["test"] = mobilenets("evaluate", folder, data, "--split", "test")
        mirrored = mobilenets("evaluate", folder, data, "--split", "test", "--mirror")
        result["test_top1_mirror"] = mirrored["top1"]
        for name in ("run", "data"):
            del result["test"][name]
    if training.export:
        result["onnx"] = exported(run, data)
    return result


def exported(run: Run, data: Path) -> dict:
    """Top-1 of the exported file on the whole test part, through ONNX Runtime."""
    file = mobilenets("export", run.folder, "--to", "onnx", "--overwrite")["file"]
    _, loader, _ = run.task.open_for_evaluation(str(data), "test", {}, on_bad_image="stop")
    model = OnnxModel(Path(file))
    right = agreed = images = 0
    for batch in loader.batches():
        outputs = torch.from_numpy(model.run(batch.images_NCHW.contiguous().numpy()))
        guesses = outputs.argmax(1)
        right += int((guesses == batch.targets_N).sum())
        agreed += int((guesses == run.outputs(batch.images_NCHW).argmax(1)).sum())
        images += len(batch)
    return {"images": images, "top1": right / images, "agrees_with_torch": agreed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=None, help="names of trainings")
    parser.add_argument("--seeds", type=int, nargs="*", default=None)
    parser.add_argument("--runs", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/cifar10"))
    options = parser.parse_args()
    folder = options.output / options.study
    folder.mkdir(parents=True, exist_ok=True)
    for name, training in STUDIES[options.study].items():
        if options.only is not None and name not in options.only:
            continue
        for seed in training.seeds if options.seeds is None else options.seeds:
            file = folder / f"{name.replace(' ', '-')}-seed{seed}.json"
            if file.is_file():
                continue
            result = run_of(training, seed, options.data, options.runs / options.study / file.stem)
            result = {"study": options.study, "name": name, **result}
            file.write_text(json.dumps(result, indent=1) + "\n")
            test = f", test {result['test']['top1']:.4f}" if training.test else ""
            print(f"{file.stem}: val {result['val_top1']:.4f}{test}", flush=True)


if __name__ == "__main__":
    main()
