"""Train the models of the experiments, once for each seed, and keep what came out.

A trial that is done is a JSON file, and is not run again; one that was broken off goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from mobilenets.architecture import MobileNetSpec
from mobilenets.data.progress import say
from mobilenets.data.sources import open_source
from mobilenets.reproduce.experiment_figures import draw
from mobilenets.reproduce.experiments import CLASSES, Experiment, Scale, to_dict
from mobilenets.tasks.classification.recipes import CIFAR
from mobilenets.tasks.classification.task import Classification
from mobilenets.training.checkpoint import write_json
from mobilenets.training.curves import curve_of, read_curves
from mobilenets.training.device import provenance
from mobilenets.training.evaluation import measure
from mobilenets.training.loop import train
from mobilenets.training.recipe import Recipe
from mobilenets.training.run import Run

JPEG = b"\xff\xd8"
CURVE = ("train/loss", "train/top1", "val/loss", "val/top1")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One model trained with one seed; accuracies from 0 to 1.

    Args:
        data: the fingerprint of the data set, and whether it is JPEG.
        recipe: all of its choices; those that an older file does not know are at their defaults.
        val_top1: of the best epoch, by which it was chosen.
        test_top1: of that epoch, measured once.
        seconds: of training, evaluation after each epoch included.
        curve: by figure, a value for each epoch.
    """

    model: str
    seed: int
    data: str
    recipe: Recipe
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
        folder: gets results, figures, `trials/` and, while it trains, `training/`.
        stop: asked after each step; when it says so, the trial is saved and left.
    """

    where: str
    scale: Scale
    folder: Path
    device: torch.device
    stop: Callable[[], bool]

    def test(self, experiments: Sequence[Experiment]) -> list[dict[str, Any]] | None:
        """Run what is still to run, and write each experiment's verdict and figure.

        Returns:
            The results as plain values, or None where it was stopped.

        Raises:
            ValueError: the data does not fit, or the folder has trials of another kind.
        """
        source = open_source(self.where)
        source.split("test")
        if len(source.labels) != CLASSES:
            raise ValueError(
                f"{self.where} has {len(source.labels)} classes: the experiments are set for "
                f"CIFAR-10 and its {CLASSES}"
            )
        # JPEG's losses make it another data set, whose labels are the same.
        jpeg = (source.split("test").images.encoded(0) or b"").startswith(JPEG)
        form = " (JPEG)" if jpeg else ""
        models = list(dict.fromkeys(model for e in experiments for model in e.models))
        trials = self._trials(models, source.fingerprint() + form)
        if trials is None:
            return None
        top1 = {model: [100 * trial.test_top1 for trial in trials[model]] for model in models}
        results = []
        for experiment in experiments:
            result = {
                "command": f"mobilenets reproduce {experiment.name} --data {Path(self.where).name}",
                "data": Path(self.where).name + form,
                "scale": asdict(self.scale),
                **to_dict(experiment, top1),
            }
            write_json(self.folder / f"{experiment.name}.json", result)
            draw(experiment, top1, result["data"], self.folder / f"{experiment.name}.png")
            results.append(result)
        return results

    def recipe(self, seed: int) -> Recipe:
        """How each trial trains: `cifar`, but with a first layer that is learnt, as the paper's is.

        A layer that whitens has fewer directions to look in the narrower the model is, and would be part of
        what is compared.
        """
        return CIFAR.model_copy(
            update={
                "epochs": self.scale.epochs,
                "fraction": self.scale.fraction,
                "seed": seed,
                "whiten": False,
                "precision": "bf16",
                "expected": "",
            }
        )

    def _trials(self, models: Sequence[str], data: str) -> dict[str, list[Trial]] | None:
        """All models with all seeds, a seed at a time; None where it was stopped."""
        wanted = [(seed, model) for seed in range(self.scale.seeds) for model in models]
        # All that is there is read before anything is trained.
        done = {(seed, model): self._read(model, seed, data) for seed, model in wanted}
        for number, (seed, model) in enumerate(wanted, 1):
            title = f"trial {number} of {len(wanted)}: {model}, seed {seed}"
            if done[seed, model] is None:
                say(title)
                done[seed, model] = self._run(model, seed, data)
            trial = done[seed, model]
            if trial is None:
                return None
            say(f"{title}: test top-1 {100 * trial.test_top1:.2f} %")
        found: dict[str, list[Trial]] = {model: [] for model in models}
        for (_, model), trial in done.items():
            assert trial is not None
            found[model].append(trial)
        return found

    def _file(self, model: str, seed: int) -> Path:
        return self.folder / "trials" / f"{model}-seed{seed}.json"

    def _read(self, model: str, seed: int, data: str) -> Trial | None:
        """A trial that is done, if it is the one that is wanted."""
        path = self._file(model, seed)
        if not path.is_file():
            return None
        try:
            trial = TypeAdapter(Trial).validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            what = ".".join(map(str, first["loc"]))
            raise ValueError(
                f"{path} is damaged ({what} {first['msg'].lower()}): move it away to train anew"
            ) from None
        same = (trial.model, trial.seed, trial.data) == (model, seed, data)
        if not same or trial.recipe != self.recipe(seed):
            raise ValueError(
                f"{path} is from another recipe, scale or data set: give another --output"
            )
        return trial

    def _run(self, model: str, seed: int, data: str) -> Trial | None:
        recipe = self.recipe(seed)
        spec = MobileNetSpec.parse(model)
        task = Classification.from_data(self.where, spec, recipe)
        loaders = task.build_data(recipe, on_bad_image="stop")
        folder = self.folder / "training" / f"{model}-seed{seed}"
        goes_on = (folder / "state.pt").is_file() and self._same(folder, recipe, loaders.record)
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
            seed=seed,
            data=data,
            recipe=recipe,
            val_top1=run.config["metrics"]["top1"],
            test_top1=figures["top1"],
            seconds=round(rows[-1]["seconds"], 1),
            curve=curve_of(rows, CURVE),
            **provenance(self.device),
        )
        path = self._file(model, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(trial) | {"recipe": recipe.model_dump()})
        shutil.rmtree(folder)
        return trial

    @staticmethod
    def _same(folder: Path, recipe: Recipe, record: Mapping[str, Any]) -> bool:
        """Whether a training that was broken off is this one."""
        run = Run.load(folder)
        return run.recipe == recipe and run.config["data"] == dict(record)
