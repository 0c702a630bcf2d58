"""`mobilenets demo`: the main job from end to end, on handwritten digits, without a network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from mobilenets.cli.output import JsonFlag, note, print_json

DATA = "digits"
MODEL = "0.5-16-s4-shallow"


def demo(
    output: Annotated[Path, typer.Option(help="The run folder to write.")] = Path("runs/demo"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run that is there.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train on digits, evaluate, predict, export, time, and write report.html."""
    started = time.monotonic()

    import torch
    from PIL import Image

    from mobilenets import tasks
    from mobilenets.architecture import MobileNetSpec
    from mobilenets.data.sources import open_source
    from mobilenets.deploy.bundle import export
    from mobilenets.deploy.evidence import find_evidence
    from mobilenets.deploy.target import TARGETS
    from mobilenets.runtimes.onnx import OnnxModel
    from mobilenets.runtimes.timing import time_calls
    from mobilenets.tasks.classification.analysis import analyse
    from mobilenets.training.device import find_device
    from mobilenets.training.evaluation import evaluate
    from mobilenets.training.loop import train
    from mobilenets.training.memory import keep_freed_memory
    from mobilenets.training.run import Run, check_free
    from mobilenets.web.report import ReportData, write_report

    keep_freed_memory()
    check_free(output, overwrite=overwrite)
    spec, device = MobileNetSpec.parse(MODEL), find_device("cpu")
    task_kind = tasks.find("classification")
    task = task_kind.from_data(DATA, spec)
    recipe = task_kind.default_recipe(spec, DATA)
    data = task.build_data(recipe, on_bad_image="stop")
    note(f"1/5 training {spec} on {data.train.images:,} handwritten digits, {recipe.epochs} epochs")
    run = Run.create(output, task, spec, recipe, data.record, overwrite=overwrite)
    train_started = time.monotonic()
    train(run, data, recipe, device, report=note)
    seconds = time.monotonic() - train_started

    split, held_out, _ = run.task.open_for_evaluation(
        DATA, None, run.config["data"], on_bad_image="stop"
    )
    figures = evaluate(run.task, run.model, held_out, device)
    note(
        f"2/5 top-1 {100 * figures['top1']:.2f} % on {figures['images']} digits "
        "that training never saw"
    )

    digit = open_source(DATA).splits["test"].images.read(0, 3)
    picture = output / "digit.png"
    Image.fromarray(digit.permute(1, 2, 0).numpy()).save(picture)
    note(f"3/5 {picture} is a {run.predict(picture)}")

    evidence = find_evidence(run)
    parity = export(run, TARGETS["onnx"], output / "onnx", evidence).parity
    assert parity is not None
    note(f"4/5 exported to {output / 'onnx'}: {parity}")

    one, exported = evidence.images_NCHW[:1], OnnxModel(output / "onnx" / "model.onnx")
    timings = time_calls(
        {
            "PyTorch": lambda: run.outputs(one),
            exported.name: lambda: exported.run(one.numpy()),
        }
    )
    page = output / "report.html"
    write_report(
        run,
        ReportData(
            split=split,
            figures=figures,
            analysis=analyse(run.model, held_out, len(run.labels)),
            exported=output / "onnx" / "model.onnx",
            parity=parity,
            timings=timings,
            threads=torch.get_num_threads(),
            seconds=seconds,
        ),
        page,
    )
    note("5/5 " + ", ".join(f"{name} {timing}" for name, timing in timings.items()))
    total = time.monotonic() - started
    if as_json:
        print_json(
            {
                "run": str(output),
                "report": str(page),
                **figures,
                "seconds": round(total, 1),
                "parity": parity.to_dict(),
                "median_ms": {name: timing.median_ms for name, timing in timings.items()},
            }
        )
        return
    typer.echo(f"done in {total:.0f} s; open {page}")
