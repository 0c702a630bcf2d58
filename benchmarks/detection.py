"""Detectors: what imported weights are worth, what training makes of them, how fast it all is.

    python benchmarks/detection.py --shared SHARED [--only imported ssd frcnn exports speed] [--runs runs/detection]

SHARED holds `weights/ssd_mobilenet_v1_1_metadata_1.tflite`, `data/coco128.tar` and `data/bccd_voc.tar`. Each study leaves one
JSON file in docs/results/detection/; what is there is not run again. Needs the extras litert, executorch and openvino.

- `imported`: boxes of the imported weights against those of the original file in LiteRT on 256 images of COCO, and the mAP of both on its 128
  validation images;
- `ssd`, `frcnn`: BCCD's official split, from the imported weights; its test part once, at the end;
- `exports`: the imported SSD in every runtime, in floats and in int8;
- `speed`: one image through the file against what its mult-adds foretell from the classifier's speed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_iou

from mobilenets.architecture import MobileNetSpec
from mobilenets.architecture.detector import Selection, model_layers, parse_spec
from mobilenets.architecture.network import MobileNet
from mobilenets.cost.count import count
from mobilenets.data.box_loader import BoxLoader
from mobilenets.data.boxes import open_boxes
from mobilenets.deploy.bundle import Quantisation, export
from mobilenets.deploy.evidence import find_calibration, find_evidence
from mobilenets.deploy.exportable import Exportable
from mobilenets.deploy.target import FLOAT, INT8, TARGETS
from mobilenets.runtimes.timing import time_calls
from mobilenets.tasks.detection.boxes import Objects, boxes_of, objects_in
from mobilenets.tasks.detection.metrics import DetectionMetrics
from mobilenets.tasks.detection.task import Detection, distortion_of
from mobilenets.training.curves import read_curves
from mobilenets.training.device import provenance
from mobilenets.training.memory import keep_freed_memory
from mobilenets.training.run import Run
from mobilenets.weights.tflite_file import read_tflite_detector
from shared_data import unpacked
from verb import mobilenets

WEIGHTS = "tfhub/ssd300/0.75"
EXECUTED = ("onnx", "litert", "executorch", "openvino")
# Boxes of the original above this score must be found again, overlapping by this much.
SURE, OVERLAP = 0.3, 0.8
TRAINED = {
    "ssd": "--model ssd300/0.75 --recipe ssd-finetune --max-time 36m",
    "frcnn": "--model frcnn300/0.75 --recipe frcnn-finetune --max-time 32m",
}


class Places:
    """Where the data and the runs are."""

    def __init__(self, shared: Path, runs: Path) -> None:
        self.shared, self.runs = shared, runs
        runs.mkdir(parents=True, exist_ok=True)

    @property
    def weights(self) -> Path:
        run = self.runs / "coco"
        if not run.is_dir():
            mobilenets("weights", "import", self.original, "--output", run)
        return run

    @property
    def original(self) -> Path:
        return self.shared / "weights" / "ssd_mobilenet_v1_1_metadata_1.tflite"

    @property
    def coco(self) -> Path:
        return unpacked(self.shared, "coco128", self.runs)

    @property
    def bccd(self) -> Path:
        folder = self.runs / "bccd"
        if not folder.is_dir():
            # The archive's folder has a name of its own.
            unpacked(self.shared, "bccd_voc", self.runs)
        return folder


class Original:
    """The file as TensorFlow runs it."""

    def __init__(self, file: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.names = read_tflite_detector(file).labels
        self._interpreter = Interpreter(model_path=str(file))
        self._interpreter.allocate_tensors()

    def find(self, pixels_HWC: np.ndarray, labels: tuple[str, ...]) -> Objects:
        """What it finds, with our numbers of the classes."""
        begin, *_ = self._interpreter.get_input_details()
        self._interpreter.set_tensor(begin["index"], pixels_HWC[None])
        self._interpreter.invoke()
        boxes, classes, scores = (
            torch.from_numpy(self._interpreter.get_tensor(end["index"])[0].copy())
            for end in self._interpreter.get_output_details()[:3]
        )
        numbers = [self._number(int(index), labels) for index in classes]
        known = torch.tensor([number is not None for number in numbers])
        found = torch.tensor([number for number in numbers if number is not None])
        return Objects(boxes[known][:, [1, 0, 3, 2]].clamp(0, 1), scores[known], found)

    def _number(self, index: int, labels: tuple[str, ...]) -> int | None:
        name = self.names[index + 1]
        return labels.index(name) if name in labels else None


def study_imported(places: Places) -> dict:
    """The original's boxes found again, and the mAP of both."""
    run = Run.load(places.weights)
    original = Original(places.original)
    grid_A4 = boxes_of(run.spec)
    source = open_boxes(places.coco)
    told = again = 0
    figures = {}
    for name, split in source.splits.items():
        theirs = {}
        for path in split.images.paths:
            pixels = np.asarray(
                Image.open(path).convert("RGB").resize((300, 300), Image.Resampling.BILINEAR)
            )
            theirs[path] = original.find(pixels, run.labels)
            (mine,) = objects_in(
                run.outputs(run.prepare(pixels)), grid_A4, selection=Selection(score=0.1)
            )
            for box, score, label in zip(
                theirs[path].boxes_M4, theirs[path].scores_M, theirs[path].labels_M, strict=True
            ):
                if score <= SURE:
                    continue
                told += 1
                same = mine.boxes_M4[mine.labels_M == label]
                again += bool((box_iou(box[None], same) > OVERLAP).any())
        if "val" in name:
            figures["ours"] = mobilenets("evaluate", places.weights, places.coco, "--split", name)
            _, loader, _ = run.task.open_for_evaluation(
                str(places.coco), name, {}, on_bad_image="stop"
            )
            answers = iter(theirs.values())
            metrics = DetectionMetrics(
                run.labels,
                lambda outputs, answers=answers: [next(answers) for _ in outputs],
                lambda *_: torch.zeros(()),
            )
            for batch in loader.batches():
                metrics.update(batch.images_NCHW, batch)
            figures["original"] = metrics.compute()
    return {
        "images": sum(map(len, source.splits.values())),
        "boxes": told,
        "found_again": again / told,
        "map50": {who: figures[who]["map50"] for who in figures},
        "map": {who: figures[who]["map"] for who in figures},
    }


