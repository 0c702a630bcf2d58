"""Recipes for attributes: from trained weights, and from a teacher alone."""

from __future__ import annotations

from mobilenets.training.recipe import (
    AugmentationChoice,
    DistillationChoice,
    FineTuningChoice,
    OptimizerChoice,
    Recipe,
    ScheduleChoice,
)

ATTRIBUTES = Recipe(
    name="attributes",
    epochs=30,
    batch_size=32,
    optimizer=OptimizerChoice(name="adamw", lr=1e-3, weight_decay=0.02),
    schedule=ScheduleChoice(name="cosine", warmup=0.1),
    augmentation=AugmentationChoice(mirror=True, min_area=0.5, colour=0.5),
    fine_tuning=FineTuningChoice(probe=False, thaw=0.0, rate_decay=0.95, norm="batch"),
    dropout=0.0,
    ema_decay=0.998,
    clip_norm=5.0,
)
"""From labels, with or without trained weights (`--weights`): crops of at least half of the picture, colours, averaged weights;
batch norm takes the statistics of the new images."""

ATTRIBUTES_DISTIL = ATTRIBUTES.model_copy(
    update={"name": "attributes-distil", "distillation": DistillationChoice(weight=1.0)}
)
"""The same from a teacher's probabilities alone (`--teacher`), without a label: section 4.5 of the paper."""

RECIPES = {recipe.name: recipe for recipe in (ATTRIBUTES, ATTRIBUTES_DISTIL)}
