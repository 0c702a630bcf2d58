"""Losses by which a model learns another one's outputs.

Shapes: N images, K values each, of any shape.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft(logits_NK: Tensor, taught_NK: Tensor, temperature: float) -> Tensor:
    """Divergence of the probabilities from the teacher's, a mean over the images, times the temperature squared.

    Without that factor gradients would fade as the temperature rises (Hinton et al., arXiv 1503.02531, section 2).

    >>> from torch import tensor
    >>> round(float(soft(tensor([[0.0, 0.0]]), tensor([[0.0, 2.0]]), temperature=2.0)), 4)
    0.4438
    """
    return divergence(logits_NK, taught_NK, temperature) / max(1, len(logits_NK))


def divergence(logits_NK: Tensor, taught_NK: Tensor, temperature: float) -> Tensor:
    """The same, summed over all: of one probability for each of several classes."""
    ours_NK, theirs_NK = (F.log_softmax(one / temperature, -1) for one in (logits_NK, taught_NK))
    return (theirs_NK.exp() * (theirs_NK - ours_NK)).sum() * temperature**2


def binary_divergence(logits_NK: Tensor, taught_NK: Tensor, temperature: float) -> Tensor:
    """The same, summed over all: of values that are yes or no each.

    >>> from torch import tensor
    >>> float(binary_divergence(tensor([[1.0, -2.0]]), tensor([[1.0, -2.0]]), 1.0))
    0.0
    """
    share_NK = (taught_NK / temperature).sigmoid()
    ours, theirs = (
        F.binary_cross_entropy_with_logits(one / temperature, share_NK, reduction="sum")
        for one in (logits_NK, taught_NK)
    )
    return (ours - theirs) * temperature**2


def squared(outputs_NK: Tensor, taught_NK: Tensor) -> Tensor:
    """Squared difference, summed over the values, a mean over the images.

    >>> from torch import tensor
    >>> float(squared(tensor([[1.0, 2.0]]), tensor([[0.0, 0.0]])))
    5.0
    """
    return (outputs_NK - taught_NK).square().sum() / max(1, len(outputs_NK))