def study_training(places: Places, name: str, seed: int = 0) -> dict:
    """BCCD from the imported weights."""
    folder = places.runs / name
    command = (
        f"train {{}} --task detection --weights {{}} {TRAINED[name]} --seed {seed} --device cpu"
    )
    asked = command.format(places.bccd, places.weights).split()
    began = time.monotonic()
    trained = mobilenets(*asked, "--output", folder, "--overwrite")
    seconds = time.monotonic() - began
    test = mobilenets("evaluate", folder, places.bccd, "--split", "test")
    rows = read_curves(folder)
    keys = ("epoch", "seconds", "train/loss", "val/loss", "val/map50", "val/map")
    return {
        "command": f"mobilenets {command.format('bccd', WEIGHTS)}",
        "seed": seed,
        "seconds": round(seconds),
        "model": str(Run.load(folder).spec),
        "val_map50": trained["map50"],
        "test": {key: test[key] for key in test if key not in ("run", "data")},
        "curve": {key: [row.get(key) for row in rows] for key in keys},
    }


def study_exports(places: Places) -> dict:
    """The imported SSD in every runtime, judged on the validation images of COCO, quantised by others."""
    run = Run.load(places.weights)
    evidence, rows = find_evidence(run, data=str(places.coco)), []
    images = [str(places.coco / "train2017")]
    how = Quantisation(calibration_NCHW=find_calibration(run, images, limit=64))
    for target in EXECUTED:
        for precision in (FLOAT, INT8):
            folder = run.folder / f"{target}-{precision}"
            asked = None if precision == FLOAT else how
            try:
                found = export(
                    run, TARGETS[target], folder, evidence, asked, overwrite=True
                ).manifest
            except ValueError as error:
                found = {"refused": str(error)}
            rows.append({**found, "target": target, "precision": precision})
            print(target, precision, found.get("map"), found.get("parity", found), flush=True)
    return {"rows": rows}


