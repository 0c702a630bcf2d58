"""The training loop: steps, evaluations and saves, in one order that any interruption keeps."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor

from mobilenets.data.progress import format_seconds, progress, say
from mobilenets.training.checkpoint import write_weights
from mobilenets.training.curves import Curves
from mobilenets.training.device import determinism
from mobilenets.training.plan import Plan, Standing
from mobilenets.training.process_log import add_to_log, figures_of
from mobilenets.training.processes import ALONE, Processes
from mobilenets.training.recipe import Recipe
from mobilenets.training.run import Run
from mobilenets.training.session import Session, flat
from mobilenets.training.stages import STAGES, Stages
from mobilenets.training.task import TrainingData

SAVE_EVERY = 60.0


def train(
    run: Run,
    data: TrainingData,
    recipe: Recipe,
    device: torch.device,
    *,
    weights: Mapping[str, Tensor] | None = None,
    resume: bool = False,
    processes: Processes = ALONE,
    stop: Callable[[], bool] = lambda: False,
    save_every: float = SAVE_EVERY,
    already: float = 0.0,
    report: Callable[[str], None] = say,
) -> bool:
    """Train a run's model, keep its best and its last epoch; whether training is over.

    What a step computes depends on the seed and the step alone, so a run that goes on from
    `state.pt` repeats what it would have done, on a CPU to the bit.

    Args:
        run: a folder made by `Run.create`, or one to go on with.
        data: from the run's task.
        weights: to start from, by name; what is not among them starts at random.
        resume: go on from `state.pt`, or from the beginning where there is none yet.
        processes: this process among those that train together.
        stop: asked after each step; when it says so, the state is saved and training left.
        save_every: seconds between two saves within an epoch.
        already: seconds spent before, which count for the recipe's `max_seconds`.
        report: called with one line an epoch.

    Raises:
        ValueError: the loss is no longer a number (the last good state is kept), or the recipe
            asks for what is not there.
        OSError: the disk is full; the last good state is kept.
    """
    with determinism(recipe.deterministic):
        plan = Plan(recipe, data.train.images, len(data.train), already)
        session = Session(run, data, recipe, device, processes, weights)
        if resume:
            session.load(run.folder / "state.pt")
        standing = session.standing
        if standing.epoch == 0:
            report(f"start  {_judge_start(session)}")
            standing.next_epoch()
            session.save()
        plan.start(standing)
        if resume and (plan.finished(standing) or session.stale()):
            report("nothing is left to train: the plan is done (--epochs N goes on)")
        saved = time.monotonic()
        with _curves(run, standing, processes) as curves:
            while not (plan.finished(standing) or session.stale()):
                stages, stopped = Stages(), False
                with progress(_title(standing, recipe), data.train.images) as advance:
                    advance(standing.images)
                    ended = time.monotonic()
                    for batch in data.train.batches(
                        standing.epoch, standing.position, processes.shard
                    ):
                        stages.lap("data")
                        session.step(batch, plan.factor(standing), stages)
                        # With the time that the batch took to come.
                        plan.stepped(standing, time.monotonic() - ended)
                        ended = time.monotonic()
                        if recipe.max_seconds is not None:
                            standing.share = processes.first_says(standing.share, device)
                        advance(batch.whole, str(stages))
                        due = time.monotonic() - saved > save_every
                        stopped, due = processes.any_of((stop(), due), device)
                        if stopped or plan.finished(standing):
                            break
                        if due:
                            session.save()
                            saved = ended = time.monotonic()
                            stages.restart()
                if standing.position == len(data.train) or plan.finished(standing):
                    line = _end_epoch(session, plan, stages, curves)
                    report(f"{_title(standing, recipe)}  {line}")
                    standing.next_epoch()
                standing.seconds = plan.seconds
                session.save()
                saved = time.monotonic()
                plan.evaluated(saved - ended)
                if stopped:
                    break
            over = plan.finished(standing) or session.stale()
            if over and curves is not None and standing.best:
                best = {f"best/{name}": value for name, value in standing.best.items()}
                curves.add_choices(flat(recipe.model_dump()), best)
    return over


def _judge_start(session: Session) -> str:
    """Evaluate a fitted classifier before the first step, which may be as good as it gets."""
    val, metrics = session.evaluate()
    if session.judge(val) and session.processes.first:
        session.keep_best(metrics)
    monitor = session.run.task.monitor
    return (
        f"the classifier fitted, the body as it is: val loss {val['val/loss']:.3f}  "
        f"val {monitor} {100 * val[f'val/{monitor}']:.2f} %"
    )


def _end_epoch(session: Session, plan: Plan, stages: Stages, curves: Curves | None) -> str:
    """Evaluate, write curves and weights, and give a line about the epoch."""
    standing, run = session.standing, session.run
    figures = session.train_figures()
    val, metrics = session.evaluate()
    better = session.judge(val)
    speed = stages.images_per_second()
    processes = session.processes
    if processes.count > 1:
        own = figures_of(stages, processes, session.device)
        everyone = processes.gather(json.dumps(own))
        if processes.first:
            add_to_log(run.folder, standing.epoch, everyone)
    if curves is not None:
        curves.add(
            standing.epoch,
            standing.step,
            {
                **figures,
                "train/lr": session.optimizer.param_groups[0]["lr"],
                "train/images_per_second": speed,
                **{f"time/{stage}": stages.shares().get(stage, 0.0) for stage in STAGES},
                "seconds": plan.seconds,
                **val,
            },
        )
        if better:
            session.keep_best(metrics)
            curves.add_pictures("val/predictions", standing.epoch, session.samples())
        write_weights(run.folder / "last" / "model.safetensors", session.trained.state_dict())
    monitor = run.task.monitor
    raw = f" (raw {100 * val[f'val_raw/{monitor}']:.2f})" if f"val_raw/{monitor}" in val else ""
    return (
        f"train loss {figures['train/loss']:.3f}  val loss {val['val/loss']:.3f}  "
        f"val {monitor} {100 * val[f'val/{monitor}']:.2f} %{raw}  {speed:,.0f} images/s  "
        f"({stages})  {format_seconds(plan.seconds_left(standing))} left"
    )


def _title(standing: Standing, recipe: Recipe) -> str:
    if recipe.max_seconds is not None:
        return f"epoch {standing.epoch} ({100 * standing.share:.0f} % of the plan)"
    return f"epoch {standing.epoch}/{recipe.epochs}"


def _curves(run: Run, standing: Standing, processes: Processes) -> Curves | nullcontext[None]:
    return Curves(run.folder, standing.epoch - 1) if processes.first else nullcontext()
