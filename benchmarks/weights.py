"""Imported weights against the files they come from, each run in its own runtime on the same pixels.

    python benchmarks/weights.py --shared SHARED [--output docs/results/weights.json] [--limit 1000]

SHARED holds `weights/*.tflite`, the leaky model of Pytorch_Retinaface and `data/imagenet_samples.tar`, one image
of each ImageNet class (probably training images: a check of the conversion, no accuracy to quote).

For each model: top-1 of the original and of ours, how often they agree, the correlation of what goes into
the softmax, that of every layer's output on the first images, and what importing takes; and what it takes for the
largest files of all, timm's of width 1.25 and Keras' of 1.0, with random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from mobilenets.architecture.layers import LEAKY_SLOPE, ConvUnit
from mobilenets.architecture.network import MobileNet
from mobilenets.data.images import read_image
from mobilenets.data.transforms import fit, normalise
from mobilenets.training.device import provenance
from mobilenets.weights.files import import_weights
from mobilenets.weights.imported import ImportedWeights
from mobilenets.weights.registry import PUBLISHED_WEIGHTS
from shared_data import files_of

LEAKY = "mobilenetv1_0.25_leaky_imagenet.pth.tar"
LAYERS_ON = 20


class Kept(NamedTuple):
    """A quantised tensor to read after a run."""

    index: int
    scale: float
    zero: int


class Original:
    """A TensorFlow Lite model, perhaps in several files, with all that it computes on the way."""

    def __init__(self, paths: list[Path]) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._parts: list[tuple[Any, list[Kept]]] = []
        for path in paths:
            part = Interpreter(model_path=str(path), experimental_preserve_all_tensors=True)
            part.allocate_tensors()
            tensors = {tensor["index"]: tensor for tensor in part.get_tensor_details()}
            kept = [
                Kept(index, *tensors[index]["quantization"])
                for operator in part._get_ops_details()
                if operator["op_name"] in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
                for index in operator["outputs"]
            ]
            self._parts.append((part, kept))

    def run(self, pixels_HWC: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """What goes into the softmax (1001,), and every convolution's output (H, W, C)."""
        given: np.ndarray = pixels_HWC[None]
        maps: list[np.ndarray] = []
        for part, kept in self._parts:
            begin = part.get_input_details()[0]
            part.set_tensor(begin["index"], given.reshape(begin["shape"]))
            part.invoke()
            maps += [
                (part.get_tensor(tensor.index).astype(np.float32) - tensor.zero) * tensor.scale
                for tensor in kept
            ]
            given = part.get_tensor(part.get_output_details()[0]["index"])
        *maps, logits = maps
        return logits.reshape(-1), [values[0] for values in maps]


class Retinaface:
    """The leaky model as its own project defines it, written out plainly."""

    def __init__(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        self._state = {name.removeprefix("module."): value for name, value in state.items()}

    def run(self, inputs_NCHW: torch.Tensor) -> torch.Tensor:
        """Logits (N, 1000)."""
        state = self._state
        x = inputs_NCHW

        def unit(x: torch.Tensor, conv: str, norm: str, stride: int, groups: int) -> torch.Tensor:
            weight = state[f"{conv}.weight"]
            x = nn.functional.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)
            x = nn.functional.batch_norm(
                x,
                state[f"{norm}.running_mean"],
                state[f"{norm}.running_var"],
                state[f"{norm}.weight"],
                state[f"{norm}.bias"],
            )
            return nn.functional.leaky_relu(x, LEAKY_SLOPE)

        x = unit(x, "stage1.0.0", "stage1.0.1", 2, 1)
        strides = {1: (1, 2, 1, 2, 1), 2: (2, 1, 1, 1, 1, 1), 3: (2, 1)}
        for stage, steps in strides.items():
            for number, stride in enumerate(steps, start=1 if stage == 1 else 0):
                name = f"stage{stage}.{number}"
                x = unit(x, f"{name}.0", f"{name}.1", stride, x.shape[1])
                x = unit(x, f"{name}.3", f"{name}.4", 1, 1)
        return nn.functional.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


@dataclass
class Tally:
    """How often the original and ours are right, and how often they agree."""

    images: int = 0
    right: int = 0
    ours_right: int = 0
    agree: int = 0

    def add(self, guess: int, ours: int, target: int) -> None:
        self.images += 1
        self.right += guess == target
        self.ours_right += ours == target
        self.agree += guess == ours

    def shares(self) -> dict[str, float]:
        return {
            "images": self.images,
            "top1_original": self.right / self.images,
            "top1_imported": self.ours_right / self.images,
            "agree": self.agree / self.images,
        }


def network_of(imported: ImportedWeights) -> MobileNet:
    network = MobileNet(imported.spec, imported.classes).eval()
    network.load_state_dict(imported.state)
    return network


