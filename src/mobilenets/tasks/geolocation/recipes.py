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
    expected="0.5-32-s16 on 20,000 satellite tiles, held out by place: 22.6 % within 750 km, 51.4 % within 2,500 km (seed 0)",
)
"""Cells of three levels, with or without trained weights (`--weights`); batch norm takes the statistics of the new photos.

`mobilenets train tiles.csv --task geolocation --model 0.5-32-s16`, without mirror images and with a rate of 0.003
(`benchmarks/geolocation.py`): 13 minutes on one core."""

RECIPES = {GEOLOCATION.name: GEOLOCATION}
