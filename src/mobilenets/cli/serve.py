"""`mobilenets serve`: a run that answers over HTTP."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobilenets.cli.output import JsonFlag, RuntimeOption, note, print_json, warn_of_others

if TYPE_CHECKING:
    from mobilenets.training.run import Run
    from mobilenets.web.server import Page

PACKAGES = ("fastapi", "httptools", "prometheus_client", "python_multipart", "uvicorn")


def serve(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    host: Annotated[str, typer.Option(help="Whom to answer; this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    runtime: RuntimeOption = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Images a call of the network.")] = 32,
    wait: Annotated[
        float, typer.Option(min=0, max=1000, help="Milliseconds to fill a batch up.")
    ] = 2.0,
    max_mb: Annotated[float, typer.Option(min=0.001, help="Megabytes of a request.")] = 20,
    max_images: Annotated[int, typer.Option(min=1, help="Images of a request.")] = 16,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Seconds to send a request in.")
    ] = 30,
    connections: Annotated[int, typer.Option(min=1, help="Open at the same time.")] = 512,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Pages from elsewhere that may ask, such as https://example.org."),
    ] = None,
    log: Annotated[bool, typer.Option("--log", help="A line for each request.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Answer over HTTP what a run says of images, many at a time; with a page to try it on."""
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        raise ImportError(
            f"serving needs {', '.join(missing)}, not installed: pip install 'mobilenets[serve]'"
        )

    from mobilenets.deploy.predictor import find_engine
    from mobilenets.training.memory import keep_freed_memory
    from mobilenets.training.run import Run
    from mobilenets.web.server import LOOPBACK
    from mobilenets.web.service.app import make_app
    from mobilenets.web.service.gate import checked_origin, host_of
    from mobilenets.web.service.limits import Limits
    from mobilenets.web.service.metrics import Metrics
    from mobilenets.web.service.server import serve as answer

    origins = [checked_origin(text) for text in allow_origin or []]
    opened = Run.load(run)
    defaults = Limits()
    limits = Limits(
        body_bytes=round(1e6 * max_mb),
        images=max_images,
        seconds=timeout,
        connections=connections,
        waiting=max(defaults.waiting, 8 * batch, max_images),
        held_bytes=max(defaults.held_bytes, round(4e6 * max_mb)),
        batch=batch,
        wait_ms=wait,
    )
    keep_freed_memory()
    engine = find_engine(opened, runtime, batch=batch)
    pages = _pages(opened)
    hosts: set[str] | None = None
    if host in LOOPBACK:
        # Where something else takes requests from outside, it may tell the name that it was called by.
        hosts = {*LOOPBACK, *map(host_of, origins)}
    warn_of_others(host, "can send images and gets answers")
    metrics = Metrics()
    app = make_app(
        opened,
        engine,
        limits,
        pages,
        hosts=hosts,
        origins=origins,
        metrics=metrics,
        log=note if log else None,
    )

    def started(address: str) -> None:
        if as_json:
            print_json({"address": address, "runtime": engine.runtime, "model": str(opened.spec)})
        note(f"{address} through {engine.runtime} until Ctrl-C; the API is at {address}docs")

    answer(app, host, port, limits, metrics, started)


def _pages(run: Run) -> dict[str, Page]:
    """The page to try the run on, where it can be had."""
    from mobilenets.web.try_page import served, try_pages

    try:
        return served(try_pages(run))
    except ValueError as error:
        note(f"no page to try it on, the API alone: {error}")
        return {}