def layers_of(network: MobileNet, inputs_NCHW: torch.Tensor) -> list[np.ndarray]:
    """Every unit's output (H, W, C) for one image."""
    found: list[np.ndarray] = []
    hooks = [
        module.register_forward_hook(
            lambda _, __, output: found.append(output[0].permute(1, 2, 0).numpy().copy())
        )
        for module in network.modules()
        if isinstance(module, ConvUnit)
    ]
    with torch.inference_mode():
        network(inputs_NCHW)
    for hook in hooks:
        hook.remove()
    return found


def cost_of_importing(paths: list[Path]) -> dict[str, float]:
    """Seconds and megabytes beyond what importing torch takes, in a process of its own."""
    code = (
        "import re, sys, time, torch, pathlib\n"
        "status = pathlib.Path('/proc/self/status')\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1]) / 1024\n"
        "before, start = peak(), time.perf_counter()\n"
        "from mobilenets.weights.files import import_weights\n"
        "import_weights([pathlib.Path(p) for p in sys.argv[1:]])\n"
        "print(time.perf_counter() - start, peak() - before)"
    )
    arguments = [sys.executable, "-c", code, *map(str, paths)]
    seconds, megabytes = subprocess.run(
        arguments, capture_output=True, text=True, check=True
    ).stdout.split()
    return {"import_seconds": round(float(seconds), 2), "import_mb": round(float(megabytes))}


def largest(place: Path) -> dict[str, dict[str, float]]:
    """What importing the largest files takes, as timm and Keras write them."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    import timm
    from safetensors.torch import save_file

    state = timm.create_model("mobilenetv1_125", pretrained=False).state_dict()
    paths = [place / "timm-1.25-224.safetensors", place / "timm-1.25-224.pth"]
    save_file(state, paths[0])
    torch.save(state, paths[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = keras.applications.MobileNet(weights=None)
        for name in ("keras-1.0-224.keras", "keras-1.0-224.h5"):
            paths.append(place / name)
            model.save(paths[-1])
    return {path.name: cost_of_importing([path]) for path in paths}


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.reshape(-1), b.reshape(-1))[0, 1])


def compare(name: str, paths: list[Path], images: list[Path]) -> dict[str, Any]:
    """One quantised model."""
    imported = import_weights(paths)
    whole = network_of(import_weights(paths, keep_background=True))
    original = Original(paths)
    tally = Tally()
    correlations: list[float] = []
    by_layer: list[list[float]] = []
    started = time.monotonic()
    for target, path in enumerate(images):
        pixels_CHW = fit(read_image(path, 3), imported.preprocessing)
        inputs = normalise(pixels_CHW[None], imported.preprocessing)
        theirs, maps = original.run(pixels_CHW.permute(1, 2, 0).numpy())
        with torch.inference_mode():
            ours = whole(inputs)[0].numpy()
        correlations.append(correlation(theirs, ours))
        # Without the background, as it is imported.
        tally.add(int(theirs[1:].argmax()), int(ours[1:].argmax()), target)
        if target < LAYERS_ON:
            pairs = zip(maps, layers_of(whole, inputs), strict=True)
            by_layer.append([correlation(a, b) for a, b in pairs])
    print(name, tally, flush=True)
    return {
        "files": [path.name for path in paths],
        **tally.shares(),
        "logits_correlation_mean": float(np.mean(correlations)),
        "logits_correlation_least": float(np.min(correlations)),
        "layers_correlation": [round(value, 5) for value in np.mean(by_layer, axis=0).tolist()],
        "seconds": round(time.monotonic() - started),
        **cost_of_importing(paths),
    }


def compare_leaky(path: Path, images: list[Path]) -> dict[str, Any]:
    """The float model, which must be equal."""
    imported = import_weights([path])
    network, original = network_of(imported), Retinaface(path)
    tally = Tally()
    largest = 0.0
    for target, image in enumerate(images):
        pixels_CHW = fit(read_image(image, 3), imported.preprocessing)
        inputs = normalise(pixels_CHW[None], imported.preprocessing)
        with torch.inference_mode():
            theirs, ours = original.run(inputs), network(inputs)
        tally.add(int(theirs.argmax()), int(ours.argmax()), target)
        largest = max(largest, float((theirs - ours).abs().max()))
    print("leaky", tally, flush=True)
    return {
        "files": [path.name],
        **tally.shares(),
        "largest_difference": largest,
        **cost_of_importing([path]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("docs/results/weights.json"))
    parser.add_argument("--limit", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        with tarfile.open(options.shared / "data" / "imagenet_samples.tar") as archive:
            archive.extractall(place, filter="data")
        # The names begin with the WordNet numbers, whose order is that of the classes.
        images = sorted(Path(place).rglob("n*_*.jp*g"))[: options.limit]
        results: dict[str, Any] = {
            entry.name: compare(entry.name, files_of(options.shared, entry.name), images)
            for entry in PUBLISHED_WEIGHTS
            if entry.source == "coral"
        }
        results["leaky 0.25-224"] = compare_leaky(options.shared / "weights" / LEAKY, images)
        files = largest(Path(place))
    content = {
        "command": "python benchmarks/weights.py --shared SHARED",
        "models": results,
        "largest": files,
        **provenance(torch.device("cpu")),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
