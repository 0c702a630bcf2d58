"""`mobilenets paper`: the paper's tables and figures, computed.

The tables are imported where they are used, so that no other verb pays for them at its start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobilenets.cli.output import JsonFlag, print_json, print_table
from mobilenets.cost import CONVENTION

paper = typer.Typer(help="The paper's tables and figures, printed beside computed values.")


@paper.callback(invoke_without_command=True)
def list_tables(context: typer.Context, as_json: JsonFlag = False) -> None:
    """List the paper's tables and figures, with a count of each verdict."""
    # `paper --json table 4` means the same as `paper table 4 --json`.
    context.obj = as_json
    if context.invoked_subcommand is not None:
        return
    from mobilenets.reproduce import TABLES, verdict_counts
    from mobilenets.reproduce.figures import DRAWINGS

    if as_json:
        print_json(
            {
                "tables": [
                    {
                        "number": table.number,
                        "title": table.title,
                        "computed": table.computed,
                        "verdicts": verdict_counts(table.figures),
                    }
                    for table in TABLES
                ],
                "figures": [{"number": row.number, "title": row.title} for row in DRAWINGS],
            }
        )
        return
    print_table(
        "Tables of the paper",
        ("table", "title", "computed", "verdicts"),
        [
            (
                table.number,
                table.title,
                table.computed,
                ", ".join(f"{n} {verdict}" for verdict, n in verdict_counts(table.figures).items()),
            )
            for table in TABLES
        ],
        left=4,
    )
    drawn = ", ".join(f"{row.number} ({row.title.lower()})" for row in DRAWINGS)
    typer.echo(f"figures: {drawn}")


@paper.command()
def table(
    context: typer.Context,
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="Such as 4.")],
    as_json: JsonFlag = False,
) -> None:
    """Print every figure of one table beside its exact value, with a verdict and why."""
    from mobilenets.reproduce import find_table, show, verdict_counts

    found = find_table(number)
    counts = verdict_counts(found.figures)
    if as_json or context.obj:
        print_json(
            {
                "table": found.number,
                "title": found.title,
                "verdicts": counts,
                "figures": [figure.to_dict() for figure in found.figures],
            }
        )
        return
    print_table(
        f"Table {found.number}: {found.title}",
        ("row", "figure", "printed", "computed", "verdict", "why"),
        [
            (
                figure.row,
                figure.column,
                f"{figure.printed} {figure.unit}".rstrip(),
                show(figure.computed),
                figure.verdict,
                figure.reason,
            )
            for figure in found.figures
        ],
        left=6,
    )
    typer.echo(", ".join(f"{n} {verdict}" for verdict, n in counts.items()))
    typer.echo(CONVENTION)


@paper.command()
def figure(
    context: typer.Context,
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="4 or 5.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A .png, .svg or .html file.")],
    source: Annotated[
        str, typer.Option(help="Of the accuracies: paper, slim-2017, slim-2018, slim-2018-int8.")
    ] = "slim-2018",
    as_json: JsonFlag = False,
) -> None:
    """Draw the 16 models: figure 4 against mult-adds, figure 5 against parameters."""
    from mobilenets.reproduce.figures import draw

    shown = draw(number, output, source)
    if as_json or context.obj:
        print_json(
            {
                "figure": number,
                "file": str(output),
                "points": [point.to_dict() for point in shown],
            }
        )
        return
    typer.echo(f"{output}: figure {number}, {len(shown)} models")
