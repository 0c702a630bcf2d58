"""Training in several processes that `torchrun` starts: who is who, and what they share.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from mobilenets.data.loaders import Shard
from mobilenets.training.interrupt import ProcessLostError

# Of gradients, reduced while the backward pass goes on. PyTorch's 25 would be one or two of a whole
# MobileNet (17 MB at width 1), the last of which goes when the pass is over.
BUCKET_MB = 2


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

    def pieces(self, accumulate: int, began: int) -> int:
        """Pieces of a batch, so that a process holds no more images at once than one of those that the run began with.

        >>> Processes(count=3).pieces(accumulate=1, began=8)
        3
        """
        return accumulate * math.ceil(began / self.count)

    def gather(self, text: str) -> list[str]:
        """A line of each of them, by rank."""
        if self.count == 1:
            return [text]
        # As plain bytes: nothing that comes from another process is run.
        line = text.encode()
        lengths = torch.zeros(self.count, dtype=torch.int64)
        lengths[self.rank] = len(line)
        dist.all_reduce(lengths)
        lines = torch.zeros(self.count, int(lengths.max()), dtype=torch.uint8)
        lines[self.rank, : len(line)] = torch.frombuffer(bytearray(line), dtype=torch.uint8)
        dist.all_reduce(lines)
        return [
            bytes(row[:length].tolist()).decode()
            for row, length in zip(lines, lengths.tolist(), strict=True)
        ]

    def average_statistics(self, model: nn.Module) -> None:
        """Make the running statistics of all processes one, where each normalises by its own images."""
        if self.count == 1:
            return
        statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        if not statistics:
            return
        mean = torch.cat([buffer.flatten() for buffer in statistics])
        dist.all_reduce(mean)
        parts = torch.split(mean / self.count, [buffer.numel() for buffer in statistics])
        for buffer, part in zip(statistics, parts, strict=True):
            buffer.copy_(part.view_as(buffer))

    def share(self, model: nn.Module, device: torch.device, reduce_in: str = "fp32") -> nn.Module:
        """The model, its gradients averaged over the processes in each backward pass.

        Buckets of gradients are reduced as soon as they are known, while the pass goes on.

        Args:
            reduce_in: `bf16` sends half the bytes, rounded to 8 bits of mantissa; `fp32` all of them.
        """
        if self.count == 1:
            return model
        ids = [device.index or 0] if device.type == "cuda" else None
        shared = DistributedDataParallel(model, device_ids=ids, bucket_cap_mb=BUCKET_MB)
        # They are the same in all of them, or made so before they are used.
        shared.broadcast_buffers = False
        if reduce_in == "bf16":
            shared.register_comm_hook(None, bf16_compress_hook)
        return cast(nn.Module, shared)


def gathering(shared: nn.Module, *, reduce: bool) -> AbstractContextManager[None]:
    """For a piece of a batch: whether gradients go to the other processes, or only pile up here."""
    if reduce or not isinstance(shared, DistributedDataParallel):
        return nullcontext()
    return cast(AbstractContextManager[None], shared.no_sync())


ALONE = Processes()


def launched() -> Processes:
    """Where `torchrun` has put this process, by its environment."""
    return Processes(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


@contextmanager
def processes(device: torch.device) -> Iterator[tuple[Processes, torch.device]]:
    """Join the others that `torchrun` started, if it did: gloo on CPUs, NCCL on GPUs.

    Gives this process's place, and its own device.

    Raises:
        ProcessLostError: another of them is gone, and so is what this one computed since the last save.
    """
    mine = launched()
    if mine.count == 1:
        yield mine, device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    try:
        # Metrics are gathered on the CPU, whatever trains.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        with warnings.catch_warnings():
            # A 1x1 filter has the same bytes in either layout.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
            yield mine, device
    except RuntimeError as error:
        # Gloo's errors have no class of their own, but name the file that they come from.
        if not isinstance(error, dist.DistError) and "gloo/" not in str(error):
            raise
        raise ProcessLostError(
            f"another of {mine.count} processes was lost, or can't be reached; started again, training goes on from "
            "its last save (torchrun does so with --max-restarts, and train with --restartable)"
        ) from None
    finally:
        if dist.is_initialized():
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
