"""A linear probe: the classifier fitted to the features that a trained body gives.

Shapes: N images, C features, K classes.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mobilenets.architecture.network import MobileNet
from mobilenets.data.loaders import Loader
from mobilenets.data.progress import progress
from mobilenets.data.splits import UNKNOWN

_MOST_IMAGES = 20_000
_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
_PARTS = 5
# Beyond so many images one part tells a strength as well as all of them.
_ONE_PART_IS_ENOUGH = 2_000
_ITERATIONS = 200
# How much less likely than the least likely other one a class is that has no images.
_NEVER = 5.0


def fit_classifier(
    network: MobileNet, train: Loader, device: torch.device, *, mirror: bool
) -> dict[str, float]:
    """Fit a network's classifier to the features of training images, its body left as it is.

    Multinomial logistic regression on standardised features, of the strength whose cross-validated loss
    is least (Kumar et al. 2022, arXiv 2202.10054, on why the classifier comes first). Images are taken as
    evaluation sees them, since random crops teach it less (docs/log.md), up to about 20,000.

    Args:
        mirror: fit to their mirror images too.

    Returns `strength`, scikit-learn's C; `rows` that were fitted; the cross-validated `loss`.
    """
    x_NC, y_N = _features(network, train.still(), device, mirror=mirror)
    x_NC, y_N = x_NC[y_N != UNKNOWN], y_N[y_N != UNKNOWN]
    mean_C, std_C = x_NC.mean(0), x_NC.std(0).clip(1e-6)
    x_NC = (x_NC - mean_C) / std_C
    assert isinstance(network.classifier, nn.Linear)
    outputs = network.classifier.out_features
    images_N = np.arange(len(y_N)) % (len(y_N) // (2 if mirror else 1))
    losses: dict[float, float] = {}
    with progress("fitting the classifier", len(_STRENGTHS) + 1, "fits") as advance:
        for strength in _STRENGTHS:
            losses[strength] = _loss(x_NC, y_N, images_N, strength, outputs)
            advance(1)
        strength = min(losses, key=lambda strength: losses[strength])
        weight_KC, bias_K = _regression(x_NC, y_N, strength, outputs)
        advance(1)
    weight_KC = weight_KC / std_C
    bias_K = bias_K - weight_KC @ mean_C
    weight, bias = torch.from_numpy(weight_KC).float(), torch.from_numpy(bias_K).float()
    network.classifier.load_state_dict({"weight": weight, "bias": bias})
    return {"strength": strength, "rows": len(x_NC), "loss": losses[strength]}


def _features(
    network: MobileNet, loader: Loader, device: torch.device, *, mirror: bool
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Pooled features (N, C) and classes (N,): of all images, and then of their mirror images."""
    features: tuple[list[NDArray[np.float32]], ...] = ([], []) if mirror else ([],)
    classes: list[NDArray[np.int64]] = []
    images = 0
    network.eval()
    with (
        torch.inference_mode(),
        progress("features to fit", min(_MOST_IMAGES, loader.images)) as advance,
    ):
        for batch in loader.batches():
            batch = batch.to(device)
            ways = (batch.images_NCHW, batch.images_NCHW.flip(-1))
            for found, images_NCHW in zip(features, ways, strict=False):
                found.append(network.pooled_features(images_NCHW).float().cpu().numpy())
            classes.append(batch.targets_N.cpu().numpy())
            images += len(batch)
            advance(len(batch))
            if images >= _MOST_IMAGES:
                break
    x_NC = np.concatenate([np.concatenate(found) for found in features])
    return x_NC, np.tile(np.concatenate(classes), len(features))


def _loss(
    x_NC: NDArray[np.float32],
    y_N: NDArray[np.int64],
    images_N: NDArray[np.int64],
    strength: float,
    outputs: int,
) -> float:
    """Mean loss on images that the regression was not fitted to, nor to their mirror images."""
    images = int(images_N.max()) + 1
    parts = min(_PARTS, images)
    part_N = np.random.default_rng(0).permutation(images)[images_N] % parts
    asked = range(1 if images > _ONE_PART_IS_ENOUGH else parts)
    losses = []
    for part in asked:
        known_N = part_N != part
        weight_KC, bias_K = _regression(x_NC[known_N], y_N[known_N], strength, outputs)
        logits_NK = torch.from_numpy(x_NC[~known_N] @ weight_KC.T + bias_K)
        targets_N = torch.from_numpy(y_N[~known_N])
        losses.append(nn.functional.cross_entropy(logits_NK, targets_N).item())
    return float(np.mean(losses))


def _regression(
    x_NC: NDArray[np.float32], y_N: NDArray[np.int64], strength: float, outputs: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights (K, C) and biases (K,) for all outputs, those of classes without images too."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    weight_KC = np.zeros((outputs, x_NC.shape[1]))
    bias_K = np.zeros(outputs)
    present = np.unique(y_N)
    if len(present) > 1:
        with warnings.catch_warnings():
            # What is not quite at its end after so many steps classifies as well.
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = LogisticRegression(C=strength, max_iter=_ITERATIONS).fit(x_NC, y_N)
        coefficients, intercepts = fitted.coef_, fitted.intercept_
        if len(present) == 2:
            # Of two classes it gives the difference.
            coefficients = np.concatenate([-coefficients, coefficients]) / 2
            intercepts = np.concatenate([-intercepts, intercepts]) / 2
        weight_KC[present], bias_K[present] = coefficients, intercepts
    absent = np.setdiff1d(np.arange(outputs), present)
    bias_K[absent] = bias_K[present].min() - _NEVER
    return weight_KC, bias_K
