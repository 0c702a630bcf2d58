"""`mobilenets benchmark`: how fast models are on this machine."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from mobilenets.cli.output import JsonFlag, note, print_json, print_table
from mobilenets.cost import format_quantity


def benchmark(
    models: Annotated[
        list[str],
        typer.Argument(help="Names such as 0.5-160, run folders, files such as model.onnx."),
    ],
    runtime: Annotated[
        list[str] | None,
        typer.Option(help="For names and runs: torch, onnxruntime (default), litert, openvino, …"),
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Images a call; 1.")] = None,
    threads: Annotated[list[int] | None, typer.Option(min=1, help="Cores a call; all.")] = None,
    seconds: Annotated[float, typer.Option(min=0, help="How long to time, loading aside.")] = 10.0,
    against: Annotated[
        list[str] | None, typer.Option(help="Peers too: timm, torchvision, keras.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw latency against accuracy, such as latency.png.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Time models in turns: median and spread of a call, loading, memory, size."""
    import os

    from mobilenets.deploy.benchmark import benchmark as measure
    from mobilenets.deploy.peers import PEERS
    from mobilenets.deploy.subjects import ONNX, Subject, find_subjects
    from mobilenets.training.memory import keep_freed_memory
    from mobilenets.web.latency import check_latency_picture, draw_latency

    for peer in against or []:
        if peer not in PEERS:
            raise ValueError(f"--against is {', '.join(PEERS)}, not {peer!r}")
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as aside:
        subjects = find_subjects(models, runtime or [ONNX], Path(aside))
        subjects += [
            Subject(name=PEERS[peer].model, runtime=peer, reference="") for peer in against or []
        ]
        if plot is not None:
            check_latency_picture(plot, known=any(s.top1 is not None for s in subjects))
        rows = measure(subjects, batch or [1], threads or [os.cpu_count() or 1], seconds)
    if plot is not None:
        draw_latency(rows, plot)
    if as_json:
        print_json([row.to_dict() for row in rows])
        return
    print_table(
        "one call, in turns; the middle half of all calls lies between the two",
        ("model", "runtime", "batch", "threads", "median ms", "between", "images/s", "load ms",
         "peak MB", "file", "mJ/image", "top-1 %"),
        [
            (
                row.name,
                row.runtime,
                row.batch,
                row.threads,
                f"{row.median_ms:.2f}",
                f"{row.lower_ms:.2f} to {row.upper_ms:.2f}",
                f"{row.images_per_second:,.0f}",
                "" if row.load_ms is None else f"{row.load_ms:.0f}",
                "" if row.peak_mb is None else f"{row.peak_mb:.0f}",
                "" if row.bytes is None else format_quantity(row.bytes, "B"),
                "" if row.millijoules_per_image is None else f"{row.millijoules_per_image:.1f}",
                "" if row.top1 is None else f"{row.top1:.1f}",
            )
            for row in rows
        ],
        left=2,
    )  # fmt: skip
    if plot is not None:
        note(f"drawn: {plot}")
