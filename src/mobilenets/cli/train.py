"""`mobilenets train`: images in, a trained model out."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobilenets.cli.output import (
    BadImageOption,
    DeviceOption,
    JsonFlag,
    OutputOption,
    OverwriteOption,
    note,
    on_bad_image_choice,
    print_json,
    print_table,
)
from mobilenets.data.progress import speaks

if TYPE_CHECKING:
    import torch

    from mobilenets.training.begin import Job, Wanted
    from mobilenets.training.interrupt import Interrupt
    from mobilenets.training.processes import Processes
    from mobilenets.training.run import Run
    from mobilenets.training.task import Task


def train(
    data: Annotated[
        str | None,
        typer.Argument(
            help="A folder of class folders (perhaps in train/ and val/), a Parquet folder, shards "
            "(here, or an address such as https://HOST/shards), or digits, cifar10, cifar100. With --resume: only if it has moved."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Such as 1.0-224, 0.5-160 (default), 0.5-32-s16.")
    ] = None,
    output: OutputOption = None,
    task: Annotated[str, typer.Option(help="What to learn.")] = "classification",
    recipe: Annotated[str | None, typer.Option(help="A recipe's name or YAML file.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Override, such as optimizer.lr=0.05.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the images.")] = None,
    max_time: Annotated[
        str | None,
        typer.Option(help="Such as 20m or 1h30m: the schedule is planned to end by then."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of weights, order, splits.")] = None,
    folds: Annotated[
        int | None,
        typer.Option(min=2, help="Train so many times, each with another part held out."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="To start from: keras/1.0-224 (see weights list), a run, a file."),
    ] = None,
    activation: Annotated[
        str | None, typer.Option(help="Of --weights, where the file can't tell.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="To learn from: a run, an ONNX file, timm/NAME, torchvision/NAME (--set distillation.… says how)."
        ),
    ] = None,
    unlabelled: Annotated[
        str | None,
        typer.Option(help="More images, of which the teacher alone says what they are."),
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="A run to go on with.")] = None,
    restartable: Annotated[
        bool,
        typer.Option(
            "--restartable",
            help="Go on with the run in --output if it is this very training, begin it otherwise.",
        ),
    ] = False,
    save_every: Annotated[
        float, typer.Option(min=0, help="Seconds between two saves within an epoch.")
    ] = 60.0,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    on_bad_image: BadImageOption = "stop",
    as_json: JsonFlag = False,
) -> None:
    """Train a model on images; a test split is never read."""
    started = time.monotonic()
    skip_or_stop = on_bad_image_choice(on_bad_image)
    if epochs is not None and max_time is not None:
        raise ValueError("--epochs and --max-time both say when to end: give one of them")
    if resume is not None:
        fixed = {
            "--model": model,
            "--output": output,
            "--recipe": recipe,
            "--set": changes,
            "--seed": seed,
            "--folds": folds,
            "--weights": weights,
            "--activation": activation,
            "--teacher": teacher,
            "--unlabelled": unlabelled,
            "--overwrite": overwrite,
            "--restartable": restartable,
        }
        # A seed of 0 is one.
        given = [name for name, value in fixed.items() if value is not None and value is not False]
        if given:
            raise ValueError(
                f"--resume goes on as the run began: leave out {', '.join(given)} "
                "(--epochs and --max-time may be new)"
            )
    elif data is None:
        raise ValueError("train needs DATA: a folder of images, digits, cifar10 or cifar100")
    if restartable and (output is None or overwrite or folds is not None):
        raise ValueError(
            "--restartable goes on with the run in --output, the same at each start: give --output, and leave "
            "out --overwrite and --folds (which goes on by itself)"
        )
    if activation is not None and weights is None:
        raise ValueError("--activation is what weights can't tell: give --weights too")

    from mobilenets import tasks
    from mobilenets.training.begin import Wanted, begin, begin_or_go_on, go_on
    from mobilenets.training.device import find_device
    from mobilenets.training.processes import processes
    from mobilenets.training.recipe import parse_seconds

    length: dict[str, object] = {}
    if epochs is not None:
        length = {"epochs": epochs, "max_seconds": None}
    if max_time is not None:
        length = {"max_seconds": parse_seconds(max_time)}
    own_seed = {} if seed is None else {"seed": seed}
    with processes(find_device(device)) as (mine, target):
        if resume is not None:
            job, resumed = go_on(resume, data, length, mine), True
        else:
            assert data is not None
            kind = tasks.find(task)
            wanted = Wanted(
                data=data,
                model=model,
                output=output,
                recipe=recipe,
                changes={**_overrides(changes or []), **own_seed, **length},
                weights=weights,
                activation=activation,
                teacher=teacher,
                unlabelled=unlabelled,
                overwrite=overwrite,
                on_bad_image=skip_or_stop,
            )
            if folds is not None:
                _train_folds(kind, wanted, folds, mine, target, save_every, as_json=as_json)
                return
            if restartable:
                job, resumed = begin_or_go_on(kind, wanted, mine, target)
            else:
                job, resumed = begin(kind, wanted, mine, target), False
        over, interrupt = _train(job, mine, target, save_every, started, resumed=resumed)
    run = job.run
    best = run.config["metrics"]
    if as_json:
        print_json({"run": str(run.folder), "model": str(run.spec), "finished": over, **best})
    if interrupt() or not over:
        note(f"stopped; go on with: mobilenets train --resume {run.folder}")
        raise typer.Exit(interrupt.exit_code)
    if as_json or not speaks():
        return
    monitor = run.task.monitor
    typer.echo(
        f"best: epoch {best['epoch']}, val {monitor} {100 * best[monitor]:.2f} %; "
        f"the run is in {run.folder}"
    )
    typer.echo(
        f"next: mobilenets predict {run.folder} PHOTO, mobilenets export {run.folder} --to onnx"
    )


def _train(
    job: Job,
    mine: Processes,
    target: torch.device,
    save_every: float,
    started: float,
    *,
    resumed: bool,
) -> tuple[bool, Interrupt]:
    """Train one run; whether it is over, and whether someone stopped it."""
    from mobilenets.training.interrupt import interrupts
    from mobilenets.training.loop import train as run_training
    from mobilenets.training.memory import keep_freed_memory

    if job.run.task.steady:
        # Up to twice as fast on a CPU; set here, since a library must not set it for its callers.
        keep_freed_memory()
    for warning in job.data.warnings:
        note(f"warning: {warning}")
    run = job.run
    note(
        f"training {run.spec} on {job.data.train.images:,} images of {run.task.kinds}, "
        f"validating on {job.data.val.images:,}; recipe {job.recipe.name}, {target}"
        + (f", {mine.count} processes" if mine.count > 1 else "")
        + f"; to {run.folder}"
    )
    mine.wait()
    with interrupts() as interrupt, _disk_full_says_what_to_do(run.folder):
        over = run_training(
            run,
            job.data,
            job.recipe,
            target,
            weights=job.weights,
            resume=resumed,
            processes=mine,
            stop=interrupt,
            save_every=save_every,
            already=time.monotonic() - started,
            report=note,
        )
    return over, interrupt


def _train_folds(
    kind: type[Task],
    wanted: Wanted,
    folds: int,
    mine: Processes,
    target: torch.device,
    save_every: float,
    *,
    as_json: bool,
) -> None:
    """Train once for each part of the images that is held out, and say what may be expected."""
    from mobilenets.training.begin import begin, go_on, is_begun
    from mobilenets.training.checkpoint import write_json
    from mobilenets.training.folds import summary
    from mobilenets.training.run import check_free

    whole = wanted.output or Path("runs") / f"{Path(wanted.data).name}-{folds}-folds"
    places = [whole / f"fold-{fold}" for fold in range(1, folds + 1)]
    each = [
        replace(wanted, output=place, changes={**wanted.changes, "folds": folds, "fold": fold})
        for fold, place in enumerate(places, 1)
    ]
    begun = [is_begun(kind, fold) for fold in each]
    # Before the first is trained, not when its turn has come.
    for place, goes_on in zip(places, begun, strict=True):
        if not goes_on and mine.first:
            check_free(place, overwrite=wanted.overwrite)
    mine.wait()
    runs: list[Run] = []
    for number, (fold, place, goes_on) in enumerate(zip(each, places, begun, strict=True), 1):
        note(f"fold {number} of {folds}")
        started = time.monotonic()
        job = go_on(place, wanted.data, {}, mine) if goes_on else begin(kind, fold, mine, target)
        over, interrupt = _train(job, mine, target, save_every, started, resumed=goes_on)
        if not over:
            note(f"stopped in fold {number}; the same command goes on")
            raise typer.Exit(interrupt.exit_code)
        runs.append(job.run)
    if not speaks():
        return
    found = summary(runs)
    write_json(whole / "folds.json", found)
    if as_json:
        print_json({"run": str(whole), **found})
        return
    rows = [
        (str(number), f"{100 * value:.2f}", f"{images:,}")
        for number, (value, images) in enumerate(
            zip(found["values"], found["images"], strict=True), 1
        )
    ]
    print_table(str(whole), ("fold", f"val {found['figure']}, %", "images"), rows)
    low, high = found["interval"]
    typer.echo(
        f"val {found['figure']} {100 * found['mean']:.2f} % on average, spread "
        f"{100 * found['spread']:.2f}; 95 % interval {100 * low:.1f} to {100 * high:.1f} %"
    )


def _overrides(changes: list[str]) -> dict[str, object]:
    overrides: dict[str, object] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"--set {change}: write KEY=VALUE, such as optimizer.lr=0.05")
        overrides[key] = value
    return overrides


@contextmanager
def _disk_full_says_what_to_do(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ValueError(
            f"no space left on the disk of {error.filename or folder}; what was saved before is "
            f"whole: free some space, then mobilenets train --resume {folder}"
        ) from None
