"""Real images on which an exported file is judged, and those from which int8 takes its ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobilenets.data.images import find_images
from mobilenets.data.loaders import Batch, evenly, join
from mobilenets.data.splits import UNKNOWN
from mobilenets.training.run import Run
from mobilenets.training.task import Task

IMAGES, CALIBRATION_IMAGES = 512, 100
# Fewer say too little of what values an activation takes.
FEWEST_TO_CALIBRATE = 8


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Images as the network takes them, and what is on them where that is known.

    Args:
        images_NCHW: float32, preprocessed.
        targets_N: class indices, or boxes (N, M, columns).
        sizes_N2: of the files' images, where a task asks for them.
        source: where they are from, for people.
    """

    images_NCHW: Tensor
    targets_N: Tensor | None
    source: str
    sizes_N2: Tensor | None = None

    def __post_init__(self) -> None:
        if not len(self.images_NCHW):
            raise ValueError("no images to compare the exported file on: give some with --images")

    def figure(self, task: Task, outputs: NDArray[np.float32]) -> float | None:
        """What a task judges outputs by, such as top-1, where the targets are known."""
        if self.targets_N is None:
            return None
        metrics = task.metrics()
        whole = len(self.images_NCHW)
        batch = Batch(self.images_NCHW, self.targets_N, whole, self.sizes_N2)
        metrics.update(torch.from_numpy(outputs), batch)
        return metrics.compute()[task.monitor]


def find_evidence(
    run: Run,
    images: Sequence[str] | None = None,
    data: str | None = None,
    *,
    limit: int = IMAGES,
) -> Evidence:
    """Images to judge a run's exports on: those given, else validation images of the run.

    Args:
        images: files and folders, whose classes are not known.
        data: a labelled data set; its test part, else its validation part.

    Raises:
        ValueError: there are none.
    """
    if images:
        if data:
            raise ValueError("give --images or --data, not both")
        return Evidence(
            images_NCHW=_prepared(run, images, limit), targets_N=None, source=_names(images)
        )
    if data:
        return _labelled(run, data, None, limit)
    return _labelled(run, _own_data(run), "val", limit)


def find_calibration(
    run: Run, images: Sequence[str] | None = None, *, limit: int = CALIBRATION_IMAGES
) -> Tensor:
    """Images from which int8 takes its ranges (N, C, H, W): those given, else training images of the run.

    Raises:
        ValueError: there are too few, or there is nothing to see on them.
    """
    if images:
        pictures, source = _prepared(run, images, limit), " ".join(images)
    else:
        source = _own_data(run)
        pictures = _labelled(run, source, "train", limit).images_NCHW
    if len(pictures) < FEWEST_TO_CALIBRATE:
        raise ValueError(
            f"{source}: {len(pictures)} images are too few to take int8's ranges from; give at least "
            f"{FEWEST_TO_CALIBRATE}, better {limit}, with --calibrate"
        )
    blank = pictures.flatten(1).std(1) < 1e-3
    if blank.float().mean() > 0.5:
        raise ValueError(
            f"{source}: {int(blank.sum())} of {len(pictures)} calibration images have one colour only: "
            "give photos like those that the model will see with --calibrate"
        )
    return pictures


def _prepared(run: Run, images: Sequence[str], limit: int) -> Tensor:
    """So many of the images at most, from all over."""
    paths = find_images(images)
    return torch.cat([run.prepare(paths[index]) for index in evenly(len(paths), limit)])


def _names(paths: Sequence[str]) -> str:
    """Without the folders that they lie in, which are this machine's."""
    return ", ".join(Path(path).name for path in paths)


def _own_data(run: Run) -> str:
    where = run.config["data"].get("where")
    if where is None:
        raise ValueError(
            f"{run.folder} was trained elsewhere and has no images of its own: give images to compare on "
            "with --images or --data, and to take int8's ranges from with --calibrate"
        )
    return str(where)


def _labelled(run: Run, where: str, split: str | None, limit: int) -> Evidence:
    try:
        name, loader, _ = run.task.open_for_evaluation(
            where, split, run.config["data"], on_bad_image="skip", limit=limit
        )
    except ValueError as error:
        raise ValueError(f"{error}; give images to compare on with --images") from None
    whole = join(list(loader.batches()))
    unknown = whole.targets_N.dim() == 1 and bool((whole.targets_N == UNKNOWN).all())
    return Evidence(
        images_NCHW=whole.images_NCHW.contiguous(),
        targets_N=None if unknown else whole.targets_N,
        sizes_N2=whole.sizes_N2,
        source=f"{_names([where])} ({name})",
    )
