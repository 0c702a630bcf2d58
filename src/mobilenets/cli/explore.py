"""`mobilenets explore`: the family as a page to choose with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobilenets.cli.output import JsonFlag, print_json, serve_until_interrupted

if TYPE_CHECKING:
    from mobilenets.cost.latency import LatencyProfile
    from mobilenets.web.explorer import OwnModel


def explore(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, as points of the chart.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the page, such as explorer.html, and serve nothing."
        ),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="A device's profile (mobilenets profile), for milliseconds.")
    ] = None,
    host: Annotated[str, typer.Option(help="Whom to answer; this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    as_json: JsonFlag = False,
) -> None:
    """Choose a width and a resolution on a page: accuracy against cost, a budget, each layer."""
    from mobilenets.cost.latency import read_profile
    from mobilenets.web.explorer import explorer_data, explorer_page

    measured = None if profile is None else read_profile(profile)
    own = [_own(run, measured) for run in runs or []]
    if as_json:
        print_json(explorer_data(measured, own))
        return
    page = explorer_page(measured, own)
    if output is not None:
        if output.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"--output {output}: the name of a page ends in .html")
        output.write_text(page, encoding="utf-8")
        typer.echo(f"{output}: {len(page.encode()) / 1000:,.0f} kB, needs no server and no network")
        return
    from mobilenets.web.server import Page

    pages = {"/": Page.named("explorer.html", page.encode())}
    serve_until_interrupted(pages, host, port, "sees this page")


def _own(folder: Path, profile: LatencyProfile | None) -> OwnModel:
    from mobilenets.architecture.spec import MobileNetSpec
    from mobilenets.cost import cost
    from mobilenets.training.run import Run
    from mobilenets.web.explorer import OwnModel

    run = Run.load(folder)
    if run.task.name != "classification" or not isinstance(run.spec, MobileNetSpec):
        raise ValueError(f"{folder} has learnt {run.task.name}, which has no top-1 to be shown by")
    monitor = run.task.monitor
    value = run.config["metrics"].get(monitor)
    if value is None:
        raise ValueError(f"{folder} has no {monitor} yet: it was not validated")
    counted = cost(run.spec, run.task.outputs)
    return OwnModel(
        name=folder.name,
        figure=f"val {monitor}",
        value=100 * value,
        mult_adds=counted.mult_adds,
        parameters=counted.parameters,
        bytes_fp32=counted.bytes_fp32,
        bytes_int8=counted.bytes_int8,
        latency_ms=profile.ms(run.spec)
        if profile is not None and profile.covers(run.spec)
        else None,
    )
