"""Recipes for detectors: from trained weights, and as TensorFlow trained SSD."""

from __future__ import annotations

from mobilenets.training.recipe import (
    AugmentationChoice,
    FineTuningChoice,
    OptimizerChoice,
    Recipe,
    ScheduleChoice,
)

SSD_FINETUNE = Recipe(
    name="ssd-finetune",
    epochs=60,
    batch_size=16,
    optimizer=OptimizerChoice(name="adamw", lr=1e-3, weight_decay=0.02),
    schedule=ScheduleChoice(name="cosine", warmup=0.1),
    augmentation=AugmentationChoice(mirror=True, colour=1.0, expand=2.0, crop=True),
    fine_tuning=FineTuningChoice(probe=False, thaw=0.0, rate_decay=0.9, norm="kept"),
    dropout=0.0,
    ema_decay=0.999,
    clip_norm=5.0,
)
"""From trained weights (`--weights`), a classifier's or a detector's, to one's own classes: a smaller rate for earlier
blocks, batch norm of the body as it is, SSD's crops and canvases, averaged weights."""

SSD_PAPER = Recipe(
    name="ssd-paper",
    epochs=41,
    batch_size=24,
    optimizer=OptimizerChoice(
        name="rmsprop", lr=0.004, momentum=0.9, beta2=0.9, epsilon=1.0, weight_decay=4e-5
    ),
    schedule=ScheduleChoice(name="exponential", warmup=0.0, factor=0.95, every=163.0),
    augmentation=AugmentationChoice(mirror=True, crop=True),
    dropout=0.0,
    batch_norm_momentum=0.0003,
)
"""As TensorFlow trained SSD300 on MobileNet for COCO (`ssd_mobilenet_v1_coco.config`): RMSprop, batches of 24, 200,000 steps, which
are 41 epochs of COCO; the rate would go down by 0.95 after 163 epochs, and never does; crops and mirroring."""

FRCNN_FINETUNE = SSD_FINETUNE.model_copy(
    update={
        "name": "frcnn-finetune",
        "epochs": 20,
        "batch_size": 4,
        "optimizer": OptimizerChoice(name="adamw", lr=3e-4, weight_decay=0.02),
        "augmentation": AugmentationChoice(mirror=True, colour=1.0),
        "ema_decay": 0.998,
    }
)
"""The same for Faster R-CNN, whose steps cost twenty times as much: small batches, whole images, fewer epochs."""

RECIPES = {recipe.name: recipe for recipe in (SSD_FINETUNE, FRCNN_FINETUNE, SSD_PAPER)}
