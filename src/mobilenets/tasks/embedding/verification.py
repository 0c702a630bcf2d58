"""Whether two images are of the same: how well a similarity tells it.

Shapes: P pairs, S pairs of the same, O pairs of others, N images, D values of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mobilenets.data.splits import UNKNOWN

FAR = (0.1, 0.01, 0.001, 0.0001)
# So many wrong pairs must be let in for the share of them to mean something.
_FEWEST = 10
FOLDS = 10
_ROWS = 1024


# Similarities of pairs of the same (S,), and of pairs of others (O,).
SamePairs = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Verification:
    """How well similarities tell pairs of the same from pairs of others.

    Args:
        same, others: pairs of each kind.
        auc: area under the ROC curve: the share of all couples of a right and a wrong pair in which the right one is more alike.
        equal_error_rate: where as many of the same are refused as others are let in.
        threshold: the similarity where that is.
        tar_at_far: the share of the same that is let in where a share of the others is; None where there are too few others to
            measure it, ten times as many as one in which one is let in.
        accuracy: the mean over folds, each judged by the threshold that is best for the others; None where pairs have no folds.
        accuracy_spread: its standard deviation.
    """

    same: int
    others: int
    auc: float
    equal_error_rate: float
    threshold: float
    tar_at_far: Mapping[float, float | None]
    accuracy: float | None = None
    accuracy_spread: float | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain values; shares at which others are let in as text, such as 0.001."""
        return vars(self) | {
            "tar_at_far": {f"{far:g}": tar for far, tar in self.tar_at_far.items()}
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From `to_dict`."""
        tar_at_far = {float(far): tar for far, tar in values["tar_at_far"].items()}
        return cls(**{**values, "tar_at_far": tar_at_far})

    def rows(self) -> list[tuple[str, str]]:
        """A line for each figure, as people read it."""
        rows = [
            ("pairs", f"{self.same:,} of the same, {self.others:,} of others"),
            ("auc", f"{self.auc:.4f}"),
        ]
        if self.accuracy is not None and self.accuracy_spread is not None:
            rows.append(("accuracy", f"{self.accuracy:.4f} ± {self.accuracy_spread:.4f}"))
        rows.append(("equal_error_rate", f"{self.equal_error_rate:.4f}"))
        rows.append(("its threshold", f"{self.threshold:.4f}"))
        for far, tar in self.tar_at_far.items():
            told = (
                f"not measurable: {self.others:,} pairs of others" if tar is None else f"{tar:.4f}"
            )
            rows.append((f"TAR at FAR {far:g}", told))
        return rows


def verify(same_S: NDArray[np.floating], others_O: NDArray[np.floating]) -> Verification:
    """Judge similarities of pairs of the same, and of pairs of others.

    Raises:
        ValueError: there are none of one kind.

    >>> found = verify(np.array([0.9, 0.4]), np.array([0.5, 0.1]))
    >>> found.auc, found.tar_at_far[0.1]
    (0.75, None)
    """
    if not (len(same_S) and len(others_O)):
        raise ValueError(
            "no two images are of the same: there is nothing to verify"
            if not len(same_S)
            else "all images are of the same: there is nothing to tell apart"
        )
    same_S, others_O = np.sort(same_S), np.sort(others_O)
    below = np.searchsorted(others_O, same_S, "left").astype(np.float64)
    upto = np.searchsorted(others_O, same_S, "right")
    auc = float(((below + upto) / 2).mean() / len(others_O))
    steps = np.unique(np.concatenate([same_S, others_O]))
    refused = np.searchsorted(same_S, steps, "left") / len(same_S)
    let_in = 1 - np.searchsorted(others_O, steps, "left") / len(others_O)
    place = int(np.argmin(np.abs(refused - let_in)))
    return Verification(
        same=len(same_S),
        others=len(others_O),
        auc=auc,
        equal_error_rate=float((refused[place] + let_in[place]) / 2),
        threshold=float(steps[place]),
        tar_at_far={far: _tar(same_S, others_O, far) for far in FAR},
    )


def _tar(same_S: NDArray[np.floating], others_O: NDArray[np.floating], far: float) -> float | None:
    """Both sorted. Only what is above the threshold is let in, so that no more than the share is."""
    allowed = math.floor(far * len(others_O) + 1e-9)
    if allowed < _FEWEST:
        return None
    threshold = others_O[len(others_O) - allowed - 1] if allowed < len(others_O) else -np.inf
    return float((same_S > threshold).mean())


def roc(
    same_S: NDArray[np.floating], others_O: NDArray[np.floating], points: int = 200
) -> list[tuple[float, float]]:
    """Shares of the others and of the same that are let in, at thresholds from high to low, for a curve."""
    others = np.sort(others_O)[::-1]
    places = np.unique(np.geomspace(1, len(others), points).astype(int)) - 1
    same = np.sort(same_S)
    return [
        (
            (place + 1) / len(others),
            float(1 - np.searchsorted(same, others[place], "left") / len(same)),
        )
        for place in places.tolist()
    ]


def accuracy_by_folds(
    similarity_P: NDArray[np.floating], same_P: NDArray[np.bool_], fold_P: NDArray[np.int64]
) -> tuple[float, float]:
    """Mean and standard deviation over folds, each judged by the threshold that fits all others best.

    >>> similarity = np.array([0.9, 0.2, 0.8, 0.1])
    >>> same = np.array([True, False, True, False])
    >>> accuracy_by_folds(similarity, same, np.array([0, 0, 1, 1]))
    (1.0, 0.0)
    """
    right = []
    for fold in np.unique(fold_P):
        own_P = fold_P == fold
        threshold = _best_threshold(similarity_P[~own_P], same_P[~own_P])
        right.append(float(((similarity_P[own_P] >= threshold) == same_P[own_P]).mean()))
    return float(np.mean(right)), float(np.std(right))


def _best_threshold(similarity_P: NDArray[np.floating], same_P: NDArray[np.bool_]) -> float:
    """Half way between two pairs, where most are told right."""
    order_P = np.argsort(similarity_P)
    values_P, same_P = similarity_P[order_P], same_P[order_P]
    # So many of the least alike are told apart.
    right = np.concatenate([[0], np.cumsum(~same_P)]) + np.concatenate(
        [np.cumsum(same_P[::-1])[::-1], [0]]
    )
    apart = np.concatenate([[True], values_P[1:] > values_P[:-1], [True]])
    best = int(np.argmax(np.where(apart, right, -1)))
    if best == 0:
        return -math.inf
    if best == len(values_P):
        return math.inf
    return float((values_P[best - 1] + values_P[best]) / 2)


def similarities(embeddings_ND: NDArray[np.float32], targets_N: NDArray[np.int64]) -> SamePairs:
    """Of all pairs of images whose identity is known: those of the same (S,), and those of others (O,).

    Args:
        embeddings_ND: of length 1.
    """
    known_N = targets_N != UNKNOWN
    embeddings_ND, targets_N = embeddings_ND[known_N], targets_N[known_N]
    same = [np.zeros(0, dtype=np.float32)]
    others = [np.zeros(0, dtype=np.float32)]
    for start in range(0, len(targets_N), _ROWS):
        rows = slice(start, start + _ROWS)
        alike_RN = embeddings_ND[rows] @ embeddings_ND.T
        later_RN = np.arange(len(targets_N)) > np.arange(start, start + len(alike_RN))[:, None]
        equal_RN = targets_N[rows, None] == targets_N
        same.append(alike_RN[later_RN & equal_RN])
        others.append(alike_RN[later_RN & ~equal_RN])
    return np.concatenate(same), np.concatenate(others)


def rank_one(
    embeddings_ND: NDArray[np.float32], targets_N: NDArray[np.int64]
) -> tuple[float, float]:
    """The share of images whose nearest other image is of the same identity, and the mean of how much nearer, in squared distance,
    the nearest of the same is than the nearest of others; of those that have another of the same.

    >>> embeddings = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    >>> share, _ = rank_one(embeddings, np.array([0, 0, 1]))
    >>> share
    1.0
    """
    right, ahead = [], []
    for start in range(0, len(targets_N), _ROWS):
        rows = slice(start, start + _ROWS)
        alike_RN = embeddings_ND[rows] @ embeddings_ND.T
        alike_RN[np.arange(len(alike_RN)), np.arange(start, start + len(alike_RN))] = -np.inf
        equal_RN = targets_N[rows, None] == targets_N
        same_R = np.where(equal_RN, alike_RN, -np.inf).max(1)
        others_R = np.where(equal_RN, -np.inf, alike_RN).max(1)
        counts_R = np.isfinite(same_R) & np.isfinite(others_R) & (targets_N[rows] != UNKNOWN)
        right.append((same_R > others_R)[counts_R])
        # Of vectors of length 1, squared distance is 2 - 2 cosine.
        ahead.append(2 * (same_R - others_R)[counts_R])
    return float(np.concatenate(right).mean()), float(np.concatenate(ahead).mean())
