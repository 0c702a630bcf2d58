"""Where a classifier goes wrong: confusion matrix and worst mistakes.

Shapes: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mobilenets.data.loaders import Loader


@dataclass(frozen=True)
class Mistake:
    """A wrong guess: the input, the true and the guessed class, and how sure the model was."""

    input_CHW: Tensor
    target: int
    guess: int
    score: float


@dataclass(frozen=True)
class Analysis:
    """`confusion_KK[target, guess]` counts images; `mistakes` has the surest wrong guesses first."""

    confusion_KK: Tensor
    mistakes: tuple[Mistake, ...]

    @property
    def images(self) -> int:
        """Images counted."""
        return int(self.confusion_KK.sum())

    @property
    def top1(self) -> float:
        """Share of images on the diagonal."""
        return float(self.confusion_KK.trace() / self.confusion_KK.sum())


def analyse(model: nn.Module, loader: Loader, classes: int, *, worst: int = 12) -> Analysis:
    """Run a classifier over a loader on the CPU and gather its errors.

    Args:
        worst: how many mistakes to keep.
    """
    confusion_KK = torch.zeros(classes, classes, dtype=torch.int64)
    mistakes: list[Mistake] = []
    model.eval()
    with torch.inference_mode():
        for batch in loader.batches():
            scores_N, guesses_N = model(batch.images_NCHW).softmax(1).max(1)
            places = (batch.targets_N, guesses_N)
            confusion_KK.index_put_(places, torch.ones(len(batch), dtype=torch.int64), True)
            wrong = (guesses_N != batch.targets_N).nonzero().flatten().tolist()
            mistakes += [
                Mistake(
                    input_CHW=batch.images_NCHW[row].clone(),
                    target=int(batch.targets_N[row]),
                    guess=int(guesses_N[row]),
                    score=float(scores_N[row]),
                )
                for row in wrong
            ]
    mistakes.sort(key=lambda mistake: -mistake.score)
    return Analysis(confusion_KK, tuple(mistakes[:worst]))
