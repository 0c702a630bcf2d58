"""Optimisers, their parameter groups, and the learning rate at every step."""

from __future__ import annotations

import math
from typing import Any, assert_never

import torch
from torch import nn

from mobilenets.training.recipe import OptimizerChoice, ScheduleChoice


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: with weight decay, and without.

    Depthwise filters, batch norm and biases stay without: depthwise filters have so few
    parameters that the paper puts "very little or no weight decay" on them (section 3.1).

    >>> from mobilenets.architecture.network import MobileNet
    >>> from mobilenets.architecture.spec import MobileNetSpec
    >>> groups = parameter_groups(MobileNet(MobileNetSpec()), 4e-5)
    >>> [sum(p.numel() for p in group["params"]) for group in groups]
    [4164448, 67528]
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
            dense = isinstance(module, nn.Conv2d | nn.Linear) and name == "weight"
            (decayed if dense and not depthwise else free).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, choice: OptimizerChoice) -> torch.optim.Optimizer:
    """The recipe's optimiser over a model's parameter groups."""
    groups = parameter_groups(model, choice.weight_decay)
    match choice.name:
        case "sgd":
            return torch.optim.SGD(
                groups, lr=choice.lr, momentum=choice.momentum, nesterov=choice.nesterov
            )
        case "adamw":
            betas = (choice.momentum, choice.beta2)
            return torch.optim.AdamW(groups, lr=choice.lr, betas=betas)
    assert_never(choice.name)


def lr_factor(step: int, steps: int, choice: ScheduleChoice) -> float:
    """The learning rate of a step as a share of its peak; steps count from 0.

    >>> choice = ScheduleChoice(name="linear", warmup=0.2)
    >>> [round(lr_factor(step, 10, choice), 3) for step in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.125]
    """
    warmup = round(choice.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    match choice.name:
        case "constant":
            share = 1.0
        case "linear":
            share = 1 - done
        case "cosine":
            share = (1 + math.cos(math.pi * done)) / 2
        case _:
            assert_never(choice.name)
    return choice.final + (1 - choice.final) * share


def build_schedule(
    optimizer: torch.optim.Optimizer, steps: int, choice: ScheduleChoice
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule over all steps of a run; step it once after each optimiser step."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(min(step, steps - 1), steps, choice)
    )
