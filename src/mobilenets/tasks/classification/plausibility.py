"""Labels that a quick model, trained without them, finds implausible.

A linear classifier is trained on all images but a fifth, says how likely the labels of that fifth
are, and so on in turns; the idea is confident learning's (Northcutt et al. 2021, arXiv 1911.00068).

Shapes: N images, F features, K classes, S side of a thumbnail.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mobilenets.architecture.layer_rows import layers_of
from mobilenets.architecture.network import MobileNet
from mobilenets.architecture.preprocessing import Preprocessing
from mobilenets.data.doctor import Item
from mobilenets.data.progress import progress
from mobilenets.data.transforms import fit, normalise

FOLDS = 5
FEWEST_IN_CLASS = 10
# The quick model must close this share of the gap between chance and always right; less where many
# of the labels that it is measured by are expected to be wrong.
TRUSTED = 0.7
TRUSTED_AMONG_NOISE = 0.25
GIVEN_AT_MOST = 0.02
OTHER_AT_LEAST = 0.8
# scikit-learn's C; wrong labels are learnt less by heart at a tenth of it.
PENALTY = 0.03
PENALTY_AMONG_NOISE = 0.003
# Three ways of cutting into fifths halve the false alarms; on many images one is steady enough.
REPEATS_UP_TO = 5_000
REPEATS = 3
PROBE = 5_000
# Images times features times classes: about half an hour on two cores.
MOST_WORK = 2e10
_CELLS = 8
_ANGLES = 9
_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_BATCH = 32


@dataclass(frozen=True)
class Doubt:
    """An image whose label is implausible: its row, the likelier class, and both probabilities."""

    row: int
    other: int
    given_probability: float
    other_probability: float


@dataclass(frozen=True)
class Verdict:
    """What the quick model says.

    Args:
        doubts: least plausible first; empty where the model is not to be trusted.
        accuracy: the mean over classes of its accuracy on images it was not trained on.
        trusted: whether that is far enough above chance.
        images: how many it was tried on.
    """

    doubts: tuple[Doubt, ...]
    accuracy: float
    trusted: bool
    images: int


def pixel_features(thumbnails_NSS3: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Edges by direction in 8x8 cells, and the colour of each cell: float32 (N, 768).

    Edge directions in cells are those of Dalal and Triggs (2005), each cell divided by the
    strength of its neighbourhood.

    >>> pixel_features(np.zeros((2, 32, 32, 3), dtype=np.uint8)).shape
    (2, 768)
    """
    blocks = [
        _describe(thumbnails_NSS3[start : start + 1024].astype(np.float32))
        for start in range(0, len(thumbnails_NSS3), 1024)
    ]
    return np.concatenate(blocks)


def feature_count(network: nn.Module | None) -> int:
    """Features of a network, or of the pixels without one.

    >>> feature_count(None)
    768
    """
    if isinstance(network, MobileNet):
        return layers_of(network.spec, None)[-1].out_channels
    return _CELLS * _CELLS * (_ANGLES + 3)


