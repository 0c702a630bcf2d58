"""Train the models of the experiments, once for each seed, and keep what came out.

A trial that is done is a JSON file, and is not run again; one that was broken off goes on.
"""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mobilenets.architecture import MobileNetSpec
from mobilenets.data.progress import say
from mobilenets.data.sources import open_source
from mobilenets.reproduce.experiments import CLASSES, Scale
from mobilenets.tasks.classification.recipes import CIFAR
from mobilenets.tasks.classification.task import Classification
from mobilenets.training.checkpoint import write_json
from mobilenets.training.curves import read_curves
from mobilenets.training.device import machine
from mobilenets.training.evaluation import measure
from mobilenets.training.loop import train
from mobilenets.training.recipe import Recipe
from mobilenets.training.run import Run

CURVE = ("train/loss", "train/top1", "val/loss", "val/top1")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One model trained with one seed; accuracies from 0 to 1.

    Args:
        data: the fingerprint of the data set.
        recipe: all of its choices.
        val_top1: of the best epoch, by which it was chosen.
        test_top1: of that epoch, measured once.
        seconds: of training, evaluation after each epoch included.
        curve: by figure, a value for each epoch.
    """

    model: str
    seed: int
    data: str
    recipe: dict[str, Any]
    val_top1: float
    test_top1: float
    seconds: float
    curve: dict[str, list[float]]
    machine: str
    versions: dict[str, str]
    date: str


@dataclass(frozen=True, kw_only=True)
class Laboratory:
    """Where trials are run, and what they have in common.

    Args:
        where: the data, as `mobilenets train` takes it; ten classes with a test part.
        folder: gets `trials/` and, while it trains, `training/`.
        stop: asked after each step; when it says so, the trial is saved and left.
    """

    where: str
    scale: Scale
    folder: Path
    device: torch.device
    stop: Callable[[], bool] = lambda: False

    def check(self) -> None:
        """Make sure that the data fits the experiments.

        Raises:
            ValueError: it has no test part, or other than ten classes.
        """
        source = open_source(self.where)
        source.split("test")
        if len(source.labels) != CLASSES:
            raise ValueError(
                f"{self.where} has {len(source.labels)} classes: the experiments are set for "
                f"CIFAR-10 and its {CLASSES}"
            )

    def trials(self, models: Iterable[str]) -> dict[str, list[Trial]] | None:
        """All models with all seeds, a seed at a time; None where it was stopped."""
        models = list(dict.fromkeys(models))
        done: dict[str, list[Trial]] = {model: [] for model in models}
        data = open_source(self.where).fingerprint()
        for seed in range(self.scale.seeds):
            for position, model in enumerate(models):
                recipe = self.recipe(seed)
                number = seed * len(models) + position + 1
                title = f"{number} of {len(models) * self.scale.seeds}: {model}, seed {seed}"
                trial = self._read(model, seed, recipe, data)
                if trial is None:
                    say(f"trial {title}")
                    trial = self._run(model, recipe, data)
                if trial is None:
                    return None
                say(f"trial {title}: test top-1 {100 * trial.test_top1:.2f} %")
                done[model].append(trial)
        return done

    def recipe(self, seed: int) -> Recipe:
        """How each trial trains."""
        scale = self.scale
        return CIFAR.override(
            {"epochs": scale.epochs, "fraction": scale.fraction, "seed": seed, "precision": "bf16"}
        )

    def _file(self, model: str, seed: int) -> Path:
        return self.folder / "trials" / f"{model}-seed{seed}.json"

    def _read(self, model: str, seed: int, recipe: Recipe, data: str) -> Trial | None:
        """A trial that is done, if it is the one that is wanted."""
        path = self._file(model, seed)
        if not path.is_file():
            return None
        try:
            trial = Trial(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}): move it away to train anew") from None
        if trial.recipe != recipe.model_dump() or trial.data != data:
            raise ValueError(
                f"{path} is from another recipe, scale or data set: give another --output"
            )
        return trial

    def _run(self, model: str, recipe: Recipe, data: str) -> Trial | None:
        spec = MobileNetSpec.parse(model)
        task = Classification.from_data(self.where, spec, recipe)
        loaders = task.build_data(recipe, on_bad_image="stop")
        folder = self.folder / "training" / f"{model}-seed{recipe.seed}"
        goes_on = (folder / "state.pt").is_file() and Run.load(folder).recipe == recipe
        run = (
            Run.load(folder)
            if goes_on
            else Run.create(folder, task, spec, recipe, loaders.record, overwrite=True)
        )
        over = train(run, loaders, recipe, self.device, resume=goes_on, stop=self.stop, report=say)
        if not over:
            return None
        rows = read_curves(folder)
        _, loader, _ = task.open_for_evaluation(
            self.where, "test", loaders.record, on_bad_image="stop"
        )
        figures, _ = measure(task, run.model.to(self.device), loader, self.device)
        trial = Trial(
            model=model,
            seed=recipe.seed,
            data=data,
            recipe=recipe.model_dump(),
            val_top1=run.config["metrics"]["top1"],
            test_top1=figures["top1"],
            seconds=round(rows[-1]["seconds"], 1),
            curve={name: [round(row[name], 5) for row in rows] for name in CURVE},
            machine=machine(self.device),
            versions={name: version(name) for name in ("mobilenets", "torch")},
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        )
        path = self._file(model, recipe.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(trial))
        shutil.rmtree(folder)
        return trial
