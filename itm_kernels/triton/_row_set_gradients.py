"""Gradients of sets of rows from the library's products of weights and prepared rows."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._norms import SMALLEST, norm_divisor, reciprocal
from itm_kernels.triton._operands import row_blocks, stored_dtype
from itm_kernels.triton._row_sets import RowSets, place, power_of


def gradients(
    context: RowSets,
    query: RowSets,
    of_context: Tensor,  # [N C, D]: weight x both factors x prepared query row x unit
    of_query: Tensor,  # [M Q, D]
    unit: Tensor | None,  # []
    along: Tensor | None = None,  # [M Q]: a multiple of the query row is added to its gradient
) -> tuple[Tensor, Tensor]:  # [N, C, D], [M, Q, D]
    """Return the gradients of the rows in their dtype, 0 for padded rows, in one launch."""
    x, y, dtype = context.rows, query.rows, stored_dtype(context.rows.dtype)
    outs = [torch.empty(rows.shape, dtype=dtype, device=rows.device) for rows in (x, y)]
    totals, options = (of_context.shape[0], of_query.shape[0]), row_blocks(x.shape[2])
    _gradient_kernel[(cdiv(max(totals), options["ROWS"]), 2)](
        x, y, context.counts, query.counts, of_context, of_query,
        of_query if unit is None else unit, context.norm, query.norm,
        of_query if along is None else along, *outs, *x.stride(), *y.stride(), *totals,
        x.shape[1], y.shape[1], x.shape[2], X_COUNTS=context.has_counts, Y_COUNTS=query.has_counts,
        X_POWER=context.largest_power, Y_POWER=query.largest_power, HAS_UNIT=unit is not None,
        ALONG=along is not None, COSINE=context.cosine, POWERS=context.powers, **options,
    )  # fmt: skip
    return outs[0].to(x.dtype), outs[1].to(y.dtype)


@jit(do_not_specialize=["x_total", "y_total"])
def _gradient_kernel(
    x,
    y,
    x_counts,
    y_counts,
    x_sums,  # [N C, D]
    y_sums,  # [M Q, D]
    unit,  # []
    x_norm,
    y_norm,
    along,  # [M Q]
    x_out,  # [N C, D]
    y_out,  # [M Q, D]
    x_set_stride,
    x_stride,
    x_column_stride,
    y_set_stride,
    y_stride,
    y_column_stride,
    x_total,
    y_total,
    C,
    Q,
    D,
    X_COUNTS: tl.constexpr,
    Y_COUNTS: tl.constexpr,
    X_POWER: tl.constexpr,
    Y_POWER: tl.constexpr,
    HAS_UNIT: tl.constexpr,
    ALONG: tl.constexpr,
    COSINE: tl.constexpr,
    POWERS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    if tl.program_id(1) == 0:
        _gradient(
            x, x_counts, x_sums, unit, x_norm, along, x_out, x_set_stride, x_stride,
            x_column_stride, x_total, C, D, X_COUNTS, X_POWER, HAS_UNIT, False, COSINE, POWERS,
            ROWS, COLUMNS,
        )  # fmt: skip
    else:
        _gradient(
            y, y_counts, y_sums, unit, y_norm, along, y_out, y_set_stride, y_stride,
            y_column_stride, y_total, Q, D, Y_COUNTS, Y_POWER, HAS_UNIT, ALONG, COSINE, POWERS,
            ROWS, COLUMNS,
        )  # fmt: skip


@triton.jit
def _gradient(
    x,
    counts,
    sums,
    unit,
    norm,
    along,
    out,
    set_stride,
    stride,
    column_stride,
    total,
    C,
    D,
    HAS_COUNTS: tl.constexpr,
    LARGEST: tl.constexpr,
    HAS_UNIT: tl.constexpr,
    ALONG: tl.constexpr,
    COSINE: tl.constexpr,
    POWERS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    n, of, number, there, exists = place(counts, total, C, ROWS, HAS_COUNTS)
    columns = tl.arange(0, COLUMNS)
    DTYPE: tl.constexpr = norm.dtype.element_ty
    own = tl.load(norm + n, mask=there, other=1.0)
    factor = tl.full((ROWS,), 1.0, DTYPE)
    if POWERS:
        factor = power_of(own, LARGEST)
    if HAS_UNIT:
        factor /= tl.load(unit)
    from_row = x + (of * set_stride + number * stride)[:, None]
    from_sums = sums + n[:, None] * D
    times = tl.zeros((ROWS,), DTYPE)
    if ALONG:
        times = tl.load(along + n, mask=there, other=0.0)
    if COSINE:
        dots = tl.zeros((ROWS, COLUMNS), DTYPE)
        zeros = tl.zeros((ROWS, COLUMNS), DTYPE)
        for first in range(0, D, COLUMNS):
            d = (first + columns)[None, :].to(tl.int64)
            inside = exists[:, None] & (d < D)
            value = tl.load(from_row + d * column_stride, mask=inside, other=0.0).to(DTYPE)
            dots += value * tl.load(from_sums + d, mask=inside, other=0.0)
            zeros += 0 * value
        # The gradient of a unit row is orthogonal to it, unless the norm is below the smallest
        # divisor; a row of infinite norm has no direction.
        over = reciprocal(norm_divisor(own, SMALLEST))
        constant = (own <= SMALLEST) | (over == 0)
        times = tl.where(constant, tl.sum(zeros, 1), -tl.sum(dots, 1) * factor * over * over)
    for first in range(0, D, COLUMNS):
        d = (first + columns)[None, :].to(tl.int64)
        inside = exists[:, None] & (d < D)
        found = tl.load(from_sums + d, mask=inside, other=0.0) * factor[:, None]
        if COSINE or ALONG:
            value = tl.load(from_row + d * column_stride, mask=inside, other=0.0).to(DTYPE)
            found += times[:, None] * value
        # Weights of padded rows are 0, but a row of the other side may be NaN.
        found = tl.where(exists[:, None], found, 0.0)
        tl.store(out + n[:, None] * D + d, found, mask=there[:, None] & (d < D))
