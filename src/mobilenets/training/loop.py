"""The training loop: forward, backward, clip, step, schedule, average, evaluate, save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mobilenets.data.progress import format_seconds, progress
from mobilenets.training.checkpoint import write_training_state, write_weights
from mobilenets.training.curves import Curves
from mobilenets.training.evaluation import evaluate
from mobilenets.training.memory import keep_freed_memory
from mobilenets.training.model_card import write_model_card
from mobilenets.training.optimizers import build_optimizer, build_schedule
from mobilenets.training.recipe import Recipe
from mobilenets.training.run import Run
from mobilenets.training.task import TrainingData


def train(
    run: Run,
    data: TrainingData,
    recipe: Recipe,
    device: torch.device,
    *,
    report: Callable[[str], None] = print,
) -> Run:
    """Train a new run's model and keep its best and its last epoch.

    Args:
        run: a folder made by `Run.create`.
        data: from the run's task.
        report: called with one line an epoch.

    Raises:
        ValueError: the loss is no longer a number; the last good epoch is kept.
    """
    torch.manual_seed(recipe.seed)
    keep_freed_memory()
    task = run.task
    model = task.build_model(run.spec, recipe).to(device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, recipe.optimizer)
    steps = recipe.epochs * len(data.train)
    schedule = build_schedule(optimizer, steps, recipe.schedule)
    average = _average(model, recipe)
    best: dict[str, float] = {}
    started = time.monotonic()

    with Curves(run.folder) as curves:
        for epoch in range(1, recipe.epochs + 1):
            model.train()
            loss_sum = torch.zeros((), device=device)
            epoch_started = time.monotonic()
            with progress(f"epoch {epoch}/{recipe.epochs}", data.train.images) as advance:
                for batch in data.train.batches(epoch):
                    batch = batch.to(device)
                    with torch.autocast(
                        device.type, torch.bfloat16, enabled=recipe.precision == "bf16"
                    ):
                        losses = task.loss(model, batch, recipe)
                    losses["loss"].backward()  # type: ignore[no-untyped-call]
                    if recipe.clip_norm is not None:
                        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
                    if average is not None:
                        average.update_parameters(model)
                    loss_sum += losses["loss"].detach() * len(batch)
                    advance(len(batch))
            train_loss = loss_sum.item() / data.train.images
            speed = data.train.images / (time.monotonic() - epoch_started)
            if not math.isfinite(train_loss):
                raise ValueError(
                    f"the loss is no longer a number in epoch {epoch}: lower the learning rate "
                    f"({recipe.optimizer.lr:g}) or set clip_norm; {run.folder} keeps what was good"
                )

            trained = model if average is None else average.module
            figures = evaluate(task, trained, data.val, device, what="validating")
            curves.add(
                epoch,
                epoch * len(data.train),
                {
                    "train/loss": train_loss,
                    "train/lr": optimizer.param_groups[0]["lr"],
                    "train/images_per_second": speed,
                    "seconds": time.monotonic() - started,
                    **{f"val/{name}": value for name, value in figures.items()},
                },
            )
            if _better(figures, best, task.monitor):
                best = {"epoch": epoch, **figures}
                write_weights(run.folder / "model.safetensors", trained.state_dict())
                run.config["metrics"] = best
                run.save_config()
                write_model_card(run, recipe)
            write_weights(run.folder / "last" / "model.safetensors", trained.state_dict())
            write_training_state(
                run.folder / "state.pt",
                {
                    "epoch": epoch,
                    "model": model.state_dict(),
                    "average": None if average is None else average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "random": torch.get_rng_state(),
                },
            )
            left = (time.monotonic() - started) / epoch * (recipe.epochs - epoch)
            report(
                f"epoch {epoch}/{recipe.epochs}  train loss {train_loss:.3f}  "
                f"val loss {figures['loss']:.3f}  "
                f"val {task.monitor} {100 * figures[task.monitor]:.2f} %  "
                f"{speed:,.0f} images/s  {format_seconds(left)} left"
            )
    return run


def _average(model: nn.Module, recipe: Recipe) -> AveragedModel | None:
    if recipe.ema_decay is None:
        return None
    average = get_ema_multi_avg_fn(recipe.ema_decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


def _better(figures: dict[str, float], best: dict[str, float], monitor: str) -> bool:
    """More of the monitored figure; at a tie, which small validation sets often give, less loss."""
    if not best:
        return True
    return (figures[monitor], -figures["loss"]) > (best[monitor], -best["loss"])
