"""Differentiable collectives. The backward pass of each one is its transpose.

The sum of the losses of all ranks is what these functions differentiate, so a value that is the
same on all ranks must enter the loss of one rank only: `total` returns the loss of the global batch
on every rank, and differentiates it once.
"""

from typing import Any

import torch
from torch import Tensor

from itm_kernels.distributed._side import Side, wide_dtype


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, side: Side) -> Tensor:
        ctx.side = side
        return side.gather(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = ctx.side.reduce_scatter(grad.to(wide_dtype(grad)))
        return total.to(grad.dtype), None


def gather_rows(rows: Tensor, side: Side) -> Tensor:  # [n, ...] -> [N, ...]
    """Return the rows of all ranks; a row's gradient is summed over ranks."""
    if rows.requires_grad and torch.is_grad_enabled():
        return _GatherRows.apply(rows, side)
    return side.gather(rows)


class _ScatterRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, side: Side) -> Tensor:
        ctx.side = side
        return side.reduce_scatter(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.side.gather(grad), None


def scatter_rows(values: Tensor, side: Side) -> Tensor:  # [N, ...] -> [n, ...]
    """Return the sum over ranks of this rank's rows; the gradient reaches all ranks."""
    return _ScatterRows.apply(values, side)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, side: Side) -> Tensor:
        return side.every(value).sum(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def total(value: Tensor, side: Side) -> Tensor:  # []
    """Return the sum of one value per rank: the same bits on every rank.

    Every rank differentiates its own copy of the loss, so the gradient of a value is that of the
    rank's own copy.
    """
    return _Total.apply(value, side)


class _LogAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, relative: Tensor, highest: Tensor, side: Side) -> tuple[Tensor, Tensor]:
        # An empty sum has no highest logit.
        own = highest.masked_fill(relative == -torch.inf, -torch.inf)
        most = side.all_reduce(own, "MAX")
        most = most.masked_fill(most.isinf(), 0)
        share = (relative + (highest - most)).exp()
        total = side.all_reduce(share)
        ctx.side = side
        ctx.save_for_backward(share, total)
        ctx.mark_non_differentiable(most)
        ctx.set_materialize_grads(False)
        return total.log(), most

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, None]:
        share, total = ctx.saved_tensors
        part = torch.where(total == 0, 0, share / total)
        return ctx.side.all_reduce(grad) * part, None, None


def log_add(relative: Tensor, highest: Tensor, side: Side) -> tuple[Tensor, Tensor]:
    """Return log sum exp over ranks of `relative + highest`, relative to the highest logit."""
    return _LogAdd.apply(relative, highest, side)


class _Maximum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, score: Tensor, side: Side) -> Tensor:
        most = side.all_reduce(score, "MAX")
        # A maximum may lose a NaN; the lowest rank of equal scores has the lowest indices.
        rank = torch.full_like(score, side.size).masked_fill(score == most, side.rank)
        chosen = side.all_reduce(rank.masked_fill(score.isnan(), -1), "MIN")
        ctx.side = side
        ctx.save_for_backward(chosen == side.rank)
        return most.masked_fill(chosen < 0, torch.nan)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (own,) = ctx.saved_tensors
        return ctx.side.all_reduce(grad).masked_fill(~own, 0), None


def maximum(score: Tensor, side: Side) -> Tensor:  # [N]
    """Return the maximum over ranks; the gradient reaches the lowest rank that has it."""
    return _Maximum.apply(score, side)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def scale_gradient(value: Tensor, factor: float) -> Tensor:
    """Return a tensor whose gradient is multiplied by a factor."""
    if factor == 1 or not value.requires_grad:
        return value
    return _ScaleGradient.apply(value, factor)


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(torch.zeros_like(t) for t in ctx.saved_tensors)


def attached(value: Tensor, *inputs: Tensor) -> Tensor:
    """Return a constant with a gradient of 0 for every input.

    A rank without rows takes part in the collectives of the backward pass this way.
    """
    return _Attached.apply(value, *inputs)
