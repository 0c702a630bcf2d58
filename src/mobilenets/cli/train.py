"""`mobilenets train`: images in, a trained model out."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mobilenets.architecture import MobileNetSpec
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
    from torch import Tensor

    from mobilenets.architecture.preprocessing import Preprocessing
    from mobilenets.training.interrupt import Interrupt
    from mobilenets.training.processes import Processes
    from mobilenets.training.recipe import Recipe
    from mobilenets.training.run import Run
    from mobilenets.training.task import Task, TrainingData
    from mobilenets.weights.imported import ImportedWeights

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
    resume: Annotated[Path | None, typer.Option(help="A run to go on with.")] = None,
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
    if activation is not None and weights is None:
        raise ValueError("--activation is what weights can't tell: give --weights too")

    from mobilenets.training.device import find_device
    from mobilenets.training.memory import keep_freed_memory
    from mobilenets.training.processes import processes
    from mobilenets.training.recipe import parse_seconds

    # Up to twice as fast on a CPU; set here, since a library must not set it for its callers.
    keep_freed_memory()
    length: dict[str, object] = {}
    if epochs is not None:
        length = {"epochs": epochs, "max_seconds": None}
    if max_time is not None:
        length = {"max_seconds": parse_seconds(max_time)}
    own_seed = {} if seed is None else {"seed": seed}
    wishes = _Wishes(
        data=data,
        model=model,
        output=output,
        task=task,
        recipe=recipe,
        changes={**_overrides(changes or []), **own_seed, **length},
        weights=weights,
        activation=activation,
        overwrite=overwrite,
        on_bad_image=skip_or_stop,
        device=device,
        save_every=save_every,
        started=started,
    )
    with processes(find_device(device)) as (mine, target):
        if folds is not None:
            _train_folds(wishes, folds, mine, target, as_json=as_json)
            return
        run, over, interrupt = _train(wishes, resume, length, mine, target)
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


@dataclass(frozen=True, kw_only=True)
class _Wishes:
    """What the command was asked for."""

    data: str | None
    model: str | None
    output: Path | None
    task: str
    recipe: str | None
    changes: Mapping[str, object]
    weights: str | None
    activation: str | None
    overwrite: bool
    on_bad_image: Literal["stop", "skip"]
    device: str
    save_every: float
    started: float


def _train(
    wishes: _Wishes,
    resume: Path | None,
    length: Mapping[str, object],
    mine: Processes,
    target: torch.device,
) -> tuple[Run, bool, Interrupt]:
    """Train one run; whether it is over, and whether someone stopped it."""
    from mobilenets.training.interrupt import interrupts
    from mobilenets.training.loop import train as run_training

    job = _begun(wishes, mine, target) if resume is None else _resumed(resume, wishes.data, length)
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
            save_every=wishes.save_every,
            already=time.monotonic() - wishes.started,
            report=note,
        )
    return run, over, interrupt


def _train_folds(
    wishes: _Wishes, folds: int, mine: Processes, target: torch.device, *, as_json: bool
) -> None:
    """Train once for each part of the images that is held out, and say what may be expected."""
    from mobilenets.training.checkpoint import write_json
    from mobilenets.training.folds import summary
    from mobilenets.training.run import check_free

    assert wishes.data is not None
    whole = wishes.output or Path("runs") / f"{Path(wishes.data).name}-{folds}-folds"
    each = [
        replace(
            wishes,
            output=whole / f"fold-{fold}",
            changes={**wishes.changes, "folds": folds, "fold": fold},
        )
        for fold in range(1, folds + 1)
    ]
    goes_on = [_is_begun(fold) for fold in each]
    # Before the first is trained, not when its turn has come.
    for fold, begun in zip(each, goes_on, strict=True):
        assert fold.output is not None
        if not begun and mine.first:
            check_free(fold.output, overwrite=wishes.overwrite)
    mine.wait()
    runs: list[Run] = []
    for number, (fold, begun) in enumerate(zip(each, goes_on, strict=True), 1):
        note(f"fold {number} of {folds}")
        timed = replace(fold, started=time.monotonic())
        run, over, interrupt = _train(timed, fold.output if begun else None, {}, mine, target)
        if not over:
            note(f"stopped in fold {number}; the same command goes on")
            raise typer.Exit(interrupt.exit_code)
        runs.append(run)
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


def _is_begun(fold: _Wishes) -> bool:
    """Whether this very fold has been begun, so that it can be gone on with."""
    from mobilenets.training.run import Run

    assert fold.output is not None
    if fold.overwrite or not (fold.output / "state.pt").is_file():
        return False
    run = Run.load(fold.output)
    recipe = run.recipe
    return recipe.override(fold.changes) == recipe and run.config.get("start") == fold.weights


def _begun(wishes: _Wishes, mine: Processes, target: torch.device) -> _Job:
    """A new run and all that it needs; nothing is replaced before all is known to be there."""
    from mobilenets import tasks
    from mobilenets.training.recipe import find_recipe
    from mobilenets.training.run import Run, check_free
    from mobilenets.training.session import check_recipe

    data, weights = wishes.data, wishes.weights
    assert data is not None
    kind = tasks.find(wishes.task)
    # What costs nothing to refuse comes before a download.
    named = find_recipe(wishes.recipe, kind.recipes()) if wishes.recipe else None
    if wishes.output is not None and mine.first:
        check_free(wishes.output, overwrite=wishes.overwrite)
    start = None if weights is None else _start(weights, wishes.model, wishes.activation)
    spec = MobileNetSpec.parse(wishes.model or DEFAULT_MODEL) if start is None else start.spec
    folder = wishes.output or Path("runs") / f"{Path(data).name}-{spec}"
    if mine.first:
        check_free(folder, overwrite=wishes.overwrite)
    recipe = named or kind.default_recipe(spec, data, pretrained=start is not None)
    recipe = recipe.override(wishes.changes)
    if not recipe.epochs and start is None:
        raise ValueError("epochs is 0: without --weights there is nothing that a classifier fits")
    preprocessing = None if start is None else _resized(start.preprocessing, spec)
    instance = kind.from_data(data, spec, recipe, preprocessing)
    loaders = instance.build_data(recipe, on_bad_image=wishes.on_bad_image)
    # All that can go wrong comes before an old run is replaced, which may be the one to start from.
    check_recipe(instance, spec, recipe, target)
    state = None if start is None else _state(start, instance, str(weights))
    run = Run.create(
        folder,
        instance,
        spec,
        recipe,
        loaders.record,
        start=weights or "",
        overwrite=wishes.overwrite,
        write=mine.first,
    )
    return _Job(run, recipe, loaders, state)


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
    if "start" in run.config and not (folder / "state.pt").is_file():
        raise ValueError(
            f"{folder} stopped before its first save: begin again with --weights and --overwrite"
        )
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


def _start(reference: str, model: str | None, activation: str | None) -> ImportedWeights:
    """The weights to start from, at the resolution that is asked for.

    A MobileNet takes any size of image: the weights of one resolution may start another.
    """
    from mobilenets.weights.files import activation_choice
    from mobilenets.weights.load import load_weights

    wanted = None if model is None else MobileNetSpec.parse(model)
    start = load_weights(
        reference,
        activation=activation_choice(activation),
        resolution=None if wanted is None else wanted.height,
    )
    if wanted is None or wanted == start.spec:
        return start
    spec = replace(start.spec, resolution=wanted.resolution)
    if str(spec) != str(wanted):
        raise ValueError(f"--weights {reference} is a {start.spec}, --model asks for {model}")
    return replace(start, spec=spec)


def _resized(preprocessing: Preprocessing, spec: MobileNetSpec) -> Preprocessing:
    return replace(preprocessing, height=spec.height, width=spec.across)


def _state(start: ImportedWeights, task: Task, reference: str) -> Mapping[str, Tensor]:
    """The weights to start from: the body's, and the classifier's too for the same classes."""
    from mobilenets.weights.state import load_strictly

    model = task.build_model(start.spec)
    own = model.state_dict()
    heads = {key: value for key, value in own.items() if not key.startswith("body.")}
    body = {key: value for key, value in start.state.items() if key.startswith("body.")}
    load_strictly(model, heads | body, reference)
    same = start.labels == task.labels and all(
        key in start.state and start.state[key].shape == value.shape for key, value in heads.items()
    )
    return start.state if same else body


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
