"""What every verb shares: JSON, tables, warnings and the one-sentence error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from mobilenets.data.progress import say, speaks

if TYPE_CHECKING:
    from mobilenets.web.server import Page

JsonFlag = Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")]

DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
OutputOption = Annotated[Path | None, typer.Option(help="The run folder to write.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a run that is there.")]
BadImageOption = Annotated[
    str, typer.Option(help="stop at an image that can't be read, or skip it.")
]


RuntimeOption = Annotated[
    str, typer.Option(help="auto (the fastest), torch, or one that the run was exported for.")
]


def on_bad_image_choice(text: str) -> Literal["stop", "skip"]:
    """Check the value of `--on-bad-image`.

    Raises:
        ValueError: it is neither.
    """
    if text == "stop":
        return "stop"
    if text == "skip":
        return "skip"
    raise ValueError(f"--on-bad-image is stop or skip, not {text!r}")


def leaving_out(text: str) -> Callable[[ValueError], None]:
    """What to do with an image that can't be read, by the value of `--on-bad-image`: raise what is wrong, or say it.

    Raises:
        ValueError: it is neither `stop` nor `skip`.
    """
    skip_or_stop = on_bad_image_choice(text)

    def leave_out(error: ValueError) -> None:
        if skip_or_stop == "stop":
            raise type(error)(f"{error}; --on-bad-image skip leaves such images out")
        note(f"warning: left out: {error}")

    return leave_out


def print_json(value: Any) -> None:
    """Write one JSON document to standard output."""
    if not speaks():
        return
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1
) -> None:
    """Write a table; the first `left` columns are text, the others numbers."""
    if not speaks():
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(header_style="bold")
    for position, column in enumerate(columns):
        table.add_column(escape(column), justify="left" if position < left else "right")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    console = Console()
    # A table in a file or a pipe is read by programs: do not fold its lines.
    if not console.is_terminal:
        console = Console(width=200)
    console.print(title, table, sep="\n", highlight=False, markup=False)


def note(message: str) -> None:
    """Write a line for people to standard error, where it never mixes with JSON."""
    say(message)


def fail(message: str, code: int = 2) -> NoReturn:
    """End with one sentence on standard error and an exit code: 1 is "no", 2 is bad input."""
    note(f"mobilenets: {message}")
    raise typer.Exit(code)


def serve_until_interrupted(pages: Mapping[str, Page], host: str, port: int, warning: str) -> None:
    """Serve pages, tell where, and warn where others than this machine reach them.

    Args:
        warning: what whoever reaches the host can do.
    """
    from mobilenets.web.server import serve_pages

    warn_of_others(host, warning)
    serve_pages(pages, host, port, lambda address: note(f"{address} until Ctrl-C"))


def warn_of_others(host: str, warning: str) -> None:
    """Say what others can do, where a server does not answer this machine alone."""
    from mobilenets.web.server import LOOPBACK

    if host not in LOOPBACK:
        note(f"warning: whoever reaches {host} {warning}")
