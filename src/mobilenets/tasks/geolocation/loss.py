"""What a guess at cells costs.

Shapes: N photos, L levels, K cells of a level, J cells of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilenets.data.splits import UNKNOWN
from mobilenets.tasks.geolocation.earth import EARTH_RADIUS_KM


def cells_loss(
    logits_NJ: Tensor,
    cells_NL: Tensor,
    parts: Sequence[slice],
    neighbours: Sequence[Tensor] | None = None,
    km: float = 0.0,
) -> Tensor:
    """Cross-entropy in nats, a mean over all cells that photos are in, of whatever level; 0 where they are in none.

    Args:
        cells_NL: the cell of each level that a photo is in; `UNKNOWN` where it is in none.
        parts: of the outputs those of each level.
        neighbours: with `km`, of each level the cells' mean places as unit vectors (K, 3).
        km: how far a cell is from the photo's own for its share of the label to be 1/e of the own one's.

    >>> from torch import tensor
    >>> logits = tensor([[0.0, 0.0, 9.0, 9.0, 9.0]])
    >>> round(float(cells_loss(logits, tensor([[1, 0]]), [slice(0, 2), slice(2, 5)])), 4)
    0.8959
    """
    losses = []
    for level, part in enumerate(parts):
        cells_N = cells_NL[:, level]
        logits_NK = logits_NJ[:, part]
        if neighbours is None or not km:
            losses_N = F.cross_entropy(logits_NK, cells_N, ignore_index=UNKNOWN, reduction="none")
        else:
            shares_NK = neighbour_shares(neighbours[level], cells_N.clamp(min=0), km)
            losses_N = F.cross_entropy(logits_NK, shares_NK, reduction="none")
            losses_N = losses_N * (cells_N != UNKNOWN)
        losses.append(losses_N.sum())
    return torch.stack(losses).sum() / (cells_NL != UNKNOWN).sum().clamp(min=1)


def neighbour_shares(vectors_K3: Tensor, cells_N: Tensor, km: float) -> Tensor:
    """Labels (N, K) that fall with the great-circle distance from each photo's cell, and sum to 1.

    >>> equator = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> neighbour_shares(equator, torch.tensor([0]), km=10_007.5).round(decimals=3)
    tensor([[0.7310, 0.2690]])
    """
    # By a product of matrices, near cells would be kilometres off.
    chords_NK = torch.cdist(
        vectors_K3[cells_N], vectors_K3, compute_mode="donot_use_mm_for_euclid_dist"
    )
    distances_NK = 2 * EARTH_RADIUS_KM * torch.asin((chords_NK / 2).clamp(max=1))
    return torch.softmax(-distances_NK / km, dim=1)
