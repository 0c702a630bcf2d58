"""`mobilenets train`: images in, a trained model out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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


def train(
    data: Annotated[
        str,
        typer.Argument(
            help="A folder of class folders (perhaps in train/ and val/), a Parquet folder, "
            "or digits, cifar10, cifar100."
        ),
    ],
    model: Annotated[str, typer.Option(help="Such as 1.0-224, 0.5-160, 0.5-32-s16.")] = "0.5-160",
    output: Annotated[Path | None, typer.Option(help="The run folder to write.")] = None,
    task: Annotated[str, typer.Option(help="What to learn.")] = "classification",
    recipe: Annotated[str | None, typer.Option(help="A recipe's name or YAML file.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Override, such as optimizer.lr=0.05.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the images.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of weights, order, splits.")] = None,
    device: DeviceOption = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run that is there.")
    ] = False,
    on_bad_image: BadImageOption = "stop",
    as_json: JsonFlag = False,
) -> None:
    """Train a model on images; a test split is never read."""
    spec = MobileNetSpec.parse(model)
    skip_or_stop = on_bad_image_choice(on_bad_image)

    from mobilenets import tasks
    from mobilenets.training.device import find_device
    from mobilenets.training.loop import train as run_training
    from mobilenets.training.recipe import find_recipe
    from mobilenets.training.run import Run, check_free

    folder = output or Path("runs") / f"{Path(data).name}-{spec}"
    check_free(folder, overwrite=overwrite)
    target = find_device(device)
    kind = tasks.find(task)
    chosen = find_recipe(recipe, kind.recipes()) if recipe else kind.default_recipe(spec, data)
    overrides: dict[str, object] = {}
    for change in changes or []:
        key, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"--set {change}: write KEY=VALUE, such as optimizer.lr=0.05")
        overrides[key] = value
    if epochs is not None:
        overrides["epochs"] = epochs
    if seed is not None:
        overrides["seed"] = seed
    chosen = chosen.override(overrides)

    instance = kind.from_data(data, spec)
    loaders = instance.build_data(chosen, on_bad_image=skip_or_stop)
    for warning in loaders.warnings:
        note(f"warning: {warning}")
    note(
        f"training {spec} on {loaders.train.images:,} images of {len(instance.labels)} classes, "
        f"validating on {loaders.val.images:,}; recipe {chosen.name}, {target}; to {folder}"
    )
    run = Run.create(folder, instance, spec, chosen, loaders.record, overwrite=overwrite)
    run_training(run, loaders, chosen, target, report=note)
    best = run.config["metrics"]
    if as_json:
        print_json({"run": str(folder), "model": str(spec), **best})
        return
    typer.echo(
        f"best: epoch {best['epoch']}, val {instance.monitor} "
        f"{100 * best[instance.monitor]:.2f} %; the run is in {folder}"
    )
    typer.echo(f"next: mobilenets predict {folder} PHOTO, mobilenets export {folder} --to onnx")
