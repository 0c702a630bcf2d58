"""Optimisers, their parameter groups, and the learning rate at every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from mobilenets.training.recipe import OptimizerChoice, ScheduleChoice


class RMSpropTF(torch.optim.Optimizer):
    """RMSprop as TensorFlow 1 computes it, which is what the paper trained with (section 3.2).

    For a gradient g: `s = decay * s + (1 - decay) * g^2`, starting at 1;
    `m = momentum * m + lr * g / sqrt(s + epsilon)`; `w = w - m`. PyTorch's own starts s at 0, adds
    epsilon outside the root, and multiplies the learning rate on afterwards, so that a lower rate
    also shrinks the old momentum. With epsilon 1 the two train differently.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        decay: of the squared gradient's average.
        weight_decay: L2, added to the gradient.

    >>> w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    >>> w.grad = torch.ones_like(w)
    >>> RMSpropTF([w], lr=0.045).step()
    >>> round(w.item(), 8)
    -0.03181981
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        decay: float = 0.9,
        momentum: float = 0.9,
        epsilon: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "decay": decay,
            "momentum": momentum,
            "epsilon": epsilon,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["square"] = torch.ones_like(weight)
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            squares = [self.state[weight]["square"] for weight in weights]
            momenta = [self.state[weight]["momentum"] for weight in weights]
            gradients: list[Tensor] = [weight.grad for weight in weights]
            if group["weight_decay"]:
                gradients = list(
                    torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
                )
            torch._foreach_mul_(squares, group["decay"])
            torch._foreach_addcmul_(squares, gradients, gradients, value=1 - group["decay"])
            roots = torch._foreach_add(squares, group["epsilon"])
            torch._foreach_sqrt_(roots)
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_addcdiv_(momenta, gradients, roots, value=group["lr"])
            torch._foreach_sub_(weights, momenta)
        return loss


def parameter_groups(
    model: nn.Module, choice: OptimizerChoice, rate_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Parameters by weight decay and learning rate, the decayed ones of the body's last block first.

    Depthwise filters, batch norm and biases have no weight decay: depthwise filters have so few
    parameters that the paper puts "very little or no weight decay" on them (section 3.1).
    `peak_lr` is the rate that a schedule scales; each block of the body has `rate_decay` times that of
    the block behind it.

    >>> from mobilenets.architecture.network import MobileNet
    >>> from mobilenets.architecture.spec import MobileNetSpec
    >>> groups = parameter_groups(MobileNet(MobileNetSpec()), OptimizerChoice(weight_decay=4e-5))
    >>> [sum(p.numel() for p in group["params"]) for group in groups]
    [4164448, 67528]
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {(choice.weight_decay, 1.0): []}
    body = dict(model.named_children()).get("body", nn.Module())
    blocks = [f"body.{name}." for name, _ in body.named_children()]
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
            dense = isinstance(module, nn.Conv2d | nn.Linear) and name == "weight"
            decayed = dense and (choice.decay_depthwise or not depthwise)
            rate = choice.head_lr
            for place, block in enumerate(reversed(blocks)):
                if f"{path}.".startswith(block):
                    rate = rate_decay**place
            if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) and name == "bias":
                rate *= choice.norm_bias_lr
            groups.setdefault((choice.weight_decay * decayed, rate), []).append(parameter)
    return [
        {
            "params": params,
            "weight_decay": decay,
            "lr": choice.lr * rate,
            "peak_lr": choice.lr * rate,
        }
        for (decay, rate), params in groups.items()
        if params
    ]


def build_optimizer(
    model: nn.Module, choice: OptimizerChoice, rate_decay: float = 1.0
) -> torch.optim.Optimizer:
    """The recipe's optimiser over a model's parameter groups."""
    groups = parameter_groups(model, choice, rate_decay)
    betas = (choice.momentum, choice.beta2)
    match choice.name:
        case "sgd":
            nesterov = choice.nesterov and choice.momentum > 0
            return torch.optim.SGD(
                groups, lr=choice.lr, momentum=choice.momentum, nesterov=nesterov
            )
        case "adam":
            return torch.optim.Adam(groups, lr=choice.lr, betas=betas, eps=choice.epsilon)
        case "adamw":
            return torch.optim.AdamW(groups, lr=choice.lr, betas=betas, eps=choice.epsilon)
        case "rmsprop":
            return RMSpropTF(
                groups,
                choice.lr,
                decay=choice.beta2,
                momentum=choice.momentum,
                epsilon=choice.epsilon,
            )
    assert_never(choice.name)


def lr_factor(step: float, steps: float, choice: ScheduleChoice, stair: int = 1) -> float:
    """The learning rate of a step as a share of its peak; steps count from 0.

    Args:
        step: the step, of `steps` in all.
        stair: steps between two drops of `exponential`, see `stair_steps`.

    >>> choice = ScheduleChoice(name="linear", warmup=0.2)
    >>> [round(lr_factor(step, 10, choice), 3) for step in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.125]
    """
    # Without a warm-up, `steps` may be infinite.
    warmup = round(choice.warmup * steps) if choice.warmup else 0
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    done = (step - warmup) / max(1, steps - warmup)
    match choice.name:
        case "constant":
            return 1.0
        case "linear":
            share = 1 - done
        case "cosine":
            share = (1 + math.cos(math.pi * done)) / 2
        case "exponential":
            return float(choice.factor ** (step // stair))
        case _:
            assert_never(choice.name)
    return choice.final + (1 - choice.final) * share


def stair_steps(images: int, batch_size: int, every: float) -> int:
    """Steps between two drops of the exponential schedule, cut off as TensorFlow-Slim does.

    >>> stair_steps(1_271_167, 64, 2.5)
    49654
    """
    return max(1, int(images / batch_size * every))
