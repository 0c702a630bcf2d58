"""`mobilenets push` and `mobilenets pull`: runs to and from a folder or the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobilenets.cli.output import JsonFlag, OutputOption, OverwriteOption, print_json


def push(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    target: Annotated[str, typer.Argument(help="A folder, or hf://OWNER/NAME.")],
    private: Annotated[
        bool, typer.Option("--private", help="A new repository is private.")
    ] = False,
    licence: Annotated[
        str, typer.Option(help="Of what is given away, such as apache-2.0; default: the weights'.")
    ] = "",
    overwrite: OverwriteOption = False,
    as_json: JsonFlag = False,
) -> None:
    """Give a run away: model, labels, preprocessing, card and recipe, without your paths."""
    from mobilenets.training.run import Run
    from mobilenets.training.sharing import push as push_run

    where = push_run(Run.load(run), target, private=private, licence=licence, overwrite=overwrite)
    if as_json:
        print_json({"run": str(run), "target": where})
    else:
        typer.echo(f"{run} is in {where}; take it in with: mobilenets pull {where}")


def pull(
    origin: Annotated[str, typer.Argument(help="A folder, or hf://OWNER/NAME.")],
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonFlag = False,
) -> None:
    """Take a run in that someone gave away."""
    from mobilenets.training.sharing import pull as pull_run

    folder = output or Path("runs") / (origin.rstrip("/").rpartition("/")[2] or "pulled")
    run = pull_run(origin, folder, overwrite=overwrite)
    if as_json:
        print_json({"run": str(folder), "model": str(run.spec), "classes": len(run.labels)})
    else:
        typer.echo(f"{run.spec}, {run.task.kinds}; the run is in {folder}")
