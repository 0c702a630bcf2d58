"""From what is wanted to a run that is ready to train: a new one, one fold of several, one gone on with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mobilenets.architecture.detector import DetectorSpec, Spec, parse_spec
from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.architecture.spec import MobileNetSpec
from mobilenets.data.images import find_images
from mobilenets.data.loaders import OnBadImage
from mobilenets.training.distillation import Distilled
from mobilenets.training.processes import Processes
from mobilenets.training.recipe import Recipe, find_recipe
from mobilenets.training.run import Run, check_free, is_run
from mobilenets.training.session import check_recipe
from mobilenets.training.task import Task, TrainingData
from mobilenets.training.teachers import find_teacher
from mobilenets.weights.files import parse_said
from mobilenets.weights.imported import ImportedWeights
from mobilenets.weights.load import load_weights
from mobilenets.weights.state import load_strictly, split_head


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A training that was asked for; what is None follows from the rest.

    Args:
        data: as `open_source` takes it.
        model: such as `0.5-160`.
        output: the run folder.
        recipe: a name or a YAML file.
        changes: overrides of the recipe, such as `{"optimizer.lr": 0.05}`.
        weights: to start from, as `load_weights` takes them.
        activation: of the weights, where their file can't tell.
        teacher: to learn from, as `find_teacher` takes it.
        unlabelled: a folder or pattern of images to learn from it on, besides those of the data.
    """

    data: str
    model: str | None = None
    output: Path | None = None
    recipe: str | None = None
    changes: Mapping[str, object] = field(default_factory=dict)
    weights: str | None = None
    activation: str | None = None
    teacher: str | None = None
    unlabelled: str | None = None
    overwrite: bool = False
    on_bad_image: Literal["stop", "skip"] = "stop"


@dataclass(frozen=True)
class Job:
    """A run with all that training it needs; `weights` are those to start from."""

    run: Run
    recipe: Recipe
    data: TrainingData
    weights: Mapping[str, Tensor] | None = None


def begin(kind: type[Task], wanted: Wanted, processes: Processes, device: torch.device) -> Job:
    """A new run and all that it needs; nothing is replaced before all is known to be there.

    Raises:
        ValueError: something does not fit or is not there, in one sentence.
    """
    # What costs nothing to refuse comes before a download.
    if wanted.recipe:
        find_recipe(wanted.recipe, kind.recipes())
    if wanted.output is not None and processes.first:
        check_free(wanted.output, overwrite=wanted.overwrite)
    start = None if wanted.weights is None else _start(kind, wanted, wanted.weights)
    spec = parse_spec(wanted.model or kind.default_model) if start is None else start.spec
    name = str(spec).replace("/", "-")
    # An address may have braces and stars in it.
    data_name = re.sub(r"[^\w.-]+", "-", Path(wanted.data).name).strip("-")
    folder = wanted.output or Path("runs") / f"{data_name}-{name}"
    if processes.first:
        check_free(folder, overwrite=wanted.overwrite)
    recipe = _recipe(kind, wanted, spec)
    if not recipe.epochs and start is None:
        raise ValueError("epochs is 0: without --weights there is nothing that a classifier fits")
    preprocessing = None if start is None else _resized(start.preprocessing, spec)
    task = kind.from_data(wanted.data, spec, recipe, preprocessing)
    data = _data(
        task, spec, recipe, wanted.teacher, wanted.unlabelled, on_bad_image=wanted.on_bad_image
    )
    # All that can go wrong comes before an old run is replaced, which may be the one to start from.
    check_recipe(task, spec, recipe, device)
    weights = None if start is None else _state(start, task, str(wanted.weights))
    run = Run.create(
        folder,
        task,
        spec,
        recipe,
        data.record,
        start=wanted.weights or "",
        licence="" if start is None else start.licence,
        overwrite=wanted.overwrite,
        write=processes.first,
    )
    return Job(run, recipe, data, weights)


def _data(
    task: Task,
    spec: Spec,
    recipe: Recipe,
    teacher: str | None,
    unlabelled: str | None,
    *,
    on_bad_image: OnBadImage,
) -> TrainingData:
    """What a task is trained on, by its teacher where it has one, who then stands in the record."""
    if teacher is None:
        if unlabelled is not None:
            raise ValueError(
                "--unlabelled needs a teacher, who knows what is in the images: give --teacher"
            )
        if recipe.distillation is not None:
            raise ValueError("recipe: distillation needs a teacher: give --teacher")
        return task.build_data(recipe, on_bad_image=on_bad_image)
    choice = recipe.distillation
    assert choice is not None
    known = find_teacher(teacher, task, choice)
    more = [] if unlabelled is None else find_images([unlabelled])
    distilled = Distilled(task, known, choice, more)
    distilled.check(spec)
    data = distilled.build_data(recipe, on_bad_image=on_bad_image)
    told = (
        {"teacher": teacher}
        if unlabelled is None
        else {"teacher": teacher, "unlabelled": unlabelled}
    )
    return replace(data, record={**data.record, **told})


def go_on(
    folder: Path, data: str | None, length: Mapping[str, object], processes: Processes
) -> Job:
    """A run with its own recipe and data, to go on with.

    Args:
        data: where the run's data is now, if it has moved.
        length: `epochs` or `max_seconds` of the recipe, if they are new.

    Raises:
        ValueError: the folder holds no such run, or the data is gone or is another.
    """
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
        task = type(run.task).from_data(where, run.spec, recipe, run.preprocessing)
    except ValueError as error:
        raise ValueError(f"{error}{hint if data is None else ''}") from None
    found = _data(
        task,
        run.spec,
        recipe,
        record.get("teacher"),
        record.get("unlabelled"),
        on_bad_image=record["on_bad_image"],
    )
    same = ("fingerprint", "train_fingerprint", "held_out_fingerprint", "train_images")
    if any(found.record.get(key) != record.get(key) for key in same):
        raise ValueError(f"{where} is not the data that {folder} was trained on{hint}")
    run.task = task
    run.config["data"] = dict(found.record)
    if length and processes.first:
        run.save_recipe(recipe)
    return Job(run, recipe, found)


