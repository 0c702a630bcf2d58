"""Quantisation-aware fine-tuning: a run that was trained on while rounding, so that int8 loses less.

The float run teaches: its outputs on the images are the targets, and no labels are needed (Hinton et al. 2015, arXiv
1503.02531). What comes out is a run like any other, in floats; it is exported with `--int8` as any other is.

N images, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilenets.architecture.steps import layer_of
from mobilenets.data.progress import progress
from mobilenets.deploy.equalise import equalise
from mobilenets.deploy.exportable import Exportable, Int8, steps_of
from mobilenets.deploy.pt2e import rounded_in_training
from mobilenets.training.run import Run

LEARNING_RATE = 1e-4
BATCH = 32


def fine_tune(
    run: Run,
    images_NCHW: Tensor,
    *,
    epochs: int = 5,
    lr: float = LEARNING_RATE,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Weights for the run's network that int8 hurts less.

    Args:
        images_NCHW: real images, preprocessed; what is on them need not be known.

    Raises:
        ValueError: it is no classifier, or the outputs are no longer numbers.
    """
    torch.manual_seed(seed)
    model = Exportable.of_run(run)
    if model.form != "network":
        raise ValueError(f"{run.folder} detects: fine-tuning for int8 is for classifiers")
    teacher = model.network
    student = equalise(teacher, images_NCHW[: 2 * BATCH])
    graph = model.program(any_batch=True, network=student).module()
    rounded = rounded_in_training(graph, Int8(images_NCHW=images_NCHW))
    weights = [weight for weight in rounded.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr)
    batches = math.ceil(len(images_NCHW) / BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    with progress("fine-tuning for int8", epochs * len(images_NCHW)) as advance:
        for _ in range(epochs):
            for chosen in torch.split(torch.randperm(len(images_NCHW)), BATCH):
                images = images_NCHW[chosen]
                with torch.no_grad():
                    wanted_NK = teacher(images)
                loss = _divergence(rounded(images), wanted_NK)
                distance = loss.item()
                if not math.isfinite(distance):
                    raise ValueError(f"the outputs are no longer numbers: lower --lr from {lr:g}")
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                advance(len(images), f"loss {distance:.4f}")
    return unfolded(run, student, dict(rounded.named_parameters()))


def _divergence(outputs_NK: Tensor, wanted_NK: Tensor) -> Tensor:
    """Kullback-Leibler, averaged over images."""
    return F.kl_div(
        F.log_softmax(outputs_NK, 1),
        F.log_softmax(wanted_NK, 1),
        reduction="batchmean",
        log_target=True,
    )


@torch.no_grad()
def unfolded(run: Run, folded: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A folded network's weights as those of the run's own network, whose batch norm then does nothing.

    Args:
        folded: says what the layers are called.
        weights: by their names in it.
    """
    network = run.task.build_model(run.spec).eval()
    named = {id(parameter): name for name, parameter in folded.named_parameters()}
    pairs = zip(steps_of(network).modules.values(), steps_of(folded).modules.values(), strict=True)
    for ours, theirs in pairs:
        layer, source = layer_of(ours), layer_of(theirs)
        if layer is None or source is None:
            continue
        assert source.bias is not None
        layer.weight.copy_(weights[named[id(source.weight)]])
        bias = weights[named[id(source.bias)]]
        norm = getattr(ours, "norm", None)
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_var is not None
            assert norm.running_mean is not None
            norm.running_mean.zero_()
            norm.running_var.fill_(1)
            norm.weight.fill_(math.sqrt(1 + norm.eps))
            norm.bias.copy_(bias)
        else:
            assert layer.bias is not None
            layer.bias.copy_(bias)
    return network.state_dict()
