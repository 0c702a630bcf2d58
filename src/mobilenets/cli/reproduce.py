"""`mobilenets reproduce`: the paper's claims, tested by training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mobilenets.cli.output import DeviceOption, JsonFlag, note, print_json, print_table


def reproduce(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EXPERIMENT]...", help="table4, table5, width, resolution; default: all."
        ),
    ] = None,
    data: Annotated[str, typer.Option(help="CIFAR-10, as for `train`.")] = "cifar10",
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for results; what is there already is not run again."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Minutes: shows that it runs, and no more.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Width 1.0, s8, 60 epochs: for a GPU.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Trainings of each model (default 3).")
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Train the paper's comparisons on CIFAR-10 and say which of its claims hold."""
    from mobilenets.reproduce.experiments import FULL, QUICK, SMALL, find_experiments

    if quick and full:
        raise ValueError("--quick and --full are two scales: give one of them")
    scale = QUICK if quick else FULL if full else SMALL
    if seeds is not None:
        scale = replace(scale, seeds=seeds)
    wanted = find_experiments(names or [], scale)
    folder = output or Path("runs") / f"reproduce-{scale.name}"

    from mobilenets.reproduce.trials import Laboratory
    from mobilenets.training.device import find_device
    from mobilenets.training.interrupt import interrupts
    from mobilenets.training.memory import keep_freed_memory

    keep_freed_memory()
    with interrupts() as interrupt:
        laboratory = Laboratory(
            where=data, scale=scale, folder=folder, device=find_device(device), stop=interrupt
        )
        results = laboratory.test(wanted)
    if results is None:
        note("stopped; the same command goes on")
        raise typer.Exit(interrupt.exit_code)
    if as_json:
        print_json({"output": str(folder), "experiments": results})
        return
    for result in results:
        print_table(
            f"{result['title']} ({result['source']})",
            ("model", "mult-adds", "test top-1, %", "by seed", "paper, ImageNet"),
            [
                (
                    row["model"],
                    f"{row['mult_adds']:,}",
                    f"{row['mean']:.2f}"
                    + (f" ± {row['deviation']:.2f}" if row["deviation"] is not None else ""),
                    " ".join(f"{value:.2f}" for value in row["top1"]),
                    f"{row['paper']}: {row['paper_imagenet_top1']}",
                )
                for row in result["models"]
            ],
        )
        print_table(
            f"verdict: {result['verdict']}",
            ("claim", "gap, points", "spread", "verdict"),
            [
                (
                    claim["claim"],
                    f"{claim['gap']:+.2f}",
                    "one seed" if claim["spread"] is None else f"{claim['spread']:.2f}",
                    claim["verdict"],
                )
                for claim in result["claims"]
            ],
        )
        if result["fit"]:
            typer.echo(
                f"line through {', '.join(result['fit']['through'])}: "
                f"{result['fit']['points_per_doubling']:+.2f} points for each doubling of mult-adds, "
                f"residual {result['fit']['residual']:.2f}"
            )
    note(f"tables, figures and trials are in {folder}")
