"""What a recipe changes about a new network before the first step.

Shapes: N images, C channels, H height, W width, P patches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilenets.data.loaders import Loader
from mobilenets.training.recipe import Recipe

WHITENING_IMAGES = 5000
DEPTHWISE_NOISE = 0.3


def prepare(model: nn.Module, recipe: Recipe) -> None:
    """Set batch norm's momentum, and start the blocks' layers as the identity, as a recipe says.

    The identity (Dirac) start copies input channel i to output channel i and leaves the further
    outputs as they were (airbench94). It is for pointwise layers, and for the full convolutions that stand
    in their place, but not for the first layer, which finds its own filters. Depthwise filters, which
    would all be equal, start as the identity with noise.
    """
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = recipe.batch_norm_momentum
        if not (recipe.dirac and isinstance(module, nn.Conv2d)) or module is first:
            continue
        with torch.no_grad():
            if module.groups == 1:
                nn.init.dirac_(module.weight[: module.in_channels])
            else:
                nn.init.normal_(module.weight, std=DEPTHWISE_NOISE)
                height, width = module.kernel_size
                module.weight[:, :, height // 2, width // 2] += 1


def freeze_first_layer(model: nn.Module) -> nn.Conv2d:
    """Take the first convolution out of training.

    Raises:
        ValueError: the model has no full convolution.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            module.weight.requires_grad_(False)
            return module
    raise ValueError("whiten: this model has no first convolution to set")


def whiten(layer: nn.Conv2d, loader: Loader) -> None:
    """Set a layer's filters to those that whiten the patches of training images (airbench94).

    The filters are the eigenvectors of the patches' covariance, strongest first, each divided by
    the root of its eigenvalue, and then the same negated, since a ReLU would lose half of each.
    Filters beyond these keep their random start.
    """
    images = patches = 0
    sums_C: Tensor | float = 0.0
    products_CC: Tensor | float = 0.0
    for batch in loader.batches(0):
        patches_NPC = F.unfold(batch.images_NCHW, layer.kernel_size, padding=1).transpose(1, 2)
        patches_PC = patches_NPC.flatten(0, 1).double()
        # Sums, since the patches of 5,000 photos are more than a memory holds.
        patches += len(patches_PC)
        sums_C = sums_C + patches_PC.sum(0)
        products_CC = products_CC + patches_PC.T @ patches_PC
        images += len(batch)
        if images >= WHITENING_IMAGES:
            break
    assert isinstance(sums_C, Tensor)
    mean_C = sums_C / patches
    covariance_CC = products_CC / patches - mean_C[:, None] * mean_C
    values_C, vectors_CC = torch.linalg.eigh(covariance_CC)
    filters_CC = (vectors_CC / (values_C + 5e-4).sqrt()).T.flip(0)
    # Where nothing varies, as between the equal channels of a grey picture, is nothing to whiten.
    varying = int((values_C > 1e-4 * values_C[-1]).sum())
    count = min(varying, layer.out_channels // 2)
    both = torch.cat([filters_CC[:count], -filters_CC[:count]]).to(layer.weight)
    with torch.no_grad():
        layer.weight[: 2 * count] = both.reshape(2 * count, *layer.weight.shape[1:])
