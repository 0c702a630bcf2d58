"""Recipes for embeddings: from identities, and from a teacher alone."""

from __future__ import annotations

from mobilenets.training.recipe import (
    AugmentationChoice,
    DistillationChoice,
    EmbeddingChoice,
    FineTuningChoice,
    OptimizerChoice,
    Recipe,
    ScheduleChoice,
)

TRIPLET = Recipe(
    name="triplet",
    epochs=30,
    batch_size=64,
    optimizer=OptimizerChoice(name="adamw", lr=1e-3, weight_decay=0.02),
    schedule=ScheduleChoice(name="cosine", warmup=0.1),
    augmentation=AugmentationChoice(mirror=True, min_area=0.7, colour=0.3),
    fine_tuning=FineTuningChoice(probe=False, thaw=0.0, rate_decay=0.95, norm="batch"),
    embedding=EmbeddingChoice(loss="triplet"),
    dropout=0.0,
    ema_decay=0.99,
    clip_norm=5.0,
)
"""From identities: batches of four images each of sixteen, semi-hard triplets (Schroff et al., arXiv 1503.03832)."""

ARCFACE = TRIPLET.model_copy(
    update={"name": "arcface", "embedding": EmbeddingChoice(loss="arcface", scale=32.0)}
)
"""From identities: a direction for each, and a margin of 28.6 degrees (Deng et al., arXiv 1801.07698)."""

EMBEDDING_DISTIL = TRIPLET.model_copy(
    update={
        "name": "embedding-distil",
        "distillation": DistillationChoice(weight=1.0, sees="whole"),
        "ema_decay": 0.998,
    }
)
"""From a teacher's embeddings alone (`--teacher`), without an identity: section 4.7 of the paper, which minimises squared differences.
The teacher sees each image once, whole."""

RECIPES = {recipe.name: recipe for recipe in (TRIPLET, ARCFACE, EMBEDDING_DISTIL)}
