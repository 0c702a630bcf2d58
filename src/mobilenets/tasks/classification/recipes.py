"""Recipes for classification, each with the command, the duration and the figure it reached."""

from __future__ import annotations

from mobilenets.training.recipe import (
    AugmentationChoice,
    OptimizerChoice,
    Recipe,
    ScheduleChoice,
)

DIGITS = Recipe(
    name="digits",
    epochs=20,
    batch_size=32,
    optimizer=OptimizerChoice(name="sgd", lr=0.05, momentum=0.9, weight_decay=5e-4),
    schedule=ScheduleChoice(name="cosine", warmup=0.1),
    augmentation=AugmentationChoice(mirror=False, shift=0.125),
    expected="0.5-16-s4-shallow: 98.1 % of the held-out fifth, mean of four seeds (96.7 to 99.2; seed 0: 99.2)",
)
"""Handwritten digits: `mobilenets train digits --model 0.5-16-s4-shallow`, 40 s on 2 cores."""

SMALL = Recipe(
    name="small",
    epochs=30,
    batch_size=64,
    optimizer=OptimizerChoice(name="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4),
    schedule=ScheduleChoice(name="linear", warmup=0.2),
    augmentation=AugmentationChoice(mirror=True, shift=0.125),
    label_smoothing=0.1,
)
"""Small images, from scratch: SGD with Nesterov momentum up and down in straight lines, images
shifted by up to an eighth and mirrored; batches of 64 keep the feature maps in the cache."""

PHOTOS = Recipe(
    name="photos",
    epochs=100,
    batch_size=32,
    optimizer=OptimizerChoice(name="adamw", lr=2e-3, weight_decay=0.05),
    schedule=ScheduleChoice(name="cosine", warmup=0.05),
    augmentation=AugmentationChoice(mirror=True, min_area=0.35),
    label_smoothing=0.1,
    clip_norm=5.0,
)
"""Photos, from scratch: AdamW with a cosine, random crops that keep at least 35 % of the picture
(the paper limits "the size of small crops")."""

RECIPES = {recipe.name: recipe for recipe in (DIGITS, SMALL, PHOTOS)}
