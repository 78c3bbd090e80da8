"""Gradients of rows from their products with weights: both sides of a loss in one launch.

The products are those of prepared rows (`_scaled_operands`): a gradient has neither their powers of
two nor, for cosines, a component along its row.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._norms import (
    SMALLEST,
    norm_divisor,
    reciprocal,
    square_root,
)
from itm_kernels.triton._operands import kind_of, row_blocks, stored_dtype
from itm_kernels.triton._scaled_operands import POWER, layout_of, row_power


def gradient_of_rows(
    x: Tensor,  # [N, D], the input
    sums: Tensor,  # [N, D], over m: weight x both factors x prepared row of y x unit
    unit: Tensor | None,  # []
    cosine: bool,
) -> Tensor:  # [N, D]
    """Return the gradient of x, in its dtype, from one pass over x and one over the sums."""
    return gradients_of_rows([x], [sums], unit, cosine)[0]


def gradients_of_rows(
    sides: list[Tensor],  # one or two, [N, D] and [M, D]
    sums: Sequence[Tensor],  # of the same shapes
    unit: Tensor | None,  # []
    cosine: bool,
    times: Tensor | None = None,  # [], a factor of the gradients
    fine: bool = False,
) -> list[Tensor]:
    """Return the gradient of every side, as `gradient_of_rows`, in one launch."""
    x, y, D = sides[0], sides[-1], sides[0].shape[1]
    N, M = x.shape[0], y.shape[0]
    found = [
        torch.empty(side.shape, dtype=stored_dtype(x.dtype), device=x.device) for side in sides
    ]
    options, layout = row_blocks(D), layout_of(x, kind_of(x), cosine, fine)
    of_x, of_y = sums[0], sums[-1]
    _gradient_kernel[(cdiv(max(N, M), options["ROWS"]), len(sides))](
        x, y, of_x, of_y, of_x if unit is None else unit, of_x if times is None else times,
        found[0], found[-1], *x.stride(), *y.stride(), of_x.stride(0), of_y.stride(0), N, M, D,
        COSINE=cosine, UNIT_ROWS=layout.unit_rows, POWERS=layout.powers,
        HAS_UNIT=unit is not None, TIMES=times is not None, **options,
    )  # fmt: skip
    return [each.to(x.dtype) for each in found]


@jit(do_not_specialize=["N", "M"])
def _gradient_kernel(
    x,
    y,
    x_sums,
    y_sums,
    unit,
    times,
    x_out,  # [N, D]
    y_out,  # [M, D]
    x_stride,
    x_column_stride,
    y_stride,
    y_column_stride,
    x_sums_stride,
    y_sums_stride,
    N,
    M,
    D,
    COSINE: tl.constexpr,
    UNIT_ROWS: tl.constexpr,
    POWERS: tl.constexpr,
    HAS_UNIT: tl.constexpr,
    TIMES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    if tl.program_id(1) == 0:
        _gradient_of_rows(
            x, x_sums, unit, times, x_out, x_stride, x_column_stride, x_sums_stride, N, D,
            COSINE, UNIT_ROWS, POWERS, HAS_UNIT, TIMES, ROWS, COLUMNS,
        )  # fmt: skip
    else:
        _gradient_of_rows(
            y, y_sums, unit, times, y_out, y_stride, y_column_stride, y_sums_stride, M, D,
            COSINE, UNIT_ROWS, POWERS, HAS_UNIT, TIMES, ROWS, COLUMNS,
        )  # fmt: skip


@triton.jit
def _gradient_of_rows(
    x,
    sums,
    unit,
    times,
    out,  # [N, D]
    stride,
    column_stride,
    sums_stride,
    N,
    D,
    COSINE: tl.constexpr,
    UNIT_ROWS: tl.constexpr,
    POWERS: tl.constexpr,
    HAS_UNIT: tl.constexpr,
    TIMES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = n < N
    rows = tl.minimum(n, N - 1)
    columns = tl.arange(0, COLUMNS)
    DTYPE: tl.constexpr = sums.dtype.element_ty
    factor = tl.full((ROWS,), 1.0, DTYPE)
    along = tl.zeros((ROWS,), DTYPE)
    if COSINE or POWERS:
        squares = tl.zeros((ROWS, COLUMNS), DTYPE)
        largest = tl.zeros((ROWS, COLUMNS), DTYPE)
        products = tl.zeros((ROWS, COLUMNS), DTYPE)
        zeros = tl.zeros((ROWS, COLUMNS), DTYPE)
        for first in range(0, D, COLUMNS):
            d = (first + columns)[None, :].to(tl.int64)
            at = x + rows[:, None] * stride + d * column_stride
            value = tl.load(at, mask=d < D, other=0.0).to(DTYPE)
            squares += value * value
            largest = tl.maximum(largest, tl.abs(value))
            zeros += 0 * value
            at = sums + rows[:, None] * sums_stride + d
            products += value * tl.load(at, mask=d < D, other=0.0)
        norm = square_root(tl.sum(squares, 1))
        if POWERS:
            factor = tl.full((ROWS,), POWER, DTYPE)
            if not UNIT_ROWS:
                factor = row_power(tl.max(largest, 1), not COSINE)
        if COSINE:
            # The gradient of a unit row is orthogonal to it, unless the norm is below the smallest
            # divisor.
            over = reciprocal(norm_divisor(norm, SMALLEST))
            # A row of infinite norm has no direction; an infinite element makes its gradient NaN.
            constant = (norm <= SMALLEST) | (over == 0)
            along = tl.where(constant, tl.sum(zeros, 1), tl.sum(products, 1) * over * over)
            if UNIT_ROWS:
                factor *= over
    if HAS_UNIT:
        factor /= tl.load(unit)
    if TIMES:
        factor *= tl.load(times)
    for first in range(0, D, COLUMNS):
        d = (first + columns)[None, :].to(tl.int64)
        inside = there[:, None] & (d < D)
        at = x + rows[:, None] * stride + d * column_stride
        found = tl.load(sums + rows[:, None] * sums_stride + d, mask=inside, other=0.0)
        if COSINE:
            found -= along[:, None] * tl.load(at, mask=inside, other=0.0).to(DTYPE)
        tl.store(out + n[:, None] * D + d, found * factor[:, None], mask=inside)
