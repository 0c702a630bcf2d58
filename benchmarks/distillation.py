"""What a teacher is worth: face attributes and embeddings without a label, and CIFAR-10 beside the labels.

    python benchmarks/distillation.py --shared SHARED [--cifar cifar10-folder] [--only attributes cifar faces people verification]
                                      [--names NAME ...] [--seeds 0 1 2] [--runs runs/distillation]

SHARED holds `data/faces_attr.tar`, `data/orl_faces.tar`, MobileFaceNet.onnx and the quantised ImageNet weights; `--cifar` is as
benchmarks/cifar10.py takes it. Each training leaves one JSON file in docs/results/distillation/; what is there is not run again.
A teacher is trained once, with the first seed.

- `attributes`: a teacher, 1.0-128 from ImageNet's weights, learns from labels; students from its answers alone, and the same
  students from the labels.
- `cifar`: 0.25-32-s16 with and without a teacher of width 0.5, by the same recipe.
- `faces`: embeddings of width 1.0 and 0.5 learn from those of MobileFaceNet alone, and are verified on people of another data set.
- `people`: embeddings learn from 25 people, and are verified on 15 others.
- `verification`: beside the former, the teacher itself, its size and time, and plain pixels.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.data.loaders import make_loader
from mobilenets.runtimes.onnx import OnnxModel
from mobilenets.runtimes.timing import time_calls
from mobilenets.tasks.embedding.data import open_identities
from mobilenets.tasks.embedding.task import unit
from mobilenets.tasks.embedding.verification import rank_one, similarities, verify
from mobilenets.training.device import provenance
from mobilenets.training.run import Run
from shared_data import imported, unpacked
from verb import mobilenets


@dataclass(frozen=True)
class Study:
    """One training: what on, from which weights, by which teacher, and how; and on what it is tested, if not on its own data."""

    data: str
    options: str
    weights: str = ""
    teacher: str = ""
    test: str = ""

    def command(self) -> str:
        """As a reader would type it."""
        start = f" --weights {self.weights}" if self.weights else ""
        own = "" if self.teacher == FACE_TEACHER else "runs/"
        taught = f" --teacher {own}{self.teacher}" if self.teacher else ""
        return f"mobilenets train {self.data} {self.options}{start}{taught}"


FACES = "--task attributes --model"
ALONE = "--recipe attributes-distil --set distillation.sees=whole"
# One teacher teaches all.
TEACHERS_SEED = 0
BY_FACES = (
    "--task embedding --recipe embedding-distil "
    "--set distillation.mean=[0.485,0.456,0.406] --set distillation.std=[0.229,0.224,0.225]"
)
BY_PEOPLE = "--task embedding --model 0.5-112 --epochs 20 --set held_out=0.375 --recipe"
FACE_TEACHER = "MobileFaceNet.onnx"
AS_MOBILEFACENET = Preprocessing(
    112,
    112,
    resize="squash",
    crop_fraction=1.0,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
ON_CIFAR = (
    "--recipe cifar --set precision=bf16 --set batch_size=128 --set optimizer.norm_bias_lr=4 "
    "--set whiten=false --set schedule.warmup=0.1 --set growth.until=0.5 --set held_out=0.04"
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
        "teacher-0.5-32-s16": Study(
            "cifar", f"--model 0.5-32-s16 --max-time 10m {ON_CIFAR}", test="cifar"
        ),
        **{
            f"{how}-0.25-32-s16": Study(
                "cifar",
                f"--model 0.25-32-s16 --epochs 12 {ON_CIFAR}",
                teacher="teacher-0.5-32-s16" if how == "distilled" else "",
                test="cifar",
            )
            for how in ("distilled", "labels")
        },
    },
    "faces": {
        f"distilled-{model}": Study(
            "faces_attr",
            f"--model {model} --epochs {epochs} {BY_FACES}",
            weights,
            FACE_TEACHER,
            test="orl_faces",
        )
        for model, weights, epochs in (
            ("1.0-112", "coral/1.0-224", 8),
            ("0.5-112", "coral/0.5-160", 14),
        )
    },
    "people": {
        f"{recipe}-0.5-112": Study(
            "orl_faces", f"{BY_PEOPLE} {recipe}", "coral/0.5-160", test="orl_faces"
        )
        for recipe in ("triplet", "arcface")
    },
}


def place_of(data: str, options: argparse.Namespace) -> Path:
    """Where a data set lies."""
    return options.cifar if data == "cifar" else unpacked(options.shared, data, options.runs)


def train(study: Study, seed: int, folder: Path, options: argparse.Namespace) -> dict:
    """Train once, and evaluate where there is a test part."""
    command: list[object] = ["train", place_of(study.data, options), *study.options.split()]
    if study.weights:
        place = options.runs / study.weights.replace("/", "-")
        command += ["--weights", imported(options.shared, study.weights, place)]
    if study.teacher == FACE_TEACHER:
        command += ["--teacher", options.shared / "weights" / FACE_TEACHER]
    elif study.teacher:
        command += ["--teacher", options.runs / f"{study.teacher}-{TEACHERS_SEED}"]
    began = time.monotonic()
    found = mobilenets(
        *command, "--seed", seed, "--device", "cpu", "--output", folder, "--overwrite"
    )
    found.pop("run")
    seconds = round(time.monotonic() - began)
    test = None
    if study.test:
        test = mobilenets("evaluate", folder, place_of(study.test, options))
        test = {
            name: value
            for name, value in test.items()
            if name == "verification" or isinstance(value, int | float)
        }
    return {"seconds": seconds, "val": found, "test": test}


def verified(options: argparse.Namespace) -> dict:
    """The teacher of faces, its students and plain pixels on the people of ORL, with bytes and milliseconds."""
    source = open_identities(unpacked(options.shared, "orl_faces", options.runs)).splits["all"]
    teacher = options.shared / "weights" / FACE_TEACHER
    files, runs = {"teacher": teacher}, {}
    for title in STUDIES["faces"]:
        run = Run.load(options.runs / f"{title}-{TEACHERS_SEED}")
        file = run.folder / "onnx" / "model.onnx"
        if not file.is_file():
            mobilenets("export", run.folder, "--to", "onnx", "--data", options.runs / "orl_faces")
        files[title], runs[title] = file, run
    models = {title: OnnxModel(file) for title, file in files.items()}
    pixels = [
        np.asarray(Image.open(path).convert("L"), np.float32).ravel()
        for path in source.images.paths
    ]
    embeddings = {"pixels": np.stack(pixels) / 255 - 0.5}
    for title, model in models.items():
        how = runs[title].preprocessing if title in runs else AS_MOBILEFACENET
        loader, _ = make_loader(source, how, 64, what=f"ORL for {title}")
        inputs = [batch.images_NCHW.contiguous().numpy() for batch in loader.batches()]
        one_by_one = [model.run(image[None]) for batch in inputs for image in batch]
        embeddings[title] = np.concatenate(one_by_one)
    rows = {}
    for title, values_ND in embeddings.items():
        unit_ND = unit(values_ND)
        rank1, _ = rank_one(unit_ND, source.targets)
        found = verify(*similarities(unit_ND, source.targets)).to_dict()
        rows[title] = {"rank1": rank1, **found}
    blank = np.zeros((1, 3, 112, 112), np.float32)
    calls = {title: partial(model.run, blank) for title, model in models.items()}
    for title, timing in time_calls(calls, seconds=30).items():
        rows[title] |= {
            "milliseconds": timing.median_ms,
            "bytes": files[title].stat().st_size,
        }
    return {"images": len(source), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--only", nargs="*", default=[*STUDIES, "verification"])
    parser.add_argument("--names", nargs="*", help="of trainings; else all")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/distillation"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/distillation"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        if name == "verification":
            result = {
                "command": "python benchmarks/distillation.py --shared SHARED --only verification",
                **verified(options),
                **provenance(torch.device("cpu")),
            }
            (options.output / "verification.json").write_text(json.dumps(result, indent=1) + "\n")
            continue
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
                    **provenance(torch.device("cpu")),
                }
                file.write_text(json.dumps(result, indent=1) + "\n")
                print(file, result["seconds"], "s", flush=True)


if __name__ == "__main__":
    main()
