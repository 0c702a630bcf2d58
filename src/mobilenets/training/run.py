"""The run folder: all that a trained model needs to be used without a flag.

`model.safetensors` holds the best epoch's weights and `last/model.safetensors` the last one's,
`validation.json` what the best epoch's figures are made of, `state.pt` what training needs to go on, `config.json` the model, task, preprocessing, data and
metrics, `recipe.yaml` the recipe, `metrics.csv` and `tensorboard/` the curves, `processes.jsonl` what each of several processes
did, `README.md` the model card.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mobilenets.architecture.detector import Spec, spec_from_dict
from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.data.files import read_json, sha256, write_aside
from mobilenets.data.images import image_to_tensor, read_image
from mobilenets.data.parts import Part, parts_of
from mobilenets.data.transforms import fit, normalise
from mobilenets.training.checkpoint import write_json, write_weights
from mobilenets.training.recipe import Recipe, read_recipe
from mobilenets.training.registry import find_task
from mobilenets.training.task import Prediction, Task
from mobilenets.weights.state import load_strictly, read_safetensors

FORMAT = 1
ImageLike = str | Path | Image.Image | NDArray[np.uint8]


class Run:
    """A trained, or training, model in a folder.

    Use `Run.load(folder)`; `Run.create` is for the training loop.
    """

    def __init__(self, folder: Path, config: dict[str, Any], task: Task, spec: Spec) -> None:
        self.folder = folder
        self.config = config
        self.task = task
        self.spec = spec

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Open a run.

        Raises:
            ValueError: the folder is no run, or its `config.json` is damaged.
        """
        folder = Path(folder)
        path = folder / "config.json"
        if not path.is_file():
            raise ValueError(f"{folder} is not a run: it has no config.json")
        try:
            config = read_json(path)
            kind, values = find_task(config["task"]), config[config["task"]]
            task = kind.from_dict(values, Preprocessing.from_dict(config["preprocessing"]))
            spec = spec_from_dict(config["spec"])
        except (KeyError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path} is damaged: {reason}") from None
        return cls(folder, config, task, spec)

    @classmethod
    def create(
        cls,
        folder: str | Path,
        task: Task,
        spec: Spec,
        recipe: Recipe,
        data: Mapping[str, Any],
        *,
        start: str = "",
        licence: str = "",
        overwrite: bool = False,
        write: bool = True,
    ) -> Self:
        """Start a run in a new or empty folder.

        Args:
            data: where the data came from, to find and know it again.
            start: the weights it starts from, where it starts from any.
            licence: that of those weights, where it is known.
            overwrite: replace a run that is there already; nothing but a run is ever replaced.
            write: whether to touch the disk; of several processes that train together, one does.

        Raises:
            ValueError: the folder holds something.
        """
        more = {"data": dict(data), "recipe": recipe.name, "seed": recipe.seed}
        more |= {key: value for key, value in (("start", start), ("licence", licence)) if value}
        run = cls._new(Path(folder), task, spec, more)
        if write:
            run._clear(overwrite=overwrite)
            run.save_recipe(recipe)
            run.save_config()
        return run

    @classmethod
    def of_weights(
        cls,
        folder: str | Path,
        task: Task,
        spec: Spec,
        state: Mapping[str, Tensor],
        origin: Mapping[str, Any],
        *,
        overwrite: bool = False,
    ) -> Self:
        """A run of weights that were trained elsewhere, ready for all but going on with training.

        Args:
            state: for the task's network.
            origin: where they are from, and what is said of them there.

        Raises:
            ValueError: the folder holds something, or the weights do not fit the task's network.
        """
        load_strictly(task.build_model(spec), state, str(origin["weights"]))
        run = cls._new(Path(folder), task, spec, {"data": {}, "origin": dict(origin)})
        run._clear(overwrite=overwrite)
        write_weights(run.folder / "model.safetensors", state)
        run.save_config()
        return run

    @classmethod
    def _new(cls, folder: Path, task: Task, spec: Spec, more: Mapping[str, Any]) -> Self:
        config = {
            "format": FORMAT,
            "model": str(spec),
            "task": task.name,
            "spec": spec.to_dict(),
            task.name: task.to_dict(),
            "preprocessing": task.preprocessing.to_dict(),
            **more,
            "metrics": {},
            "versions": {
                "mobilenets": version("mobilenets"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
        return cls(folder, config, task, spec)

    def _clear(self, *, overwrite: bool) -> None:
        check_free(self.folder, overwrite=overwrite)
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)

    def save_recipe(self, recipe: Recipe) -> None:
        """Write `recipe.yaml`."""
        write_aside(self.folder / "recipe.yaml", recipe.to_yaml().encode())

    @property
    def recipe(self) -> Recipe:
        """The recipe that the run trains by.

        Raises:
            ValueError: `recipe.yaml` is missing or damaged, or the run was trained elsewhere.
        """
        if "origin" in self.config:
            raise ValueError(
                f"{self.folder} was trained elsewhere and can't be gone on with: "
                f"mobilenets train DATA --weights {self.folder} starts from it"
            )
        return read_recipe(self.folder / "recipe.yaml")

    def save_config(self) -> None:
        """Write `config.json`."""
        write_json(self.folder / "config.json", self.config)

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the input."""
        return self.task.preprocessing

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names by index."""
        return self.task.labels

    @cached_property
    def model(self) -> nn.Module:
        """The network with its best weights, in evaluation mode, on the CPU.

        Raises:
            ValueError: the weights are missing, damaged or of another model.
        """
        network = self.task.build_model(self.spec)
        path = self.folder / "model.safetensors"
        load_strictly(network, read_safetensors(path), str(path))
        return network.eval().to(memory_format=torch.channels_last)

    @property
    def weights_sha256(self) -> str:
        """Of `model.safetensors`: an export is known by it as that of these weights."""
        return sha256(self.folder / "model.safetensors")

    def prepare(self, image: ImageLike) -> torch.Tensor:
        """One image as the network's input: float32 (1, C, H, W).

        Args:
            image: a path, a Pillow image, or a uint8 array (H, W, C).
        """
        inputs_1CHW, _ = self.prepare_parts(image, None)
        return inputs_1CHW

    def prepare_parts(
        self, image: ImageLike, side: int | None
    ) -> tuple[torch.Tensor, tuple[Part, ...]]:
        """An image and parts of it as the network's inputs: float32 (P, C, H, W), and where they are.

        Args:
            side: of the parts, in pixels; None takes the whole alone.
        """
        channels = self.preprocessing.channel_count
        if isinstance(image, str | Path):
            pixels_CHW = read_image(Path(image), channels)
        else:
            picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
            pixels_CHW = image_to_tensor(picture, channels)
        return self.prepare_pixels(pixels_CHW, side)

    def prepare_pixels(
        self, pixels_CHW: torch.Tensor, side: int | None
    ) -> tuple[torch.Tensor, tuple[Part, ...]]:
        """As `prepare_parts`, of what `read_image` gave: uint8 (C, H, W), in the channels of the preprocessing."""
        _, height, width = pixels_CHW.shape
        parts = parts_of(width, height, side or max(width, height))
        inputs = [fit(part.cut(pixels_CHW), self.preprocessing) for part in parts]
        return normalise(torch.stack(inputs), self.preprocessing), parts

    def predict(self, image: ImageLike) -> Prediction:
        """What the model says about one image.

        Raises:
            BadImageError: the file is missing or can't be read.
        """
        return next(self.predict_many([image]))

    def predict_many(
        self, images: Sequence[ImageLike], *, batch_size: int = 32
    ) -> Iterator[Prediction]:
        """Predictions for many images, in order."""
        for start in range(0, len(images), batch_size):
            group = images[start : start + batch_size]
            yield from self.predict_prepared([self.prepare(image) for image in group])

    def predict_prepared(self, inputs: Sequence[torch.Tensor]) -> list[Prediction]:
        """Predictions for one batch of inputs, each as `prepare` gives them."""
        return self.task.decode(self.outputs(torch.cat(list(inputs))).numpy()) if inputs else []

    def outputs(self, inputs_NCHW: torch.Tensor) -> torch.Tensor:
        """The network's outputs for one batch."""
        with torch.inference_mode():
            outputs: torch.Tensor = self.model(
                inputs_NCHW.contiguous(memory_format=torch.channels_last)
            )
        return outputs


def check_free(folder: str | Path, *, overwrite: bool = False) -> None:
    """Make sure that a run may be written to a folder.

    Raises:
        ValueError: the folder holds a run (unless it may be replaced) or other files.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder} is a file: give another folder with --output")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not is_run(folder):
        raise ValueError(f"{folder} is not empty and holds no run: give another folder")
    if not overwrite:
        raise ValueError(
            f"{folder} already holds a run: give another --output, or --overwrite to replace it"
        )


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run of ours; other projects' models have a `config.json` too."""
    try:
        config = read_json(folder / "config.json")
    except ValueError:
        return False
    return {"format", "task", "spec"} <= config.keys()