def study_speed(places: Places) -> dict:
    """One 300-pixel image through ONNX Runtime with 2 threads, in turns with the classifier; and where training's time goes."""
    detector, classifier = parse_spec("ssd300/0.5"), MobileNetSpec(0.5, 300)
    folder = places.runs / "speed"
    start = ["train", places.bccd, "--task", "detection", "--model", str(detector), "--epochs", 3]
    mobilenets(*start, "--device", "cpu", "--output", folder / "run", "--overwrite")
    run = Run.load(folder / "run")
    evidence = find_evidence(run, limit=32)
    files = {"ssd": export(run, TARGETS["onnx"], folder / "ssd", evidence, overwrite=True).file}
    torch.manual_seed(0)
    files["classifier"] = folder / "classifier.onnx"
    network = MobileNet(classifier, 1000).eval()
    TARGETS["onnx"].write(Exportable.of_network(network, classifier), files["classifier"])
    models = {name: TARGETS["onnx"].open(file, 2) for name, file in files.items()}
    image = evidence.images_NCHW[:1].numpy()
    calls = {name: (lambda model=model: model.run(image)) for name, model in models.items()}
    timings = time_calls(calls, seconds=30)
    works = {
        "ssd": count(model_layers(detector, len(run.labels))).mult_adds,
        "classifier": count(model_layers(classifier, 1000)).mult_adds,
    }
    took = timings["ssd"].median_ms / timings["classifier"].median_ms
    return {
        "threads": 2,
        "median_ms": {name: timing.median_ms for name, timing in timings.items()},
        "mult_adds": works,
        "times_what_is_foretold": took / (works["ssd"] / works["classifier"]),
        "training": time_of_training(run, places.bccd),
    }


def time_of_training(run: Run, data: Path) -> dict[str, float]:
    """Images a second of the last epoch, milliseconds an image of its parts, and two shares.

    `work_outside` is that of all work, in milliseconds of one core, which is not the network's: reading and changing images, and
    matching boxes. `time_outside` is that of the time which the network alone would not take.
    """
    task = Detection.from_data(str(data), run.spec)
    recipe = task.recipes()["ssd-finetune"]
    train = open_boxes(data).splits["train"]
    loader = BoxLoader(
        train, task.preprocessing, recipe.batch_size, distortion_of(recipe), workers=0
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    began = time.monotonic()
    batches = list(loader.batches())
    reading = 1000 * (time.monotonic() - began) / loader.images
    torch.set_num_threads(threads)
    network = task.build_model(run.spec).train().to(memory_format=torch.channels_last)
    batch = batches[0].to(torch.device("cpu"))

    def forth_and_back() -> None:
        torch.autograd.backward(network(batch.images_NCHW).square().mean())

    def learn() -> None:
        torch.autograd.backward(task.loss(network, batch, recipe)["loss"])

    timings = time_calls({"network": forth_and_back, "with_matching": learn}, seconds=30)
    alone, both = (timings[name].median_ms / len(batch) for name in ("network", "with_matching"))
    rate = read_curves(run.folder)[-1]["train/images_per_second"]
    outside = reading + threads * (both - alone)
    return {
        "images_per_second": rate,
        "reading_ms": reading,
        "matching_ms": both - alone,
        "network_ms": alone,
        "work_outside": outside / (outside + threads * alone),
        "time_outside": 1 - alone * rate / 1000,
    }


STUDIES: dict[str, Callable[[Places], dict]] = {
    "imported": study_imported,
    "ssd": lambda places: study_training(places, "ssd"),
    "frcnn": lambda places: study_training(places, "frcnn"),
    "exports": study_exports,
    "speed": study_speed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(STUDIES))
    parser.add_argument("--runs", type=Path, default=Path("runs/detection"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/detection"))
    options = parser.parse_args()
    keep_freed_memory()
    places = Places(options.shared, options.runs)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        file = options.output / f"{name}.json"
        if file.is_file():
            continue
        found = STUDIES[name](places)
        result = {
            "command": f"python benchmarks/detection.py --shared SHARED --only {name}",
            **found,
            **provenance(torch.device("cpu")),
        }
        file.write_text(json.dumps(result, indent=1) + "\n")
        print(name, file, flush=True)


if __name__ == "__main__":
    main()
