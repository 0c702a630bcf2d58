"""`mobilenets evaluate`: exact figures of a run on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobilenets.cli.output import (
    BadImageOption,
    DeviceOption,
    JsonFlag,
    note,
    on_bad_image_choice,
    print_json,
    print_table,
)


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[str, typer.Argument(help="As for `train`.")],
    split: Annotated[
        str | None,
        typer.Option(help="Default: test, else val, else what the run held out, else all."),
    ] = None,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Average each image with its mirror image.")
    ] = False,
    device: DeviceOption = "auto",
    on_bad_image: BadImageOption = "stop",
    as_json: JsonFlag = False,
) -> None:
    """Evaluate a run on images, classes matched by name."""
    skip_or_stop = on_bad_image_choice(on_bad_image)

    from mobilenets.training.device import find_device
    from mobilenets.training.evaluation import measure
    from mobilenets.training.memory import keep_freed_memory
    from mobilenets.training.run import Run

    target = find_device(device)
    opened = Run.load(run)
    if opened.task.steady:
        keep_freed_memory()
    if mirror and not opened.task.mirrors:
        raise ValueError(f"--mirror averages guesses, and {opened.spec} tells of places")
    name, loader, warnings = opened.task.open_for_evaluation(
        data, split, opened.config["data"], on_bad_image=skip_or_stop
    )
    for warning in warnings:
        note(f"warning: {warning}")
    model = opened.model.to(target)
    figures, metrics = measure(opened.task, model, loader, target, mirror=mirror)
    if as_json:
        details = metrics.details()
        print_json({"run": str(run), "data": data, "split": name, **figures, **details})
        return
    rows = [
        (figure, f"{value:.4f}" if isinstance(value, float) else f"{value:,}")
        for figure, value in figures.items()
    ]
    print_table(f"{run} on the {name} images of {data}", ("figure", "value"), rows)
