"""Recipes for geolocation."""

from __future__ import annotations

from mobilenets.training.recipe import (
    AugmentationChoice,
    FineTuningChoice,
    GeolocationChoice,
    OptimizerChoice,
    Recipe,
    ScheduleChoice,
)

GEOLOCATION = Recipe(
    name="geolocation",
    epochs=20,
    batch_size=64,
    optimizer=OptimizerChoice(name="adamw", lr=1e-3, weight_decay=0.05),
    schedule=ScheduleChoice(name="cosine", warmup=0.1),
    augmentation=AugmentationChoice(mirror=True, min_area=0.5, colour=0.5),
    fine_tuning=FineTuningChoice(probe=False, thaw=0.0, rate_decay=0.95, norm="batch"),
    geolocation=GeolocationChoice(),
    dropout=0.1,
    ema_decay=0.998,
    clip_norm=5.0,
)
"""Cells of three levels, with or without trained weights (`--weights`); batch norm takes the statistics of the new photos."""

RECIPES = {GEOLOCATION.name: GEOLOCATION}
