"""The rows of one tensor over the ranks of a process group, and the collectives that move them.

The ranks may hold different numbers of rows. Collectives of torch.distributed need equal sizes, so
rows are padded to the largest number; with equal numbers nothing is copied.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

# torch 2.13 renamed the two collectives.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which gradients are summed over ranks: fp32, or fp64 for fp64."""
    return torch.promote_types(tensor.dtype, torch.float32)


def local_index(index: Tensor, part: slice, outside: int) -> Tensor:
    """Return indices of the global batch relative to a part of it, `outside` for other rows."""
    elsewhere = (index < part.start) | (index >= part.stop)
    return (index - part.start).masked_fill(elsewhere, outside)


class Side(NamedTuple):
    """Which rows of the global batch each rank holds: in rank order, without gaps."""

    group: dist.ProcessGroup
    rank: int
    counts: tuple[int, ...]  # rows of every rank

    @property
    def total(self) -> int:
        """Rows of the global batch."""
        return sum(self.counts)

    @property
    def first(self) -> int:
        """Index of this rank's first row in the global batch."""
        return int(self.own.start)

    @property
    def own(self) -> slice:
        """This rank's rows of the global batch."""
        return self.slice_of(self.rank)

    def slice_of(self, rank: int) -> slice:
        """Return the rows of a rank in the global batch."""
        first = sum(self.counts[:rank])
        return slice(first, first + self.counts[rank])

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.counts)

    def indices(self, device: torch.device) -> Tensor:  # [n]
        """Return the indices of this rank's rows in the global batch."""
        return torch.arange(self.own.start, self.own.stop, device=device)

    def gather(self, rows: Tensor) -> Tensor:  # [n, ...] -> [N, ...]
        """Return the rows of all ranks, without gradient."""
        rows, most = rows.detach(), max(self.counts)
        if min(self.counts) == most:
            found = rows.new_empty(self.total, *rows.shape[1:])
            _all_gather(found, rows.contiguous(), group=self.group)
            return found
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: rows.shape[0]] = rows
        found = rows.new_empty(self.size * most, *rows.shape[1:])
        _all_gather(found, padded, group=self.group)
        parts = found.unflatten(0, (self.size, most))
        return torch.cat([part[:n] for part, n in zip(parts, self.counts, strict=True)])

    def reduce_scatter(self, rows: Tensor) -> Tensor:  # [N, ...] -> [n, ...]
        """Return the sum over ranks of this rank's rows."""
        most, own = max(self.counts), self.counts[self.rank]
        if min(self.counts) < most:
            padded = rows.new_zeros(self.size, most, *rows.shape[1:])
            for part, n, given in zip(padded, self.counts, rows.split(self.counts), strict=True):
                part[:n] = given
            rows = padded.flatten(0, 1)
        found = rows.new_empty(most, *rows.shape[1:])
        _reduce_scatter(found, rows.contiguous(), group=self.group)
        return found[:own]

    def all_reduce(self, values: Tensor, op: str = "SUM") -> Tensor:
        """Return the sum, "MAX" or "MIN" of every entry over ranks."""
        found = values.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(found, getattr(dist.ReduceOp, op), group=self.group)
        return found

    def every(self, value: Tensor) -> Tensor:  # [...] -> [W, ...]
        """Return a tensor of every rank, of the same shape on all ranks."""
        own = value.detach().contiguous().reshape(-1)
        found = value.new_empty(self.size * own.shape[0])
        _all_gather(found, own, group=self.group)
        return found.reshape(self.size, *value.shape)

    def from_first(self, values: Tensor) -> Tensor:
        """Return a tensor of rank 0, of the same shape on all ranks."""
        found = values.detach().clone(memory_format=torch.contiguous_format)
        dist.broadcast(found, dist.get_global_rank(self.group, 0), group=self.group)
        return found
