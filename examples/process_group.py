"""The processes of a training run: one, or those that `torchrun` starts."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class Processes:
    """The processes that share every batch of a run.

    Each trains on a contiguous share of the rows. All make the draws of the whole batch, from
    generators in the same state.

    Args:
        group: the process group; None for a single process.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = dist.get_rank(group) if group else 0
        self.size = dist.get_world_size(group) if group else 1

    @property
    def writes(self) -> bool:
        """Return whether this process prints and writes files."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """Return this process's rows of a batch; shares differ by at most one row."""
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def all(self, value: Any) -> list[Any]:
        """Return the value that each process passes."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes, with gradient."""
        return tensor if self.size == 1 else _Sum.apply(tensor, self.group)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return a module that averages the gradients of its parameters over the processes."""
        if self.size == 1:
            return module
        # Not every epoch uses every head.
        return DistributedDataParallel(
            module, process_group=self.group, find_unused_parameters=True
        )

    def copy_buffers(self, module: nn.Module) -> None:
        """Give all processes the first one's buffers, such as running statistics."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, group=self.group, group_src=0)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let the first process compute with whole batches while the others do not take part."""
        size, self.size = self.size, 1
        try:
            yield
        finally:
            self.size = size


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes of `torchrun`, or yield a single one if the program runs without it.

    The example computes on the CPU, so the group is a gloo group.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        yield Processes()
        return
    dist.init_process_group("gloo")
    try:
        yield Processes(dist.group.WORLD)
    finally:
        dist.destroy_process_group()


class _Sum(torch.autograd.Function):
    """The sum of a tensor over a group, whose transpose is the sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(grad, ctx.group), None


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation with the statistics of the rows of all processes.

    `nn.SyncBatchNorm` does the same on GPUs only.

    Args:
        width: number of channels, the second dimension.
        processes: those that share the batch.
        affine: whether to learn a scale and an offset per channel.
    """

    def __init__(self, width: int, processes: Processes, *, affine: bool = True) -> None:
        super().__init__(width, affine=affine)
        self.processes = processes

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``[N, width, ...]``; in training, update the running statistics."""
        if not self.training or self.processes.size == 1:
            return super().forward(input)
        others = [axis for axis in range(input.dim()) if axis != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        count = self.processes.sum(torch.tensor(float(input.numel() // input.shape[1])))
        mean = self.processes.sum(input.sum(others)) / count
        centred = input - mean.view(shape)
        variance = self.processes.sum(centred.square().sum(others)) / count
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None and self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        normal = centred * (variance + self.eps).rsqrt().view(shape)
        return normal * self.weight.view(shape) + self.bias.view(shape) if self.affine else normal

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions."""
