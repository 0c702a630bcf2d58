"""`mobilenets train`: images in, a trained model out."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobilenets.architecture import MobileNetSpec
from mobilenets.cli.output import (
    BadImageOption,
    DeviceOption,
    JsonFlag,
    note,
    on_bad_image_choice,
    print_json,
)
from mobilenets.data.progress import speaks

if TYPE_CHECKING:
    from torch import Tensor

    from mobilenets.training.recipe import Recipe
    from mobilenets.training.run import Run
    from mobilenets.training.task import Task, TrainingData

DEFAULT_MODEL = "0.5-160"


def train(
    data: Annotated[
        str | None,
        typer.Argument(
            help="A folder of class folders (perhaps in train/ and val/), a Parquet folder, "
            "or digits, cifar10, cifar100. With --resume: only if it has moved."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Such as 1.0-224, 0.5-160 (default), 0.5-32-s16.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The run folder to write.")] = None,
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
    weights: Annotated[
        Path | None, typer.Option(help="A run to start from, such as one on other classes.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="A run to go on with.")] = None,
    save_every: Annotated[
        float, typer.Option(min=0, help="Seconds between two saves within an epoch.")
    ] = 60.0,
    device: DeviceOption = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run that is there.")
    ] = False,
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
            "--weights": weights,
            "--overwrite": overwrite,
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

    from mobilenets import tasks
    from mobilenets.training.device import find_device
    from mobilenets.training.interrupt import interrupts
    from mobilenets.training.loop import train as run_training
    from mobilenets.training.memory import keep_freed_memory
    from mobilenets.training.processes import processes
    from mobilenets.training.recipe import find_recipe, parse_seconds
    from mobilenets.training.run import Run, check_free
    from mobilenets.training.session import check_recipe

    # Up to twice as fast on a CPU; set here, since a library must not set it for its callers.
    keep_freed_memory()
    length: dict[str, object] = {}
    if epochs is not None:
        length = {"epochs": epochs, "max_seconds": None}
    if max_time is not None:
        length = {"max_seconds": parse_seconds(max_time)}
    with processes(find_device(device)) as (mine, target):
        if resume is not None:
            job = _resumed(resume, data, length)
        else:
            assert data is not None
            kind = tasks.find(task)
            start = None if weights is None else Run.load(weights)
            spec = _spec(model, start)
            folder = output or Path("runs") / f"{Path(data).name}-{spec}"
            if mine.first:
                check_free(folder, overwrite=overwrite)
            chosen = (
                find_recipe(recipe, kind.recipes())
                if recipe
                else kind.default_recipe(spec, data, pretrained=start is not None)
            )
            own_seed = {} if seed is None else {"seed": seed}
            chosen = chosen.override({**_overrides(changes or []), **own_seed, **length})
            instance = kind.from_data(data, spec, chosen, start.preprocessing if start else None)
            loaders = instance.build_data(chosen, on_bad_image=skip_or_stop)
            # All that can go wrong comes before an old run is replaced, which may be the one to start from.
            check_recipe(instance, spec, chosen, target)
            state = _weights(start, instance)
            run = Run.create(
                folder,
                instance,
                spec,
                chosen,
                loaders.record,
                overwrite=overwrite,
                write=mine.first,
            )
            job = _Job(run, chosen, loaders, state)
        for warning in job.data.warnings:
            note(f"warning: {warning}")
        run = job.run
        note(
            f"training {run.spec} on {job.data.train.images:,} images of {len(run.labels)} "
            f"classes, validating on {job.data.val.images:,}; recipe {job.recipe.name}, {target}"
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
                resume=resume is not None,
                processes=mine,
                stop=interrupt,
                save_every=save_every,
                already=time.monotonic() - started,
                report=note,
            )
    best = run.config["metrics"]
    if as_json:
        print_json({"run": str(run.folder), "model": str(run.spec), "finished": over, **best})
    if interrupt():
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


@dataclass(frozen=True)
class _Job:
    run: Run
    recipe: Recipe
    data: TrainingData
    weights: Mapping[str, Tensor] | None = None


def _resumed(folder: Path, data: str | None, length: Mapping[str, object]) -> _Job:
    """A run with its own recipe and data, to go on with."""
    from mobilenets.training.run import Run

    run = Run.load(folder)
    recipe = run.recipe.override(length)
    record = run.config["data"]
    hint = f"; if it has moved: mobilenets train DATA --resume {folder}"
    where = data or record["where"]
    try:
        instance = type(run.task).from_data(where, run.spec, recipe, run.preprocessing)
    except ValueError as error:
        raise ValueError(f"{error}{hint if data is None else ''}") from None
    loaders = instance.build_data(recipe, on_bad_image=record["on_bad_image"])
    same = ("fingerprint", "train_fingerprint", "held_out_fingerprint", "train_images")
    if any(loaders.record.get(key) != record.get(key) for key in same):
        raise ValueError(f"{where} is not the data that {folder} was trained on{hint}")
    run.task = instance
    run.config["data"] = dict(loaders.record)
    if length and speaks():
        run.save_recipe(recipe)
    return _Job(run, recipe, loaders)


def _spec(model: str | None, start: Run | None) -> MobileNetSpec:
    """The model that is asked for, else that of the weights."""
    if start is None:
        return MobileNetSpec.parse(model or DEFAULT_MODEL)
    if model is not None and MobileNetSpec.parse(model) != start.spec:
        raise ValueError(f"--weights {start.folder} is a {start.spec}, --model asks for {model}")
    return start.spec


def _weights(start: Run | None, task: Task) -> Mapping[str, Tensor] | None:
    """The weights to start from: the body's, and the classifier's too for the same classes."""
    if start is None:
        return None
    same = start.task.name == task.name and start.task.to_dict() == task.to_dict()
    state = start.model.state_dict()
    return {key: value for key, value in state.items() if same or key.startswith("body.")}


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
