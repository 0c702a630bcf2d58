"""The model card, `README.md` of a run, in the layout that model hubs read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mobilenets.architecture.detector import model_layers
from mobilenets.cost.count import count
from mobilenets.cost.quantities import format_quantity
from mobilenets.data.files import write_aside
from mobilenets.training.recipe import Recipe
from mobilenets.training.run import Run
from mobilenets.weights.registry import HUB


def write_model_card(run: Run, recipe: Recipe | None) -> None:
    """Write the card from what the run holds; of weights that were trained elsewhere, without a recipe."""
    counted = count(model_layers(run.spec, run.task.outputs))
    preprocessing = run.preprocessing
    labels = ": " + ", ".join(run.labels[:20]) if run.labels else ""
    labels += ", …" if len(run.labels) > 20 else ""
    origin = run.config.get("origin", {})
    head = licence_line(run.config.get("licence") or origin.get("licence", ""))
    start = str(run.config.get("start", ""))
    if start.startswith(HUB):
        head += f"base_model: {'/'.join(start.removeprefix(HUB).split('/')[:2])}\n"
    card = f"""---
library_name: mobilenets
pipeline_tag: {run.task.hub_task}
{head}\
tags: [mobilenet, {run.task.name}]
---

# MobileNet {run.spec}, {run.task.name}

{run.task.kinds}{labels}

| cost | |
|---|---|
| mult-adds | {counted.mult_adds:,} |
| parameters | {counted.parameters:,} |
| bytes at fp32, int8 | {format_quantity(counted.bytes_fp32, "B")}, {format_quantity(counted.bytes_int8, "B")} |

Input: {preprocessing.height}x{preprocessing.width} pixels, {preprocessing.channels}, \
resized by `{preprocessing.resize}`, mean {list(preprocessing.mean)}, std {list(preprocessing.std)}.

{_source(origin) if recipe is None else _validation(run, recipe)}
## Use

```python
from mobilenets import Run

run = Run.load("{run.folder.name}")
print(run.predict("photo.jpg"))
```
"""
    write_aside(run.folder / "README.md", card.encode())


def licence_line(licence: str) -> str:
    """The line of a card's head: the Hub knows licences by names in small letters; none without one.

    >>> licence_line("other (its model card names none)").strip()
    'license: other'
    """
    return f"license: {licence.split()[0].lower()}\n" if licence.strip() else ""


def _validation(run: Run, recipe: Recipe) -> str:
    metrics = run.config["metrics"]
    figures = "\n".join(
        f"| {name} | {value:.4f} |" for name, value in metrics.items() if isinstance(value, float)
    )
    chosen = (
        f"The best of {recipe.epochs} epochs was chosen on these images; use `mobilenets evaluate` on others\n"
        "for a figure to quote."
        if recipe.epochs
        else "The classifier was fitted without these images, and nothing was chosen on them."
    )
    start = f" It started from `{run.config['start']}`." if "start" in run.config else ""
    return f"""## Validation, epoch {metrics["epoch"]}, {metrics["images"]} images of `{run.config["data"]["where"]}`

| figure | value |
|---|---|
{figures}

{chosen} Recipe `{recipe.name}`, seed {recipe.seed} (`recipe.yaml`).{start}
"""


def _source(origin: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in origin.items())
    return f"""## Trained elsewhere

| | |
|---|---|
{rows}

Figures are as reported there, and not measured here.
"""
