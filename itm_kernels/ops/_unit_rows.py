"""Rows scaled to Euclidean norm 1, in one pass over them instead of the six of `normalize`."""

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


def _backward_fake(grad: Tensor, rows: Tensor, norm: Tensor, dtype: torch.dtype) -> Tensor:
    return rows.new_empty(rows.shape, dtype=dtype)


define("unit_rows_forward", "(Tensor x) -> (Tensor rows, Tensor norm)", _forward_fake)
# The gradient has the dtype of x; a conversion would cost a launch.
define(
    "unit_rows_backward",
    "(Tensor grad, Tensor rows, Tensor norm, ScalarType dtype) -> Tensor",
    _backward_fake,
)


class UnitRowsFunction(torch.autograd.Function):
    """The gradient is computed from the unit rows; the input is not saved."""

    @staticmethod
    def forward(ctx: Any, namespace: str, x: Tensor) -> Tensor:
        rows, norm = torch_op(namespace, "unit_rows_forward")(x)
        ctx.save_for_backward(rows, norm)
        ctx.options = namespace, x.dtype
        return rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        namespace, dtype = ctx.options
        backward = torch_op(namespace, "unit_rows_backward")
        return None, backward(grad, *ctx.saved_tensors, dtype)


class UnitSides:
    """Normalisation of two sides within the autograd function of another operator."""

    @staticmethod
    def forward(namespace: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return what the backward pass needs: the inputs, their unit rows and their norms."""
        rows, norms = zip(*map(torch_op(namespace, "unit_rows_forward"), inputs), strict=True)
        return *inputs, *rows, *norms

    @staticmethod
    def rows(namespace: str, saved: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return unit rows for the backward pass of the other operator.

        If that pass is differentiated, they must depend on the inputs, so that a second derivative
        raises an error.
        """
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return tuple(UnitRowsFunction.apply(namespace, x) for x in saved[:2])
        return tuple(saved[2:4])

    @staticmethod
    def backward(
        namespace: str, grads: Sequence[Tensor], rows: Sequence[Tensor], saved: Sequence[Tensor]
    ) -> Iterator[Tensor]:
        """Return the gradients of the inputs from those of the unit rows."""
        backward = torch_op(namespace, "unit_rows_backward")
        for grad, x, unit, norm in zip(grads, saved[:2], rows, saved[4:], strict=True):
            yield backward(grad, unit, norm, x.dtype)


@outside_autocast
def fused_unit_rows(x: Tensor, backend: str) -> Tensor:
    """Scale every row `[..., D]` to Euclidean norm 1, in fp32 or better.

    A zero row stays zero, and its gradient is zero.

    Unless the reference is requested, this part of a loss runs on the best available backend, as
    not every backend has a kernel for it.
    """
    chosen = "reference" if backend == "reference" else "auto"
    namespace = resolve("unit_rows", x, chosen)
    if namespace is None:
        return reference.unit_rows(x)
    return UnitRowsFunction.apply(namespace, x)
