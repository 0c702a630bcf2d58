"""Folding batch norm into the convolution before it."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mobilenets.architecture.layers import ConvUnit


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy for evaluation: convolutions carry the batch norm that followed them, and dropout is gone.

    >>> from mobilenets.architecture.network import MobileNet
    >>> from mobilenets.architecture.spec import MobileNetSpec
    >>> folded = fold_batch_norm(MobileNet(MobileNetSpec(), num_classes=1000))
    >>> sum(p.numel() for p in folded.parameters())
    4221032
    """
    folded = copy.deepcopy(model).eval()
    for module in folded.modules():
        if isinstance(module, ConvUnit) and isinstance(module.norm, nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.norm = nn.Identity()
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, nn.Identity())
    return folded
