"""`mobilenets doctor`: what is wrong with a set of images, before a model is trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobilenets.cli.output import JsonFlag, print_json, print_table

if TYPE_CHECKING:
    from mobilenets.data.doctor import Report
    from mobilenets.data.quarantine import Fixed

MOST_SHOWN = 10


def doctor(
    data: Annotated[str, typer.Argument(help="As for `train`.")],
    task: Annotated[str, typer.Option(help="What the images are for.")] = "classification",
    run: Annotated[
        Path | None, typer.Option(help="A trained run whose features judge the labels.")
    ] = None,
    noisy: Annotated[
        bool,
        typer.Option(
            "--noisy",
            help="Many labels are wrong, as in images from the web: what looks so in training is an error.",
        ),
    ] = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Move the files that errors name; delete nothing.")
    ] = False,
    quarantine: Annotated[
        Path | None, typer.Option(help="Where --fix moves them; default: DATA-doctor.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with every finding and its picture.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Find broken files, copies across splits and doubtful labels; exit 1 when errors remain."""
    if quarantine is not None and not fix:
        raise ValueError("--quarantine is where --fix moves files: give both")
    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--html {html}: the page's name ends in .html")

    from mobilenets import tasks
    from mobilenets.data.quarantine import find_quarantine, move_aside
    from mobilenets.training.run import Run

    kind = tasks.find(task)
    folder = find_quarantine(data, quarantine) if fix else None
    trained = Run.load(run) if run else None
    report = kind.check_data(
        data,
        network=trained.model if trained else None,
        preprocessing=trained.preprocessing if trained else None,
        noisy=noisy,
    )
    if html is not None:
        from mobilenets.web.doctor import write_page

        write_page(report, html)
    fixed = move_aside(report, folder) if folder else None
    if as_json:
        print_json(report.to_dict() | ({"fix": fixed.to_dict()} if fixed else {}))
    else:
        _print(report, fixed, html)
    remain = len(fixed.left) if fixed else len(report.errors)
    raise typer.Exit(1 if remain else 0)


def _print(report: Report, fixed: Fixed | None, html: Path | None) -> None:
    from mobilenets.data.doctor import count_of

    splits = ", ".join(
        f"{split} {sum(classes.values()):,}" for split, classes in report.images.items()
    )
    checked = (
        f"{report.where}: {count_of(report.total, 'image')} ({splits}) in {report.seconds:.1f} s"
    )
    if report.findings:
        print_table(
            checked,
            ("severity", "finding", "number"),
            ((severity, kind, count) for (severity, kind), count in report.counts().items()),
            left=2,
        )
        rows: list[tuple[str, str, str]] = []
        shown: dict[str, int] = {}
        for finding in report.findings:
            shown[finding.kind] = shown.get(finding.kind, 0) + 1
            if shown[finding.kind] <= MOST_SHOWN:
                rows.append((finding.kind, finding.name, finding.detail))
            elif shown[finding.kind] == MOST_SHOWN + 1:
                more = report.counts()[finding.severity, finding.kind] - MOST_SHOWN
                rows.append((finding.kind, f"and {more:,} more", "--json and --html list them all"))
        print_table("", ("finding", "where", "what"), rows, left=3)
    else:
        typer.echo(f"{checked}: nothing is wrong")
    for sentence in report.not_checked:
        typer.echo(f"not checked: {sentence}")
    if fixed:
        for sentence in fixed.left:
            typer.echo(f"left in place: {sentence}")
        count = len(fixed.moved)
        typer.echo(
            f"moved {count_of(count, 'file')} to {fixed.quarantine}, listed in its moved.json"
            if count
            else "moved nothing"
        )
    if html is not None:
        typer.echo(f"open {html}")
