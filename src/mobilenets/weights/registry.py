"""Published weights of MobileNet V1: where they are, and what their publishers say of them.

Nothing here needs torch. `mobilenets weights list` prints it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mobilenets.architecture.body import Padding
from mobilenets.architecture.detector import COCO_CLASSES, DetectorSpec, Spec, model_layers
from mobilenets.architecture.spec import MobileNetSpec
from mobilenets.cost.count import Cost, count
from mobilenets.cost.published import PUBLISHED, Published

HUB = "hf://"

_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet"
_SLIM = "https://storage.googleapis.com/download.tensorflow.org/models"
_CORAL = "https://raw.githubusercontent.com/google-coral/test_data/104342d2d3480b3e66203073dac24f4e2dbb4c41"
_TFHUB = "https://storage.googleapis.com/tfhub-lite-models/tensorflow/lite-model"
_APACHE = "Apache-2.0"


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """One file: an address, or `hf://OWNER/NAME/FILE` on the Hugging Face Hub.

    Args:
        sha256: where it is known beforehand; the Hub tells its own with each answer.
        size: in bytes, where it is known.
        member: the one file to take out of an archive, by its name without folders.
    """

    address: str
    sha256: str = ""
    size: int | None = None
    member: str = ""


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """One set of weights.

    Args:
        source: who publishes it.
        spec: what it is of, with activation and padding.
        files: all that make the model, in order.
        beside: files that say more about it, read where they lie beside the weights.
        input: how an image becomes the input, in short.
        outputs: of the classifier in the file, of which of 1,001 the first is dropped when it is read; classes of a detector.
        top1, top5: on ImageNet's validation images, in percent, as `reported_by` says; none of a detector.
        bytes_per_weight: 4, or 1 in a file of 8-bit integers.
    """

    source: str
    spec: Spec
    files: tuple[PublishedFile, ...]
    beside: tuple[PublishedFile, ...] = ()
    licence: str
    input: str = "RGB, x / 127.5 - 1"
    outputs: int
    top1: float | None
    top5: float | None
    reported_by: str
    bytes_per_weight: int = 4

    @property
    def name(self) -> str:
        """`source/model`, such as `keras/0.5-160`."""
        return f"{self.source}/{self.spec}"

    @property
    def cost(self) -> Cost:
        """Mult-adds and parameters, with all outputs of the file."""
        return count(model_layers(self.spec, self.outputs))

    @property
    def bytes(self) -> int:
        """Of the weights themselves, reckoned where no size is published; an archive is larger."""
        sizes = [file.size for file in self.files if file.size is not None]
        if len(sizes) == len(self.files):
            return sum(sizes)
        return self.bytes_per_weight * self.cost.parameters

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "model": str(self.spec),
            "top1": self.top1,
            "top5": self.top5,
            "reported_by": self.reported_by,
            "mult_adds": self.cost.mult_adds,
            "parameters": self.cost.parameters,
            "bytes": self.bytes,
            "activation": self.spec.activation,
            "padding": self.spec.padding,
            "input": self.input,
            "outputs": self.outputs,
            "licence": self.licence,
            "files": [
                {
                    "address": file.address,
                    **({"member": file.member} if file.member else {}),
                    "sha256": file.sha256 or None,
                }
                for file in (*self.files, *self.beside)
            ],
        }


def find_weights(name: str) -> PublishedWeights:
    """One entry by its name.

    Raises:
        ValueError: there is none of that name; the nearest names are given.

    >>> find_weights("keras/0.5-160").top1
    59.9
    """
    entries = {entry.name: entry for entry in PUBLISHED_WEIGHTS}
    if name not in entries:
        near = difflib.get_close_matches(name, entries, 3, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see mobilenets weights list"
        raise ValueError(f"{name!r} names no published weights: {hint}")
    return entries[name]


def _spec(row: Published, padding: Padding) -> MobileNetSpec:
    return MobileNetSpec(
        row.width,
        row.resolution,
        activation="relu6",
        padding=padding,
        batch_norm_epsilon=1e-3,
    )


def _keras(row: Published) -> PublishedWeights:
    width = {1.0: "1_0", 0.75: "7_5", 0.5: "5_0", 0.25: "2_5"}[row.width]
    return PublishedWeights(
        source="keras",
        spec=_spec(row, "keras"),
        files=(PublishedFile(address=f"{_KERAS}/mobilenet_{width}_{row.resolution}_tf.h5"),),
        licence=_APACHE,
        outputs=1000,
        top1=row.slim_2017_top1,
        top5=row.slim_2017_top5,
        reported_by="TensorFlow-Slim, of the weights that Keras converted",
    )


def _slim(row: Published) -> PublishedWeights:
    name = f"mobilenet_v1_{row.width}_{row.resolution}"
    file = PublishedFile(
        address=f"{_SLIM}/mobilenet_v1_2018_02_22/{name}.tgz", member=f"{name}.tflite"
    )
    return PublishedWeights(
        source="slim",
        spec=_spec(row, "tensorflow"),
        files=(file,),
        licence=_APACHE,
        outputs=1001,
        top1=row.slim_2018_top1,
        top5=row.slim_2018_top5,
        reported_by="TensorFlow-Slim",
    )


def _quantised(row: Published, source: str, *files: PublishedFile) -> PublishedWeights:
    return PublishedWeights(
        source=source,
        spec=_spec(row, "tensorflow"),
        files=files,
        licence=_APACHE,
        outputs=1001,
        top1=row.slim_2018_int8_top1,
        top5=row.slim_2018_int8_top5,
        reported_by="TensorFlow-Slim, of its quantised models",
        bytes_per_weight=1,
    )


def _slim_int8(row: Published) -> PublishedWeights:
    name = f"mobilenet_v1_{row.width}_{row.resolution}_quant"
    file = PublishedFile(
        address=f"{_SLIM}/mobilenet_v1_2018_08_02/{name}.tgz", member=f"{name}.tflite"
    )
    return _quantised(row, "slim-int8", file)


# Of each file the SHA-256 and the size, as they were found; the 1.0 model stands in two.
_CORAL_FILES: dict[tuple[float, int], tuple[tuple[str, str, int], ...]] = {
    (1.0, 224): (
        (
            "mobilenet_v1_1.0_224_quant_embedding_extractor.tflite",
            "f409ef4f73fcbb9667841965623c5c8524aac33d41b9bf5f3667161fb4a76319",
            3_251_736,
        ),
        (
            "tools/mobilenet_quant_v1_224_head_layers.tflite",
            "65a88984b258c6f3c99d7573acac8cf85bd747293d83d51fafc1c2fb6d632286",
            1_030_768,
        ),
    ),
    (0.75, 192): (
        (
            "mobilenet_v1_0.75_192_quant.tflite",
            "41daeb22fdcf947e0e5ec32373aa9df7c31f3ef45dbd0ef7b5940fbce3c20f6a",
            2_652_542,
        ),
    ),
    (0.5, 160): (
        (
            "mobilenet_v1_0.5_160_quant.tflite",
            "3cc6d2ca460abd2e0f699a6d0d2550c6b61c6e3b0e27a3616e384ea74cb86f43",
            1_392_846,
        ),
    ),
    (0.25, 128): (
        (
            "mobilenet_v1_0.25_128_quant.tflite",
            "cb273c23ee76374b05b9583177e28aa19744858a7679c56a250e83d0333da785",
            525_598,
        ),
    ),
}


def _coral(row: Published) -> PublishedWeights:
    files = (
        PublishedFile(address=f"{_CORAL}/{path}", sha256=sha256, size=size)
        for path, sha256, size in _CORAL_FILES[row.width, row.resolution]
    )
    return _quantised(row, "coral", *files)


def _timm(width: float, name: str, top1: float, top5: float | None) -> PublishedWeights:
    repository = f"timm/{name}.ra4_e3600_r224_in1k"
    return PublishedWeights(
        source="timm",
        spec=MobileNetSpec(width, 224, activation="relu6"),
        files=(PublishedFile(address=f"{HUB}{repository}/model.safetensors"),),
        beside=(PublishedFile(address=f"{HUB}{repository}/config.json"),),
        licence=_APACHE,
        input="RGB, x / 127.5 - 1, bicubic",
        outputs=1000,
        top1=top1,
        top5=top5,
        reported_by="timm, results-imagenet.csv",
    )


def _hugging_face(row: Published) -> PublishedWeights:
    folder = f"{HUB}google/mobilenet_v1_{row.width}_{row.resolution}"
    settings = ("config.json", "preprocessor_config.json")
    return PublishedWeights(
        source="huggingface",
        spec=_spec(row, "tensorflow"),
        files=(PublishedFile(address=f"{folder}/model.safetensors"),),
        beside=tuple(PublishedFile(address=f"{folder}/{name}") for name in settings),
        licence="other (its model card names none)",
        outputs=1001,
        top1=row.slim_2018_top1,
        top5=row.slim_2018_top5,
        reported_by="TensorFlow-Slim, of the weights that were converted",
    )


def _tfhub_ssd() -> PublishedWeights:
    body = MobileNetSpec(
        0.75, 300, activation="relu6", padding="tensorflow", batch_norm_epsilon=1e-3
    )
    return PublishedWeights(
        source="tfhub",
        spec=DetectorSpec("ssd", body),
        files=(
            PublishedFile(
                address=f"{_TFHUB}/ssd_mobilenet_v1/1/metadata/1.tflite",
                sha256="df027205054d6fd9af22337dd27010fb03701c9d9b122a54468a03c5078db64f",
                size=4_185_003,
            ),
        ),
        licence="other (the file names none)",
        input="RGB, x / 127.5 - 1, squashed",
        outputs=COCO_CLASSES,
        top1=None,
        top5=None,
        reported_by="nobody; evaluate tells its mAP",
        bytes_per_weight=1,
    )


def _entries() -> Iterator[PublishedWeights]:
    for publisher in (_keras, _slim, _slim_int8):
        yield from map(publisher, PUBLISHED)
    rows = {(row.width, row.resolution): row for row in PUBLISHED}
    yield from (_coral(rows[member]) for member in _CORAL_FILES)
    yield _timm(1.25, "mobilenetv1_125", 76.92, None)
    yield _timm(1.0, "mobilenetv1_100", 75.388, 92.31)
    yield _tfhub_ssd()
    yield from (_hugging_face(rows[member]) for member in ((1.0, 224), (0.75, 192)))


PUBLISHED_WEIGHTS: tuple[PublishedWeights, ...] = tuple(_entries())
