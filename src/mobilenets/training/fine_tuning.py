"""From weights that are trained to new classes: batch norm given back, blocks thawed one by one.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mobilenets.data.loaders import Loader
from mobilenets.training.recipe import FineTuningChoice

# Images whose statistics a folded batch norm is given back from.
STATISTICS_IMAGES = 512


def unfold(model: nn.Module, loader: Loader) -> int:
    """Give batch norms that were folded into their convolutions statistics of their own again.

    A folded norm adds a bias and does no more, so that training, which normalises by each batch, would
    start from another function. What a convolution gives has mean m and variance v over
    images; with these as statistics, a scale of `sqrt(v + epsilon)` and a shift of `bias + m` the norm
    computes what it did, and trains as any other.

    Returns how many norms were given statistics.
    """
    folded = [norm for norm in _norms(model) if _is_folded(norm)]
    if not folded:
        return 0
    sums: dict[nn.Module, _Sums] = {norm: _Sums(norm.num_features) for norm in folded}
    hooks = [
        norm.register_forward_pre_hook(lambda norm, inputs: sums[norm].add(inputs[0]))
        for norm in folded
    ]
    model.eval()
    images = 0
    with torch.inference_mode():
        for batch in loader.batches(0):
            model(batch.images_NCHW)
            images += len(batch)
            if images >= STATISTICS_IMAGES:
                break
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        for norm in folded:
            mean_C, variance_C = sums[norm].moments()
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(mean_C)
            norm.running_var.copy_(variance_C)
            norm.weight.copy_((variance_C + norm.eps).sqrt())
            norm.bias.add_(mean_C)
    return len(folded)


class _Sums:
    """Sums of a channel's values and of their squares."""

    def __init__(self, channels: int) -> None:
        self._count = 0
        self._sum_C = torch.zeros(channels, dtype=torch.float64)
        self._squares_C = torch.zeros(channels, dtype=torch.float64)

    def add(self, x_NCHW: Tensor) -> None:
        x_NCHW = x_NCHW.double()
        self._count += x_NCHW[:, 0].numel()
        self._sum_C += x_NCHW.sum((0, 2, 3))
        self._squares_C += x_NCHW.square().sum((0, 2, 3))

    def moments(self) -> tuple[Tensor, Tensor]:
        mean_C = self._sum_C / self._count
        return mean_C, (self._squares_C / self._count - mean_C.square()).clamp(min=0)


def _norms(module: nn.Module) -> list[nn.BatchNorm2d | nn.SyncBatchNorm]:
    kinds = nn.BatchNorm2d | nn.SyncBatchNorm
    return [norm for norm in module.modules() if isinstance(norm, kinds)]


def keep_statistics(module: nn.Module) -> None:
    """Let the batch norms of a model that trains normalise by their running statistics, and keep these."""
    for norm in _norms(module):
        norm.eval()


def _is_folded(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> bool:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    one = torch.full_like(norm.running_var, 1 - norm.eps)
    return bool(
        (norm.running_mean == 0).all() and (norm.weight == 1).all() and norm.running_var.equal(one)
    )


class Thaw:
    """Which blocks of a body train, and how their batch norms do, as a recipe's `fine_tuning` says.

    A block that does not train gets no gradients, and its batch norms keep their statistics.

    Args:
        alone: whether this is the only process: several expect gradients for all parameters, and lose
            them only afterwards.
    """

    def __init__(self, model: nn.Module, choice: FineTuningChoice, *, alone: bool) -> None:
        self._blocks = [block for _, block in model.get_submodule("body").named_children()]
        self._choice = choice
        self._alone = alone

    def count(self, share: float) -> int:
        """Blocks that train when `share` of the schedule is done, counted from the last."""
        thaw = self._choice.thaw
        if thaw is None:
            return 0
        if share >= thaw:
            return len(self._blocks)
        return math.floor(len(self._blocks) * share / thaw)

    def before_step(self, share: float) -> None:
        """Set what trains; the model is in training mode."""
        frozen = len(self._blocks) - self.count(share)
        for index, block in enumerate(self._blocks):
            if self._alone:
                block.requires_grad_(index >= frozen)
            if index < frozen or self._choice.norm == "kept":
                keep_statistics(block)

    def after_backward(self, share: float) -> None:
        """Drop the gradients of what does not train."""
        for block in self._blocks[: len(self._blocks) - self.count(share)]:
            block.zero_grad()
