"""Rows scaled to length 1, in one pass over them instead of the six of `normalize`."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from itm_kernels import reference
from itm_kernels._autocast import outside_autocast
from itm_kernels.backends import resolve
from itm_kernels.ops._define import define, torch_op, wide_empty


def _forward_fake(x: Tensor) -> tuple[Tensor, Tensor]:
    return wide_empty(x, *x.shape), wide_empty(x, *x.shape[:-1])


def _backward_fake(grad: Tensor, rows: Tensor, length: Tensor, dtype: torch.dtype) -> Tensor:
    return rows.new_empty(rows.shape, dtype=dtype)


define("unit_rows_forward", "(Tensor x) -> (Tensor rows, Tensor length)", _forward_fake)
# In the dtype of x: to convert it would be a launch more.
define(
    "unit_rows_backward",
    "(Tensor grad, Tensor rows, Tensor length, ScalarType dtype) -> Tensor",
    _backward_fake,
)


class _UnitRows(torch.autograd.Function):
    """The gradient is read off the unit rows: the rows as they came are not kept."""

    @staticmethod
    def forward(ctx: Any, namespace: str, x: Tensor) -> Tensor:
        rows, length = torch_op(namespace, "unit_rows_forward")(x)
        ctx.save_for_backward(rows, length)
        ctx.options = namespace, x.dtype
        return rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        namespace, dtype = ctx.options
        backward = torch_op(namespace, "unit_rows_backward")
        return None, backward(grad, *ctx.saved_tensors, dtype)


class Sides:
    """Both sides' unit rows within another operator's step of autograd: raw rows, rows, lengths."""

    @staticmethod
    def of(namespace: str, *raw: Tensor) -> tuple[Tensor, ...]:
        """Return what a backward pass saves: the raw rows, the unit rows, their lengths."""
        rows, lengths = zip(*map(torch_op(namespace, "unit_rows_forward"), raw), strict=True)
        return *raw, *rows, *lengths

    @staticmethod
    def rows(namespace: str, saved: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return unit rows for the other operator's backward pass.

        One that is to be differentiated itself gets them as functions of the raw rows: what it
        returns then depends on these, and refuses.
        """
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return tuple(_UnitRows.apply(namespace, raw) for raw in saved[:2])
        return tuple(saved[2:4])

    @staticmethod
    def gradients(
        namespace: str, pulls: Sequence[Tensor], rows: Sequence[Tensor], saved: Sequence[Tensor]
    ) -> Iterator[Tensor]:
        """Return the gradients of the raw rows from those of unit rows."""
        backward = torch_op(namespace, "unit_rows_backward")
        for pull, raw, unit, length in zip(pulls, saved[:2], rows, saved[4:], strict=True):
            yield backward(pull, unit, length, raw.dtype)


@outside_autocast
def fused_unit_rows(x: Tensor, function: str, backend: str) -> Tensor:
    """Scale every row `[..., D]` to length 1, in fp32 or better.

    A zero row has no direction: it stays zero, and so is its gradient.

    A part of a loss that runs on some backend takes the best that is there: not every backend has
    a kernel for it.
    """
    chosen = "reference" if backend == "reference" else "auto"
    namespace = resolve(function, "unit_rows", x, chosen)
    if namespace is None:
        return reference.unit_rows(x)
    return _UnitRows.apply(namespace, x)
