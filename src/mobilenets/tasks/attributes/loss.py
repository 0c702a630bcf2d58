"""What attributes cost: cross-entropy of each, averaged over those that are told.

Shapes: N images, L attributes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mobilenets.training.imitation import binary_divergence


def attribute_loss(logits_NL: Tensor, targets_NL: Tensor) -> Tensor:
    """Mean cross-entropy in nats over all that is told; NaN is not.

    >>> from torch import tensor
    >>> round(float(attribute_loss(tensor([[0.0, 5.0]]), tensor([[1.0, float("nan")]]))), 4)
    0.6931
    """
    told_NL = ~targets_NL.isnan()
    losses_NL = F.binary_cross_entropy_with_logits(
        logits_NL, targets_NL.nan_to_num(), reduction="none"
    )
    return (losses_NL * told_NL).sum() / told_NL.sum().clamp(min=1)


def attribute_divergence(logits_NL: Tensor, taught_NL: Tensor, temperature: float) -> Tensor:
    """How far probabilities are from a teacher's: cross-entropy with them less their own, a mean over images and attributes.

    >>> from torch import tensor
    >>> float(attribute_divergence(tensor([[1.0, -2.0]]), tensor([[1.0, -2.0]]), 1.0))
    0.0
    """
    return binary_divergence(logits_NL, taught_NL, temperature) / max(1, logits_NL.numel())
