"""A run as an ONNX file, with all that is needed to use it and the proof that it is equal."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobilenets.deploy.fold import fold_batch_norm
from mobilenets.deploy.parity import Parity, compare
from mobilenets.runtimes.onnx import OnnxModel
from mobilenets.training.run import Run

FILES = ("model.onnx", "preprocessing.json", "labels.txt", "golden.npz", "parity.json")
BATCH = 32


def export_onnx(
    run: Run, folder: str | Path, inputs_NCHW: Tensor, *, overwrite: bool = False
) -> Parity:
    """Write `model.onnx`, read it back in ONNX Runtime and compare it with the run.

    Beside it stand `preprocessing.json`, `labels.txt`, `golden.npz` (`input` and the run's
    `output` for the first image) and `parity.json`. Either all of them appear in the folder, or
    none.

    Args:
        inputs_NCHW: real images, preprocessed, to compare on.
        overwrite: replace an earlier export.

    Raises:
        ValueError: the folder holds an export already, there are no images, or the file computes
            something else.
    """
    folder = Path(folder)
    there = [name for name in FILES if (folder / name).exists()]
    if there and not overwrite:
        raise ValueError(
            f"{folder} already holds {there[0]}: give another --output, or --overwrite"
        )
    if not len(inputs_NCHW):
        raise ValueError("no images to compare the exported file on: give some with --images")
    folder.mkdir(parents=True, exist_ok=True)
    batches = torch.split(inputs_NCHW, BATCH)
    reference_NK = np.concatenate([run.outputs(batch).numpy() for batch in batches])
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as aside:
        path = Path(aside) / "model.onnx"
        _write_graph(run, path, inputs_NCHW[:2])
        model = OnnxModel(path)
        outputs_NK = np.concatenate([model.run(batch.numpy()) for batch in batches])
        parity = compare(reference_NK, outputs_NK)
        if not parity.holds:
            raise ValueError(f"the ONNX file computes something else and was not kept: {parity}")
        _write_beside(run, path.parent, inputs_NCHW[:1].numpy(), reference_NK[:1], parity)
        for name in FILES:
            shutil.move(path.parent / name, folder / name)
    return parity


def _write_graph(run: Run, path: Path, example_NCHW: Tensor) -> None:
    """The graph with batch norm folded; any batch size, one input size."""
    model = fold_batch_norm(run.model).to(memory_format=torch.contiguous_format)
    if len(example_NCHW) < 2:
        # An example of one image would fix the batch size at one.
        example_NCHW = example_NCHW.repeat(2, 1, 1, 1)
    with _quiet():
        program = torch.onnx.export(
            model,
            (example_NCHW.contiguous(),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    # Each node carries the exporter's stack trace: 100 kB, and paths of this machine.
    for node in program.model.graph:
        node.metadata_props.clear()
    program.save(str(path))


def _write_beside(
    run: Run,
    folder: Path,
    input_NCHW: NDArray[np.float32],
    output_NK: NDArray[np.float32],
    parity: Parity,
) -> None:
    preprocessing = json.dumps(run.preprocessing.to_dict(), indent=2)
    (folder / "preprocessing.json").write_text(preprocessing + "\n")
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in run.labels))
    np.savez(folder / "golden.npz", input=input_NCHW, output=output_NK)
    report = {"model": str(run.spec), "runtime": OnnxModel.name, **parity.to_dict()}
    (folder / "parity.json").write_text(json.dumps(report, indent=2) + "\n")


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's own notes are for its developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
