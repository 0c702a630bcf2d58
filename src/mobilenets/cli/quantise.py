"""`mobilenets quantise`: fine-tune a run so that int8 loses less."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobilenets.cli.output import JsonFlag, OverwriteOption, note, print_json


def quantise(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    output: Annotated[Path, typer.Option(help="The run folder to write.")],
    images: Annotated[
        list[str] | None,
        typer.Option(help="Images to learn from, not the run's own; no labels are needed."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 5,
    lr: Annotated[float, typer.Option(help="Peak learning rate of Adam.")] = 1e-4,
    limit: Annotated[int, typer.Option(min=32, help="Images to learn from at most.")] = 2000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    overwrite: OverwriteOption = False,
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune a run while it is rounded as int8 is, where export --int8 loses too much."""
    from mobilenets.deploy.target import INT8, TARGETS

    TARGETS["executorch"].check_installed(INT8)
    if not lr > 0:
        raise ValueError(f"--lr is above 0, not {lr}")

    from mobilenets.deploy.awareness import fine_tune
    from mobilenets.deploy.evidence import find_calibration
    from mobilenets.training.memory import keep_freed_memory
    from mobilenets.training.model_card import write_model_card
    from mobilenets.training.run import Run, check_free

    keep_freed_memory()
    opened = Run.load(run)
    here, there = run.resolve(), output.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise ValueError(f"{output} is where the run itself lies: give another --output")
    check_free(output, overwrite=overwrite)
    pictures = find_calibration(opened, images, limit=limit)
    state = fine_tune(opened, pictures, epochs=epochs, lr=lr, seed=seed)
    licence = opened.config.get("licence") or opened.config.get("origin", {}).get("licence")
    origin = {
        "licence": licence or "",
        "weights": opened.folder.resolve().name,
        "fine_tuned": f"for int8, {epochs} epochs of {len(pictures)} images",
    }
    made = Run.of_weights(output, opened.task, opened.spec, state, origin, overwrite=overwrite)
    made.config["data"] = dict(opened.config["data"])
    made.save_config()
    write_model_card(made, None)
    if as_json:
        print_json({"run": str(output), "images": len(pictures), "epochs": epochs})
        return
    note(f"fine-tuned for int8 on {len(pictures):,} images; the run is in {output}")
    typer.echo(f"mobilenets export {output} --int8")
