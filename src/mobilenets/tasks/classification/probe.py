"""A linear probe: the classifier fitted to the features that a trained body gives.

Shapes: N images, C features, K classes.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mobilenets.architecture.network import MobileNet
from mobilenets.data.loaders import Loader
from mobilenets.data.progress import progress

_MOST_ROWS = 20_000
_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
_ITERATIONS = 200
# How much less likely than the least likely other one a class is that has no images.
_NEVER = 5.0


def fit_classifier(
    network: MobileNet, train: Loader, val: Loader, device: torch.device, *, mirror: bool
) -> dict[str, float]:
    """Fit a network's classifier to the features of training images, its body left as it is.

    Multinomial logistic regression on standardised features, of the strength that has the least loss on
    the validation images (Kumar et al. 2022, arXiv 2202.10054, on why the classifier comes first). Images
    are taken as evaluation sees them, since random crops teach it less (docs/log.md), up to about 20,000.

    Args:
        mirror: fit to their mirror images too.

    Returns `strength`, scikit-learn's C, `rows` that were fitted, and `val_loss`.
    """
    x_NC, y_N = _features(network, train.still(), device, "features to fit", mirror=mirror)
    val_x_NC, val_y_N = _features(network, val, device, "features to check")
    mean_C, std_C = x_NC.mean(0), x_NC.std(0).clip(1e-6)
    assert isinstance(network.classifier, nn.Linear)
    outputs = network.classifier.out_features
    best: tuple[float, float, Tensor, Tensor] | None = None
    for strength in _STRENGTHS:
        weight_KC, bias_K = _regression((x_NC - mean_C) / std_C, y_N, strength, outputs)
        weight_KC = weight_KC / std_C
        bias_K = bias_K - weight_KC @ mean_C
        weight, bias = torch.from_numpy(weight_KC).float(), torch.from_numpy(bias_K).float()
        logits_NK = torch.from_numpy(val_x_NC) @ weight.T + bias
        loss = nn.functional.cross_entropy(logits_NK, torch.from_numpy(val_y_N)).item()
        if best is None or loss < best[0]:
            best = loss, strength, weight, bias
    assert best is not None
    loss, strength, weight, bias = best
    network.classifier.load_state_dict({"weight": weight, "bias": bias})
    return {"strength": strength, "rows": len(x_NC), "val_loss": loss}


def _features(
    network: MobileNet, loader: Loader, device: torch.device, what: str, *, mirror: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Pooled features (N, C) and classes (N,) of up to about 20,000 images and mirror images."""
    features, classes, rows = [], [], 0
    ways = 2 if mirror else 1
    network.eval()
    with (
        torch.inference_mode(),
        progress(what, min(_MOST_ROWS, ways * loader.images)) as advance,
    ):
        for batch in loader.batches():
            batch = batch.to(device)
            for images_NCHW in (batch.images_NCHW, batch.images_NCHW.flip(-1))[:ways]:
                maps_NCHW = network.forward_features(images_NCHW)
                features.append(network.pool(maps_NCHW).flatten(1).float().cpu().numpy())
                classes.append(batch.targets_N.cpu().numpy())
                rows += len(batch)
                advance(len(batch))
            if rows >= _MOST_ROWS:
                break
    return np.concatenate(features), np.concatenate(classes)


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