def network_features(
    items: Sequence[Item], network: nn.Module, preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """Pooled features of a network: float32 (N, F).

    Raises:
        ValueError: the network is none of this library's.
    """
    if not isinstance(network, MobileNet):
        raise ValueError("labels are checked with the features of a MobileNet: give another --run")
    features = []
    with progress("computing features", len(items)) as advance, torch.inference_mode():
        for start in range(0, len(items), _BATCH):
            batch = items[start : start + _BATCH]
            pixels_NCHW = torch.stack(
                [fit(item.read(preprocessing.channel_count), preprocessing) for item in batch]
            )
            inputs_NCHW = normalise(pixels_NCHW, preprocessing)
            inputs_NCHW = inputs_NCHW.contiguous(memory_format=torch.channels_last)
            features.append(network.pooled_features(inputs_NCHW).numpy())
            advance(len(batch))
    return np.concatenate(features)


def judge(
    features_NF: NDArray[np.float32],
    targets_N: NDArray[np.int64],
    *,
    noisy: bool = False,
    taught_N: NDArray[np.bool_] | None = None,
) -> Verdict:
    """Ask the quick model about every label; each class needs at least five images to learn from.

    A label is in doubt where the model gives it at most 2 %, and another class at least 80 % and
    no less than it gives that class's own images on average (or 90 %).

    Args:
        noisy: many labels are expected to be wrong. One is in doubt where the likeliest of the
            classes that get at least what the model gives their own images on average is
            another (confident learning's rule).
        taught_N: which images the quick model may learn from, by default all; the others are asked
            about too, and what it is measured by is those that it learns from.

    >>> random = np.random.default_rng(0)
    >>> targets = np.repeat([0, 1], 300)
    >>> features = random.normal(size=(600, 32)).astype(np.float32) + 4 * targets[:, None]
    >>> targets[3] = 1
    >>> verdict = judge(features, targets)
    >>> [(doubt.row, doubt.other) for doubt in verdict.doubts]
    [(3, 0)]
    """
    penalty = PENALTY_AMONG_NOISE if noisy else PENALTY
    needed = _needed(int(targets_N.max()) + 1, TRUSTED_AMONG_NOISE if noisy else TRUSTED)
    rows_N = np.arange(len(targets_N))
    known_N = rows_N if taught_N is None else np.flatnonzero(taught_N)
    if len(known_N) > 2 * PROBE:
        # Far too weak a model is told from a part of the images, in a tenth of the time.
        few_N = known_N[_stratified(targets_N[known_N], PROBE)]
        all_N = np.arange(len(few_N))
        scores_NK = _out_of_fold(features_NF[few_N], targets_N[few_N], all_N, 1, penalty)
        accuracy = _accuracy(scores_NK, targets_N[few_N])
        if accuracy < needed - 0.1:
            return Verdict((), accuracy, False, len(few_N))
    repeats = REPEATS if len(known_N) <= REPEATS_UP_TO else 1
    scores_NK = _out_of_fold(features_NF, targets_N, known_N, repeats, penalty)
    accuracy = _accuracy(scores_NK[known_N], targets_N[known_N])
    if accuracy < needed:
        return Verdict((), accuracy, False, len(known_N))
    given_N = scores_NK[rows_N, targets_N]
    usual_K = np.array(
        [
            given_N[known_N][targets_N[known_N] == target].mean()
            for target in range(scores_NK.shape[1])
        ]
    )
    if noisy:
        likely_NK = np.where(scores_NK >= usual_K, scores_NK, 0)
        others_N = likely_NK.argmax(axis=1)
        doubtful_N = likely_NK.any(axis=1) & (others_N != targets_N)
    else:
        others_N = scores_NK.argmax(axis=1)
        least_N = np.clip(usual_K, OTHER_AT_LEAST, 0.9)[others_N]
        doubtful_N = (given_N <= GIVEN_AT_MOST) & (scores_NK[rows_N, others_N] >= least_N)
    doubts = [
        Doubt(
            int(row), int(others_N[row]), float(given_N[row]), float(scores_NK[row, others_N[row]])
        )
        for row in np.flatnonzero(doubtful_N)
    ]
    doubts.sort(key=lambda doubt: doubt.given_probability)
    return Verdict(tuple(doubts), accuracy, True, len(known_N))


def _describe(levels_NSS3: NDArray[np.float32]) -> NDArray[np.float32]:
    colour_NSS3 = levels_NSS3 / np.float32(255)
    count, side = colour_NSS3.shape[:2]
    grey_NSS = colour_NSS3 @ _GREY
    down_NSS, across_NSS = np.zeros_like(grey_NSS), np.zeros_like(grey_NSS)
    down_NSS[:, 1:-1] = grey_NSS[:, 2:] - grey_NSS[:, :-2]
    across_NSS[:, :, 1:-1] = grey_NSS[:, :, 2:] - grey_NSS[:, :, :-2]
    strength_NSS = np.hypot(down_NSS, across_NSS)
    angle_NSS = np.mod(np.arctan2(down_NSS, across_NSS), np.pi) * (_ANGLES / np.pi)
    lower_NSS = np.floor(angle_NSS)
    share_NSS = angle_NSS - lower_NSS
    edges = np.empty((count, _ANGLES, _CELLS, _CELLS), dtype=np.float32)
    in_cells = (count, _CELLS, side // _CELLS, _CELLS, side // _CELLS)
    for angle in range(_ANGLES):
        # An edge between two directions counts for both.
        here = np.where(lower_NSS % _ANGLES == angle, 1 - share_NSS, 0)
        here += np.where((lower_NSS + 1) % _ANGLES == angle, share_NSS, 0)
        edges[:, angle] = (strength_NSS * here).reshape(in_cells).sum(axis=(2, 4))
    energy = np.pad((edges**2).sum(axis=1), ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = sum(
        energy[:, top : top + _CELLS, left : left + _CELLS] for top in range(3) for left in range(3)
    )
    edges /= np.sqrt(around / 9 + 1e-3)[:, None]
    colours = colour_NSS3.reshape(*in_cells, 3).mean(axis=(2, 4))
    described: NDArray[np.float32] = np.concatenate(
        [edges.reshape(count, -1), colours.reshape(count, -1)], axis=1
    ).astype(np.float32)
    return described


def _out_of_fold(
    features_NF: NDArray[np.float32],
    targets_N: NDArray[np.int64],
    known_N: NDArray[np.int64],
    repeats: int,
    penalty: float,
) -> NDArray[np.float64]:
    """Probabilities (N, K) from models that did not see the image, and learn from known ones alone."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    scores_NK = np.zeros((len(targets_N), int(targets_N.max()) + 1))
    others_N = np.setdiff1d(np.arange(len(targets_N)), known_N)
    with (
        warnings.catch_warnings(),
        # On problems this small, threads wait for each other: two of them took eight times as long.
        threadpool_limits(1, user_api="blas"),
        progress("checking labels", repeats * FOLDS, "folds") as advance,
    ):
        # A model stopped early is as good for this.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for repeat in range(repeats):
            folds = StratifiedKFold(FOLDS, shuffle=True, random_state=repeat)
            for taught, held_out in folds.split(known_N, targets_N[known_N]):
                taught_N, asked_N = known_N[taught], known_N[held_out]
                scaler = StandardScaler().fit(features_NF[taught_N])
                model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=200)
                model.fit(scaler.transform(features_NF[taught_N]), targets_N[taught_N])
                for rows_N, share in ((asked_N, 1.0), (others_N, 1 / FOLDS)):
                    if len(rows_N):
                        inputs_NF = scaler.transform(features_NF[rows_N])
                        scores_NK[rows_N] += share * model.predict_proba(inputs_NF)
                advance(1)
    return scores_NK / repeats


def _accuracy(scores_NK: NDArray[np.float64], targets_N: NDArray[np.int64]) -> float:
    """The mean over classes."""
    right_N = scores_NK.argmax(axis=1) == targets_N
    classes = range(scores_NK.shape[1])
    return float(np.mean([right_N[targets_N == target].mean() for target in classes]))


def _needed(classes: int, trusted: float) -> float:
    chance = 1 / classes
    return chance + trusted * (1 - chance)


def _stratified(targets_N: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """About `count` rows, every class with its share and at least what the folds need."""
    random = np.random.default_rng(0)
    kept = []
    for target in np.unique(targets_N):
        rows = random.permutation(np.flatnonzero(targets_N == target))
        kept.append(rows[: max(FEWEST_IN_CLASS, round(count * len(rows) / len(targets_N)))])
    return np.sort(np.concatenate(kept))
