"""Every model in every runtime, in floats and in int8: whether it computes the same, and what int8 costs.

    python benchmarks/exports.py --shared SHARED [--only MODEL ...] [--targets NAME ...] [--limit 1000]

SHARED holds the quantised ImageNet weights of four sizes, the leaky model of Pytorch_Retinaface (trained without
rounding), `data/imagenet_samples.tar` (one image of each ImageNet class, probably training images: a check
of the conversion, no accuracy to quote) and `data/hymenoptera.tar`. The hymenoptera run is the 1.0-224
weights with a classifier fitted here; its images are its validation part.

Each answer goes to docs/results/exports.json at once: a manifest, or the sentence of a refusal. What is there is not run
again. `per tensor` is int8 with one scale for all weights of a layer, as it was once done; `fine-tuned` the leaky model
after `mobilenets quantise` on every second sample, judged on the others.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import torch

from mobilenets.deploy.bundle import Quantisation, export
from mobilenets.deploy.evidence import Evidence, find_calibration, find_evidence
from mobilenets.deploy.target import FLOAT, INT8, TARGETS
from mobilenets.training.device import provenance
from mobilenets.training.memory import keep_freed_memory
from mobilenets.training.run import Run
from shared_data import imported, unpacked
from verb import mobilenets

PUBLISHED = ("coral/0.25-128", "coral/0.5-160", "coral/0.75-192", "coral/1.0-224")
LEAKY, TUNED, TRAINED = "leaky 0.25-224", "leaky 0.25-224, fine-tuned", "hymenoptera 1.0-224"
MODELS = (*PUBLISHED, LEAKY, TUNED, TRAINED)
EXECUTED = ("onnx", "litert", "executorch", "openvino")
PER_TENSOR = "int8 per tensor"
EVERYTHING = 100.0


def run_of(name: str, shared: Path, runs: Path) -> Path:
    """The run of a model, made unless it is there."""
    folder = runs / name.replace("/", "-").replace(" ", "-").replace(",", "")
    if folder.is_dir():
        return folder
    if name in PUBLISHED:
        return imported(shared, name, folder)
    if name == LEAKY:
        file = shared / "weights" / "mobilenetv1_0.25_leaky_imagenet.pth.tar"
        labels = runs / "imagenet-labels.txt"
        labels.write_text(
            "".join(f"{label}\n" for label in Run.load(run_of(PUBLISHED[0], shared, runs)).labels)
        )
        mobilenets("weights", "import", file, "--labels", labels, "--output", folder)
    elif name == TUNED:
        halves(samples(shared, runs), runs)
        mobilenets(
            "quantise",
            run_of(LEAKY, shared, runs),
            "--images",
            runs / "half",
            "--output",
            folder,
            "--epochs",
            10,
        )
    else:
        data = unpacked(shared, "hymenoptera", runs)
        weights = run_of(PUBLISHED[3], shared, runs)
        there = ["--output", folder, "--device", "cpu"]
        mobilenets("train", data, "--weights", weights, "--recipe", "probe", *there)
    return folder


def samples(shared: Path, runs: Path) -> list[Path]:
    """Sample images in the order of ImageNet's classes."""
    return sorted(unpacked(shared, "imagenet_samples", runs).rglob("*.jpg"))


def halves(files: list[Path], runs: Path) -> None:
    """Links to every second sample."""
    shutil.rmtree(runs / "half", ignore_errors=True)
    (runs / "half").mkdir(parents=True)
    for file in files[::2]:
        (runs / "half" / file.name).symlink_to(file.resolve())


def evidence_of(name: str, run: Run, shared: Path, runs: Path, limit: int) -> Evidence:
    if name == TRAINED:
        return find_evidence(run, limit=limit)
    files = samples(shared, runs)
    # A sample's place is its class; the fine-tuned run has not seen every second one.
    chosen = range(1, len(files), 2) if name == TUNED else range(len(files))
    chosen = [
        index for index in chosen if index % max(1, len(files) // limit) == 0 or name == TUNED
    ][:limit]
    images = torch.cat([run.prepare(files[index]) for index in chosen])
    return Evidence(images_NCHW=images, targets_N=torch.tensor(chosen), source="imagenet_samples")


def answer(
    run: Run, target: str, folder: Path, evidence: Evidence, how: Quantisation | None
) -> dict:
    """A manifest, or why there is none."""
    try:
        return export(run, TARGETS[target], folder, evidence, how, overwrite=True).manifest
    except ValueError as error:
        return {"refused": str(error)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=MODELS)
    parser.add_argument("--targets", nargs="*", default=EXECUTED)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--runs", type=Path, default=Path("runs/exports"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/exports.json"))
    options = parser.parse_args()
    keep_freed_memory()
    options.runs.mkdir(parents=True, exist_ok=True)
    rows = json.loads(options.output.read_text())["rows"] if options.output.is_file() else []
    done = {(row["name"], row["target"], row["precision"]) for row in rows}
    for name in options.only:
        folder = run_of(name, options.shared, options.runs)
        run = Run.load(folder)
        wanted = [(target, precision) for target in options.targets for precision in (FLOAT, INT8)]
        if name in (LEAKY, TRAINED):
            wanted.append(("onnx", PER_TENSOR))
        wanted = [ask for ask in wanted if (name, *ask) not in done]
        if not wanted:
            continue
        evidence = evidence_of(name, run, options.shared, options.runs, options.limit)
        calibration = find_calibration(
            run, None if name == TRAINED else [str(options.runs / "imagenet_samples")]
        )
        for target, precision in wanted:
            how = None
            if precision != FLOAT:
                whole = precision == PER_TENSOR
                how = Quantisation(
                    calibration_NCHW=calibration,
                    per_channel=not whole,
                    max_loss=EVERYTHING if whole else 1.0,
                )
            began = time.monotonic()
            bundle = folder / f"{target}-{precision.replace(' ', '-')}"
            found = answer(run, target, bundle, evidence, how)
            row = {
                "name": name,
                **found,
                "target": target,
                "precision": precision,
                "seconds": round(time.monotonic() - began, 1),
            }
            rows.append(row)
            result = {
                "command": "python benchmarks/exports.py --shared SHARED",
                "rows": rows,
                **provenance(torch.device("cpu")),
            }
            options.output.write_text(json.dumps(result, indent=1) + "\n")
            print(
                name,
                target,
                precision,
                row.get("lost", row.get("refused", row.get("parity"))),
                row["seconds"],
                "s",
                flush=True,
            )


if __name__ == "__main__":
    main()