def begin_or_go_on(
    kind: type[Task], wanted: Wanted, processes: Processes, device: torch.device
) -> tuple[Job, bool]:
    """Go on with this very training where the output folder holds it, begin it otherwise; and whether it goes on.

    What was stopped before its first save is begun anew.

    Raises:
        ValueError: as `begin` and `go_on`, or the folder holds another training.
    """
    assert wanted.output is not None
    goes_on = unsaved = False
    # The first of them decides: the others may see the folder as it was.
    if processes.first:
        goes_on = is_begun(kind, wanted)
        unsaved = not goes_on and _is_unsaved(kind, wanted)
        if not (goes_on or unsaved) and is_run(wanted.output):
            raise ValueError(
                f"{wanted.output} holds another training, and --restartable goes on with the very same "
                "alone: give another --output"
            )
    if processes.first_says(goes_on, device):
        return go_on(wanted.output, wanted.data, {}, processes), True
    return begin(kind, replace(wanted, overwrite=unsaved), processes, device), False


def is_begun(kind: type[Task], wanted: Wanted) -> bool:
    """Whether the output folder holds this very training, so that it can be gone on with."""
    assert wanted.output is not None
    if wanted.overwrite or not (wanted.output / "state.pt").is_file():
        return False
    return _is_of(Run.load(wanted.output), kind, wanted)


def _is_unsaved(kind: type[Task], wanted: Wanted) -> bool:
    """Whether the output folder holds this very training, stopped before it first saved a state."""
    assert wanted.output is not None
    if (wanted.output / "state.pt").is_file() or not is_run(wanted.output):
        return False
    run = Run.load(wanted.output)
    # A longer training whose state someone removed is not thrown away.
    early = run.config["metrics"].get("epoch", 0) <= 1
    return early and _is_of(run, kind, wanted)


def _is_of(run: Run, kind: type[Task], wanted: Wanted) -> bool:
    if "origin" in run.config:
        return False
    # Without a name the model is that of the weights, which are the same.
    model = str(run.spec) if wanted.weights else kind.default_model
    return (
        run.task.name == kind.name
        and run.config.get("start") == wanted.weights
        and run.config["data"].get("teacher") == wanted.teacher
        and run.config["data"].get("unlabelled") == wanted.unlabelled
        and str(run.spec) == str(parse_spec(wanted.model or model))
        and wanted.activation in (None, run.spec.activation)
        and run.recipe == _recipe(kind, wanted, run.spec)
    )


def _recipe(kind: type[Task], wanted: Wanted, spec: Spec) -> Recipe:
    recipe = (
        find_recipe(wanted.recipe, kind.recipes())
        if wanted.recipe
        else kind.default_recipe(spec, wanted.data, pretrained=wanted.weights is not None)
    )
    recipe = recipe.override(wanted.changes)
    for task, answers in (("embedding", "embeddings"), ("geolocation", "geolocation")):
        if getattr(recipe, task) is not None and kind.name != task:
            raise ValueError(f"recipe: {task} is for {answers}, not for {kind.name}: leave it out")
    if wanted.teacher is not None and recipe.distillation is None:
        return recipe.override({"distillation": {}})
    return recipe


def _start(kind: type[Task], wanted: Wanted, reference: str) -> ImportedWeights:
    """The weights to start from, at the resolution that is asked for; a classifier's may start a detector, and a detector's
    one of another framework.

    A MobileNet takes any size of image: the weights of one resolution may start another.
    """
    asked = None if wanted.model is None else parse_spec(wanted.model)
    start = load_weights(
        reference,
        said=parse_said(
            activation=wanted.activation, resolution=None if asked is None else asked.height
        ),
    )
    usual = parse_spec(kind.default_model)
    spec = start.spec
    if isinstance(usual, DetectorSpec) and isinstance(spec, MobileNetSpec):
        model = asked if isinstance(asked, DetectorSpec) else usual
        spec = DetectorSpec(model.framework, spec.resized(model.height, model.across))
    if isinstance(spec, DetectorSpec) and isinstance(asked, DetectorSpec):
        # One framework's body may start another.
        spec = replace(spec, framework=asked.framework)
    if asked is not None:
        spec = spec.resized(asked.height, asked.across)
        if str(spec) != str(asked):
            raise ValueError(f"--weights {reference} is a {start.spec}, --model asks for {asked}")
    return replace(start, spec=spec)


def _resized(preprocessing: Preprocessing, spec: Spec) -> Preprocessing:
    return replace(preprocessing, height=spec.height, width=spec.across)


def _state(start: ImportedWeights, task: Task, reference: str) -> Mapping[str, Tensor]:
    """The weights to start from: all that fit, of the layers that tell classes apart only those for the same classes."""
    own = task.build_model(start.spec).state_dict()
    same = start.labels == task.labels
    kept = {
        key: value
        for key, value in start.state.items()
        if key in own
        and own[key].shape == value.shape
        and (same or not key.startswith(task.class_layers))
    }
    body, _ = split_head(start.state)
    load_strictly(task.build_model(start.spec), {**own, **body}, reference)
    return kept
