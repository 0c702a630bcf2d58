"""Training in several processes that `torchrun` starts: who is who, and what they share.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mobilenets.data.loaders import Shard


@dataclass(frozen=True)
class Processes:
    """A process among those that train together."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    @property
    def shard(self) -> Shard:
        """Its part of every batch."""
        return Shard(self.rank, self.count)

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()

    def any_of(self, wishes: tuple[bool, bool], device: torch.device) -> tuple[bool, bool]:
        """Whether one of the processes wishes the first thing, and the second."""
        if self.count == 1:
            return wishes
        flags = torch.tensor([float(wish) for wish in wishes], device=device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        first, second = flags.tolist()
        return bool(first), bool(second)

    def first_says(self, value: float, device: torch.device) -> float:
        """The value that the first of them has."""
        if self.count == 1:
            return value
        told = torch.tensor(value, dtype=torch.float64, device=device)
        dist.broadcast(told, src=0)
        return told.item()

    def total(self, sums: dict[str, float], device: torch.device) -> dict[str, float]:
        """Sums over all of them."""
        if self.count == 1:
            return sums
        values = torch.tensor(list(sums.values()), dtype=torch.float64, device=device)
        dist.all_reduce(values)
        return dict(zip(sums, values.tolist(), strict=True))

    def share(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model, its gradients averaged over the processes after each backward pass."""
        if self.count == 1:
            return model
        ids = [device.index or 0] if device.type == "cuda" else None
        return cast(nn.Module, DistributedDataParallel(model, device_ids=ids))


ALONE = Processes()


def launched() -> Processes:
    """Where `torchrun` has put this process, by its environment."""
    return Processes(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


@contextmanager
def processes(device: torch.device) -> Iterator[tuple[Processes, torch.device]]:
    """Join the others that `torchrun` started, if it did: gloo on CPUs, NCCL on GPUs.

    Gives this process's place, and its own device.
    """
    mine = launched()
    if mine.count == 1:
        yield mine, device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # Metrics are gathered on the CPU, whatever trains.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        with warnings.catch_warnings():
            # A 1x1 filter has the same bytes in either layout.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
            yield mine, device
    finally:
        dist.destroy_process_group()


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Batch norm over the whole batch of all processes, so that they train as one would."""
    if device.type == "cuda":
        return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(model))  # type: ignore[no-untyped-call]
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, _SynchronisedBatchNorm.like(child))
    return model


class _SynchronisedBatchNorm(nn.BatchNorm2d):
    """PyTorch's own synchronised batch norm knows GPUs only."""

    @classmethod
    def like(cls, norm: nn.BatchNorm2d) -> _SynchronisedBatchNorm:
        made = cls(norm.num_features, eps=norm.eps, momentum=norm.momentum)
        made.load_state_dict(norm.state_dict())
        return made.to(norm.weight.device).train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to the same; N may be 0 in one of the processes."""
        if not self.training:
            return super().forward(input)
        sums = torch.cat([input.sum((0, 2, 3)), input.new_tensor([input[:, 0].numel()])])
        sums = _summed(sums)
        count = sums[-1].detach()
        mean_C = sums[:-1] / count
        centred_NCHW = input - mean_C[:, None, None]
        variance_C = _summed(centred_NCHW.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.momentum is not None
            assert self.num_batches_tracked is not None
            unbiased_C = variance_C * count / (count - 1)
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_(unbiased_C, self.momentum)
            self.num_batches_tracked += 1
        scale_C = self.weight * torch.rsqrt(variance_C + self.eps)
        return centred_NCHW * scale_C[:, None, None] + self.bias[:, None, None]


class _Sum(torch.autograd.Function):
    """A sum over the processes; each one's loss depends on every one's part of it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        del ctx
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient


def _summed(values: Tensor) -> Tensor:
    return cast(Tensor, _Sum.apply(values))
