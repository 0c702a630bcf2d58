"""`mobilenets web`: a page to try a run with, in any browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobilenets.cli.output import JsonFlag, print_json, serve_until_interrupted


def web(
    run: Annotated[Path, typer.Argument(help="A run folder that was exported to ONNX.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the page's folder, and serve nothing."),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="The export in 8-bit integers, a quarter as large.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a page.")] = False,
    host: Annotated[str, typer.Option(help="Whom to answer; this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    as_json: JsonFlag = False,
) -> None:
    """Try a run on pictures and the camera in a browser: the model runs there, and no picture leaves the device."""
    if as_json and output is None:
        raise ValueError("--json tells what --output wrote: give a folder")

    from mobilenets.training.run import Run
    from mobilenets.web.try_page import NETWORK, RUNTIME, served, try_pages, write_pages

    opened = Run.load(run)
    pages = try_pages(opened, int8=int8)
    if output is not None:
        write_pages(pages, output, overwrite=overwrite)
        runtime = sum(
            len(page.content) for path, page in pages.items() if path.startswith(f"{RUNTIME}/")
        )
        model = len(pages[NETWORK].content)
        page = sum(len(page.content) for page in pages.values()) - runtime - model
        if as_json:
            sizes = {"page": page, "model": model, "runtime": runtime}
            print_json({"folder": str(output), "files": sorted(pages), "bytes": sizes})
            return
        typer.echo(
            f"{output}: page {page / 1000:,.0f} kB, model {model / 1e6:,.1f} MB, runtime {runtime / 1e6:,.1f} MB; "
            "put it on any web server"
        )
        return
    serve_until_interrupted(served(pages), host, port, "gets this page and its model")
