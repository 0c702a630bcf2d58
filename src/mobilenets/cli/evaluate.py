"""`mobilenets evaluate`: exact figures of a run on a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    import torch

    from mobilenets.tasks.embedding.verification import SamePairs
    from mobilenets.training.run import Run


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[str, typer.Argument(help="As for `train`; with --pairs the images' folder.")],
    split: Annotated[
        str | None,
        typer.Option(help="Default: test, else val, else what the run held out, else all."),
    ] = None,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Average each image with its mirror image.")
    ] = False,
    by: Annotated[
        str | None,
        typer.Option(help="Figures of each group too, by a column of the data's CSV."),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="Embeddings: judge these pairs, as LFW's pairs.txt or a CSV."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Embeddings: draw the ROC curve, such as roc.png.")
    ] = None,
    device: DeviceOption = "auto",
    on_bad_image: BadImageOption = "stop",
    as_json: JsonFlag = False,
) -> None:
    """Evaluate a run on images, classes matched by name."""
    skip_or_stop = on_bad_image_choice(on_bad_image)
    if pairs is not None and (split is not None or by is not None or mirror):
        raise ValueError("--pairs names all that is judged: leave --split, --by and --mirror out")

    from mobilenets.data.groups import find_groups
    from mobilenets.training.device import find_device
    from mobilenets.training.evaluation import measure
    from mobilenets.training.groups import GroupMetrics
    from mobilenets.training.memory import keep_freed_memory
    from mobilenets.training.run import Run

    target = find_device(device)
    opened = Run.load(run)
    if (pairs, plot) != (None, None) and opened.task.name != "embedding":
        raise ValueError(
            f"--pairs and --plot are for embeddings, and {run} has learnt {opened.task.name}"
        )
    if plot is not None:
        from mobilenets.web.pictures import check_picture

        check_picture(plot)
    if opened.task.steady:
        keep_freed_memory()
    if mirror and not opened.task.mirrors:
        raise ValueError(f"--mirror averages guesses, and {opened.spec} tells of places")
    if pairs is not None:
        _judge(opened, pairs, Path(data), plot, target, as_json=as_json)
        return
    found = None if by is None else find_groups(data, by)
    name, loader, warnings = opened.task.open_for_evaluation(
        data, split, opened.config["data"], on_bad_image=skip_or_stop
    )
    for warning in warnings:
        note(f"warning: {warning}")
    groups = None if found is None else GroupMetrics(opened.task, loader, found)
    model = opened.model.to(target)
    figures, metrics = measure(opened.task, model, loader, target, mirror=mirror, groups=groups)
    details = metrics.details()
    if plot is not None:
        from mobilenets.tasks.embedding.metrics import EmbeddingMetrics

        assert isinstance(metrics, EmbeddingMetrics)
        assert metrics.pairs is not None
        _draw(metrics.pairs, plot)
    of_groups = {} if groups is None else groups.compute()
    if groups is not None and groups.unknown:
        note(f"warning: {by} is not told of {groups.unknown:,} images")
    if as_json:
        more = {} if groups is None else {"by": by, "groups": of_groups}
        print_json({"run": str(run), "data": data, "split": name, **figures, **details, **more})
        return
    rows = [(figure, _shown(value)) for figure, value in figures.items()]
    rows += [(figure, value) for figure, value in _of_pairs(details) if figure.startswith("TAR")]
    title = f"{run} on the {name} images of {data}"
    intervals = details.get("intervals")
    if intervals is None:
        print_table(title, ("figure", "value"), rows)
    else:
        told = [(figure, value, _interval(intervals.get(figure))) for figure, value in rows]
        print_table(title, ("figure", "value", "95 % interval"), told)
    if groups is not None:
        _print_groups(str(by), list(figures), of_groups)


def _judge(
    run: Run, pairs: Path, images: Path, plot: Path | None, device: torch.device, *, as_json: bool
) -> None:
    """What a list of pairs says of a run."""
    from mobilenets.tasks.embedding.pairs import judge_pairs, read_pairs

    found, similarities = judge_pairs(run, read_pairs(pairs, images), device)
    if plot is not None:
        _draw(similarities, plot)
    if as_json:
        print_json({"run": str(run.folder), "pairs": str(pairs), **found.to_dict()})
        return
    print_table(f"{run.folder} on the pairs of {pairs}", ("figure", "value"), found.rows())


def _draw(similarities: SamePairs, plot: Path) -> None:
    from mobilenets.web.roc import draw_roc

    same_S, others_O = similarities
    draw_roc(same_S, others_O, plot)


def _of_pairs(details: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures of verification as people read them, where there are any."""
    if "verification" not in details:
        return []
    from mobilenets.tasks.embedding.verification import Verification

    return Verification.from_dict(details["verification"]).rows()


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def _interval(ends: Sequence[float] | None) -> str:
    return "" if ends is None else " to ".join(_shown(end) for end in ends)


def _print_groups(by: str, figures: list[str], groups: Mapping[str, Mapping[str, Any]]) -> None:
    rows = [
        (group, *(_shown(values.get(figure)) for figure in figures))
        for group, values in groups.items()
    ]
    print_table(f"by {by}", (by, *figures), rows)
    for group, values in groups.items():
        if "problem" in values:
            note(f"{by} {group}: {values['problem']}")
