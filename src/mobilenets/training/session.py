"""What one training run holds in memory, one optimiser step, one evaluation, and its state on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mobilenets.architecture.detector import Spec
from mobilenets.data.loaders import Batch, Loader, mixed
from mobilenets.data.transforms import scaled, to_picture
from mobilenets.training.averaging import average_of
from mobilenets.training.checkpoint import write_json, write_training_state, write_weights
from mobilenets.training.device import check_compiler
from mobilenets.training.evaluation import measure
from mobilenets.training.fine_tuning import Thaw, keep_statistics, unfold
from mobilenets.training.initialisation import freeze_first_layer, prepare, whiten
from mobilenets.training.model_card import write_model_card
from mobilenets.training.optimizers import build_optimizer
from mobilenets.training.plan import Standing
from mobilenets.training.processes import Processes, gathering, synchronise_batch_norm
from mobilenets.training.recipe import Recipe
from mobilenets.training.run import Run
from mobilenets.training.stages import Stages
from mobilenets.training.task import EXTENSION, LOWER_IS_BETTER, Metrics, Task, TrainingData

STATE_FORMAT = 2
SAMPLES = 8
SAMPLE_SIDE = 160
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Session:
    """Model, average, optimiser and standing of a run that trains.

    Raises:
        ValueError: the recipe asks for a metric or a compiler that is not there, or for images that
            are too small for the model.
    """

    def __init__(
        self,
        run: Run,
        data: TrainingData,
        recipe: Recipe,
        device: torch.device,
        processes: Processes,
        weights: Mapping[str, Tensor] | None,
    ) -> None:
        self.run, self.data, self.recipe = run, data, recipe
        self.device, self.processes = device, processes
        self.standing = Standing(processes=processes.count)
        self._loss = data.loss or run.task.loss
        check_recipe(run.task, run.spec, recipe, device)
        torch.manual_seed(recipe.seed)
        model = run.task.build_model(run.spec, recipe)
        prepare(model, recipe)
        starts = weights is not None or "start" in run.config
        fine_tuning = recipe.fine_tuning if starts else None
        new_head = True
        if weights is not None:
            missing = model.load_state_dict(weights, strict=False)
            assert not missing.unexpected_keys
            assert not any(key.startswith("body.") for key in missing.missing_keys)
            new_head = bool(missing.missing_keys)
            if fine_tuning is None or fine_tuning.thaw is not None:
                unfold(model, data.train)
        if data.extend is not None:
            data.extend(model)
        if recipe.whiten:
            first = freeze_first_layer(model)
            if weights is None:
                whiten(first, data.train)
        model = model.to(device).to(memory_format=torch.channels_last)
        if processes.count > 1 and recipe.sync_batch_norm:
            model = synchronise_batch_norm(model, device)
        self.model = model
        self._thaw: Thaw | None = None
        if fine_tuning is not None:
            self._thaw = Thaw(model, fine_tuning, alone=processes.count == 1)
            wanted = fine_tuning.probe and (new_head or not recipe.epochs)
            if weights is not None and wanted:
                run.config["probe"] = run.task.fit_head(model, data, recipe, device)
                self.standing.epoch = 0
        if device.type == "cuda":
            data.train.to(device)
            data.val.to(device)
        rate_decay = 1.0 if fine_tuning is None else fine_tuning.rate_decay
        self.optimizer = build_optimizer(model, recipe.optimizer, rate_decay)
        self.average = None if recipe.ema_decay is None else average_of(model, recipe.ema_decay)
        self._scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self._shared = self._stepped = processes.share(model, device, recipe.reduce_in)
        if recipe.compile:
            self._stepped = torch.compile(self._shared)  # type: ignore[assignment]
        self._samples: Tensor | None = None

    def step(self, batch: Batch, factor: float, stages: Stages) -> None:
        """One step of the optimiser on one batch, at a share of the peak learning rate."""
        recipe, standing = self.recipe, self.standing
        self.model.train()
        if self._thaw is not None:
            self._thaw.before_step(standing.share)
        # Each step seeds what it draws, so that a run can go on from any of them.
        torch.manual_seed(mixed(recipe.seed, standing.step, self.processes.rank))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        batch = batch.to(self.device)
        if recipe.growth is not None:
            sides = batch.images_NCHW.shape[-2:]
            batch = batch.resized([recipe.growth.side(side, standing.share) for side in sides])
        # Batch norm needs two images a piece, also in a small last batch, and every process as many
        # pieces as the others.
        wanted = self.processes.pieces(recipe.accumulate, standing.processes or 1)
        pieces = max(1, min(wanted, batch.whole // (2 * self.processes.count)))
        if not recipe.sync_batch_norm and batch.whole < 2 * self.processes.count:
            # A process has one image of it, or none.
            keep_statistics(self.model)
        for number, piece in enumerate(batch.pieces(pieces), 1):
            with gathering(self._shared, reduce=number == pieces):
                with torch.autocast(
                    self.device.type,
                    _PRECISIONS[recipe.precision],
                    enabled=recipe.precision != "fp32",
                ):
                    losses = self._loss(self._stepped, piece, recipe)
                stages.lap("forward")
                # The mean over all images of all processes, each of which gives its mean over its own.
                share = len(piece) * self.processes.count / batch.whole
                self._scaler.scale(losses["loss"] * share).backward()  # type: ignore[no-untyped-call]
            standing.count(losses, len(piece))
            stages.lap("backward")
        if self._thaw is not None:
            self._thaw.after_backward(standing.share)
        if recipe.clip_norm is not None:
            self._scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.model)
        standing.images += batch.whole
        stages.lap("step")
        stages.count(batch.whole, len(batch))

    @property
    def trained(self) -> nn.Module:
        """The network that is kept: the average where there is one."""
        return self.model if self.average is None else self.average.module

    def evaluate(self) -> tuple[dict[str, float], Metrics]:
        """Validation figures: `val/…` of what is kept, `val_raw/…` of the raw weights beside it."""
        self._unite()
        kept, metrics = self._validate(self.trained)
        figures = {f"val/{name}": value for name, value in kept.items()}
        self._check_finite(figures)
        if self.average is not None:
            raw, _ = self._validate(self.model)
            figures |= {f"val_raw/{name}": raw[name] for name in self.run.task.figures}
        return figures, metrics

    def train_figures(self) -> dict[str, float]:
        """Means over the epoch so far, over all processes.

        Raises:
            ValueError: the loss is no longer a number.
        """
        sums = self._sums()
        return {f"train/{name}": sums[name] / self.standing.images for name in sums}

    def _sums(self) -> dict[str, float]:
        """The epoch's sums over all processes, known to be numbers."""
        sums = self.processes.total(self.standing.plain_sums(), self.device)
        self._check_finite(sums)
        return sums

    def _check_finite(self, figures: Mapping[str, float]) -> None:
        if not all(map(math.isfinite, figures.values())):
            raise ValueError(
                f"the loss is no longer a number in epoch {self.standing.epoch}: lower the "
                f"learning rate ({self.recipe.optimizer.lr:g}) or set clip_norm; "
                f"{self.run.folder} keeps what was good"
            )

    def judge(self, figures: Mapping[str, float]) -> bool:
        """Note an epoch's validation figures, and say whether it is the best so far."""
        standing, task = self.standing, self.run.task
        val = {name[4:]: value for name, value in figures.items() if name.startswith("val/")}
        stopping = self.recipe.early_stopping
        if stopping is not None:
            value = val[stopping.metric] * (-1 if stopping.metric in LOWER_IS_BETTER else 1)
            improved = standing.stopping_best is None or value > standing.stopping_best
            standing.stopping_best = value if improved else standing.stopping_best
            standing.stale = 0 if improved else standing.stale + 1
        # At a tie, which small validation sets often give, less loss is better.
        better = not standing.best or (val[task.monitor], -val["loss"]) > (
            standing.best[task.monitor],
            -standing.best["loss"],
        )
        if better:
            standing.best = {"epoch": standing.epoch, **val}
        return better

    def stale(self) -> bool:
        """Whether the recipe says to stop early."""
        stopping = self.recipe.early_stopping
        return stopping is not None and self.standing.stale >= stopping.patience

    def keep_best(self, metrics: Metrics) -> None:
        """Write the best epoch's weights, figures, details and model card."""
        folder = self.run.folder
        kept = {
            name: value
            for name, value in self.trained.state_dict().items()
            if not name.startswith(f"{EXTENSION}.")
        }
        write_weights(folder / "model.safetensors", kept)
        details = metrics.details()
        write_json(folder / "validation.json", details)
        task = self.run.task
        task.settle(details)
        self.run.config |= {"metrics": self.standing.best, task.name: task.to_dict()}
        self.run.save_config()
        write_model_card(self.run, self.recipe)

    def save(self) -> None:
        """Write what going on needs; every process takes part, the first one writes.

        Raises:
            ValueError: the loss is no longer a number, and this state worth nothing.
        """
        sums = self._sums()
        self._unite()
        if not self.processes.first:
            return
        write_training_state(
            self.run.folder / "state.pt",
            {
                "format": STATE_FORMAT,
                "standing": {**self.standing.to_dict(), "sums": sums},
                "model": self.model.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self._scaler.state_dict(),
            },
        )

    def _unite(self) -> None:
        """Make what is evaluated and kept one network, where batch norm is each process's own."""
        if self.recipe.sync_batch_norm:
            return
        self.processes.average_statistics(self.model)
        if self.average is not None:
            self.processes.average_statistics(self.average.module)

    def load(self, path: Path) -> None:
        """Go on from a state, where one has been written.

        Raises:
            ValueError: the file is damaged, of another version or model, or not the same for all processes.
        """
        if path.is_file():
            self._load(path)
        step = self.processes.first_says(self.standing.step, self.device)
        differs, _ = self.processes.any_of((step != self.standing.step, False), self.device)
        if differs:
            raise ValueError(
                f"not all processes read the same {path}: put the run where all of them see it"
            )

    def _load(self, path: Path) -> None:
        try:
            # Tensors and plain values only: a state file can't run code.
            state = torch.load(path, map_location=self.device, weights_only=True)
            if state["format"] != STATE_FORMAT:
                raise ValueError(f"{path} was written by another version of mobilenets")
            self.model.load_state_dict(state["model"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self._scaler.is_enabled():
                self._scaler.load_state_dict(state["scaler"])
            self.standing = Standing.from_dict(state["standing"])
            self.standing.processes = self.standing.processes or self.processes.count
        except ValueError:
            raise
        # A damaged archive fails in many ways: KeyError, RuntimeError, UnpicklingError, EOFError.
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(f"{path}: training can't go on from it ({reason})") from None
        if not self.processes.first:
            # The first process goes on with the sums of all.
            self.standing.sums = dict.fromkeys(self.standing.sums, 0.0)

    def samples(self) -> list[Image.Image]:
        """Validation images with what the model says about them."""
        if self._samples is None:
            self._samples = _first_images(self.data.val, SAMPLES)
        task = self.run.task
        self.trained.eval()
        with torch.inference_mode():
            outputs = self.trained(self._samples.to(self.device)).float().cpu().numpy()
        return [
            prediction.draw(scaled(to_picture(image, task.preprocessing), SAMPLE_SIDE))
            for image, prediction in zip(self._samples, task.decode(outputs), strict=True)
        ]

    def _validate(self, model: nn.Module) -> tuple[dict[str, float], Metrics]:
        return measure(
            self.run.task,
            model,
            self.data.val,
            self.device,
            "validating",
            processes=self.processes,
        )


def _first_images(loader: Loader, count: int) -> Tensor:
    return next(iter(loader.batches())).images_NCHW[:count].cpu().clone()


def check_recipe(task: Task, spec: Spec, recipe: Recipe, device: torch.device) -> None:
    """Make sure that what a recipe asks for is there.

    Raises:
        ValueError: an unknown metric, no compiler, or images too small for the model at the start.
    """
    if recipe.growth is not None:
        height, across = (recipe.growth.side(side, 0) for side in (spec.height, spec.across))
        try:
            spec.resized(height, across)
        except ValueError as error:
            raise ValueError(f"recipe: growth.start is {recipe.growth.start:g}: {error}") from None
    if recipe.fine_tuning is not None and recipe.whiten:
        raise ValueError(
            "recipe: whiten sets a first layer that fine_tuning would learn: choose one"
        )
    if recipe.compile:
        check_compiler(device)
    stopping = recipe.early_stopping
    if stopping is not None and stopping.metric not in task.figures:
        raise ValueError(
            f"recipe: early_stopping.metric is {stopping.metric!r}: {task.name} has "
            f"{', '.join(task.figures)}"
        )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested choices as one level, with dotted names.

    >>> flat({"optimizer": {"lr": 0.1}, "epochs": 2})
    {'optimizer.lr': 0.1, 'epochs': 2}
    """
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = value
    return result
