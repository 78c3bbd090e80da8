"""Rows of other ranks by their index in the global batch, with gradient."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from itm_kernels import _checks
from itm_kernels._public import UnnamedValueError, public
from itm_kernels.distributed._agreement import Agreement
from itm_kernels.distributed._side import Side, wide_dtype


class _Route:
    """Requests for rows of a global batch, sorted by owner, and their number per rank."""

    def __init__(self, index: Tensor, side: Side) -> None:
        ends = torch.tensor(side.counts, device=index.device).cumsum(0)
        owner = torch.searchsorted(ends, index, right=True)
        self.order = owner.argsort(stable=True)
        asked = torch.bincount(owner, minlength=side.size)
        answered = torch.empty_like(asked)
        dist.all_to_all_single(answered, asked, group=side.group)
        self.side, self.asked, self.answered = side, asked.tolist(), answered.tolist()
        first = torch.zeros_like(ends)
        first[1:] = ends[:-1]
        wanted = (index - first[owner])[self.order]
        self.local = self._send(wanted, self.asked, self.answered)  # own rows that others ask for

    def _send(self, values: Tensor, counts: list[int], received: list[int]) -> Tensor:
        found = values.new_empty(sum(received), *values.shape[1:])
        dist.all_to_all_single(found, values.contiguous(), received, counts, group=self.side.group)
        return found

    def fetch(self, rows: Tensor) -> Tensor:
        """Return the requested rows, in the order of the requests."""
        found = self._send(rows[self.local], self.answered, self.asked)
        return torch.empty_like(found).index_copy_(0, self.order, found)

    def give_back(self, grad: Tensor, like: Tensor) -> Tensor:
        """Return the sum of the gradients of every own row, in fp32 or better."""
        found = self._send(grad[self.order], self.asked, self.answered)
        dtype = wide_dtype(like)
        total = torch.zeros_like(like, dtype=dtype).index_put_(
            (self.local,), found.to(dtype), accumulate=True
        )
        return total.to(like.dtype)


class _FetchRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, side: Side) -> Tensor:
        ctx.route = _Route(index, side)
        ctx.save_for_backward(rows)
        return ctx.route.fetch(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        return ctx.route.give_back(grad, rows), None, None


def fetch_rows(rows: Tensor, index: Tensor, side: Side) -> Tensor:  # [n, ...], [k] -> [k, ...]
    """Return rows of the global batch, of any rank; a row's gradient goes back to its rank.

    The numbers of requests are read on the host, once per call.
    """
    return _FetchRows.apply(rows, index, side)


@public
def fetch(rows: Tensor, index: Tensor, *, group: dist.ProcessGroup | None = None) -> Tensor:
    """Return rows of the global batch by index, from whatever rank holds them, with gradient.

    A loss over ranks that calls a model with pairs of rows (`losses.ITMLoss`) names rows by their
    index in the global batch. Only the requested rows travel, and their gradients travel back.

    Args:
        rows: `[n, ...]`, this rank's rows; the global batch is their concatenation in rank order.
        index: `[k]` int64 indices into the global batch; k may differ between ranks, and be 0.
        group: the process group. None or a group of one rank: `rows[index]`.

    Returns:
        `[k, ...]`. The gradient of a row is the sum of what all ranks computed with it.

    Raises:
        TypeError: rows is not a tensor, index not an integer tensor, or group not a process group.
        ValueError: an index is out of range on some rank, or the ranks disagree.

    >>> import torch
    >>> fetch(torch.eye(3), torch.tensor([2, 0]))
    tensor([[0., 0., 1.],
            [1., 0., 0.]])
    """
    if group is None or dist.get_world_size(group) == 1:
        return rows[index]
    agreement = Agreement(group, "sum", "gather")
    with agreement:
        _checks.is_tensor("rows", rows)
        _checks.is_tensor("index", index)
        _checks.identifiers("index", index, index.numel(), rows, what="index")
        shape = list(rows.shape[1:])
        flat = rows.reshape(rows.shape[0], math.prod(shape))  # -1 is ambiguous without rows
        agreement.describe("fetch", {"rows": flat}, shape=shape)
    index = index.to(rows.device, torch.int64)
    side = agreement.sides["rows"]
    outside = torch.stack([(index < 0).any() | (index >= side.total).any()])
    if side.all_reduce(outside.int(), "MAX").item():
        raise UnnamedValueError(
            f"index is out of range on some rank: the ranks hold {side.total} rows together, this "
            f"rank asks for {int(index.min())} to {int(index.max())}"
            if index.numel()
            else f"index is out of range on another rank: there are {side.total} rows"
        )
    return fetch_rows(rows, index, side)
