"""Operands whose scores are multiplied by a factor per row: cosines without fp32 unit rows.

bf16 rows are exact on tensor cores. They, tf32 and fp64 rows are used unchanged, and the factors
are 1 / |x|. fp16 and fp32 rows are multiplied by a power of two per row, so that a row of any norm
fits fp16: fp16 rows are one exact part, fp32 rows two parts (three products), which are as accurate
as fp32 itself. bf16 would need three parts (six products). The power is that of the largest
element, which forward and backward kernels find exactly; norms are sums, whose rounding differs
between kernels, and a norm of about 1 lies between two powers.

Fine operands, for a softmax with a large scale:
- bf16 rows are also converted to fp16 with powers of two, exact but for bits below 2^-38 of the
  largest element. Their weights are fp16, and the rounding error is an eighth of that of a bf16
  gradient. The error of bf16 weights is as large as that, and in total exceeds twice eager's.
- Cosines of fp32, tf32 and fp64 use unit rows. The rounding of a row's factor affects all its
  scores: with factors, the loss of a converged batch had four times the error of eager's.

The library multiplies the same rows by weights (`_products`); `gradient_of_rows` then removes the
powers of two and the factors.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton import _operands
from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._norms import (
    SMALLEST,
    divided_by_norm,
    norm_divisor,
    power_of_two_scale,
    reciprocal,
    square_root,
    squared_norms_and_largest,
)
from itm_kernels.triton._operands import (
    PADDED,
    Operands,
    kind_of,
    prepare,
    row_blocks,
    stored_dtype,
    wide_dtype,
)


def scaled_operands(
    x: Tensor, y: Tensor, cosine: bool, fine: bool = False, **options: Any
) -> Operands:
    """Prepare rows as `_operands.operands`, with factors for `_score_tiles.scale_scores`.

    Args:
        x: `[N, D]`.
        y: `[M, D]`.
        cosine: the scores are cosines, 0 for a zero row; otherwise dot products.
        fine: see above.
        options: of `_operands.operands`.
    """
    kind = kind_of(x)
    rows = [scaled_rows(x, kind, cosine, fine)]
    rows.append(rows[0] if y is x else scaled_rows(y, kind, cosine, fine))
    tile, precision = _operands.tile_and_precision(kind, x, y, **options)
    return Operands(rows[0][0], rows[1][0], kind, precision, tile, rows[0][1], rows[1][1])


class _Layout(NamedTuple):
    """The representation of rows."""

    parts: int  # that are written; 0: the rows are used unchanged
    unit_rows: bool  # norms are 1, or 2^13 in fp16
    powers: bool  # fp16; rows other than unit rows are multiplied by a power of two per row


def _layout(x: Tensor, kind: str, cosine: bool, fine: bool) -> _Layout:
    unit_rows = cosine and fine
    if kind == "parts":
        return _Layout(2, unit_rows, True)
    if kind == "half":
        powers = fine or x.dtype == torch.float16
        return _Layout(int(powers), False, powers)
    return _Layout(int(unit_rows), unit_rows, False)


def scaled_rows(
    x: Tensor, kind: str, cosine: bool, fine: bool = False, padded: int = PADDED
) -> tuple[Tensor, Tensor]:
    """Return prepared rows `[parts, N, D]` and their factors `[N]`, or `[0]` for none."""
    (N, D), (parts, unit_rows, powers) = x.shape, _layout(x, kind, cosine, fine)
    has_factor = powers or (cosine and not unit_rows)
    factor = torch.empty(N if has_factor else 0, dtype=wide_dtype(x), device=x.device)
    if not (cosine or parts):
        return prepare(x, kind), factor
    width, options = D + -D % padded if powers else D, row_blocks(D)
    dtype = torch.float16 if powers else x.dtype
    rows = torch.empty((parts, N, width), dtype=dtype, device=x.device)
    _scale_kernel[(cdiv(N, options["ROWS"]),)](
        x, rows, factor, *x.stride(), N, D, width, PARTS=parts, COSINE=cosine,
        UNIT_ROWS=unit_rows, POWERS=powers, FACTOR=has_factor, **options,
    )  # fmt: skip
    if powers:
        return rows, factor
    return prepare(rows[0] if unit_rows else x, kind), factor


def unit_rows(x: Tensor) -> Tensor:  # [N, D]
    """Return unit rows in at least fp32."""
    (N, D), options = x.shape, row_blocks(x.shape[1])
    rows = torch.empty((N, D), dtype=wide_dtype(x), device=x.device)
    _scale_kernel[(cdiv(N, options["ROWS"]),)](
        x, rows, rows, *x.stride(), N, D, D, PARTS=1, COSINE=True, UNIT_ROWS=True, POWERS=False,
        FACTOR=False, **options,
    )  # fmt: skip
    return rows


_POWER = tl.constexpr(2.0**13)  # the norm of unit rows in fp16


@triton.jit
def _power(largest):
    """Return the power of two that scales a row's largest element to between 2^13 and 2^14."""
    return power_of_two_scale(largest.to(tl.float32), 14)


@jit(do_not_specialize=["N"])
def _scale_kernel(
    x,
    parts,  # [PARTS, N, width]
    factor,  # [N]
    stride,
    column_stride,
    N,
    D,
    width,
    PARTS: tl.constexpr,
    COSINE: tl.constexpr,
    UNIT_ROWS: tl.constexpr,
    POWERS: tl.constexpr,
    FACTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    from_row = x + tl.minimum(n, N - 1) * stride
    squares, largest = squared_norms_and_largest(from_row, column_stride, D, columns)
    norm = square_root(squares)
    found = tl.full((ROWS,), 1.0, norm.dtype)
    power = found
    if POWERS:
        power = tl.full((ROWS,), _POWER, norm.dtype) if UNIT_ROWS else _power(largest)
    if COSINE and not UNIT_ROWS:
        found = reciprocal(norm_divisor(norm, SMALLEST))
    if FACTOR:
        tl.store(factor + n, found / power, mask=n < N)
    if PARTS > 0:
        for first in range(0, width, COLUMNS):
            d = (first + columns)[None, :].to(tl.int64)
            rest = tl.load(from_row[:, None] + d * column_stride, mask=d < D, other=0.0)
            rest = rest.to(norm.dtype)
            if UNIT_ROWS:
                rest = divided_by_norm(rest, norm)
            rest *= power[:, None]
            for part in tl.static_range(PARTS):
                high = rest.to(parts.dtype.element_ty)
                at = parts + (n[:, None] + part * N) * width + d
                tl.store(at, high, mask=(n < N)[:, None] & (d < width))
                rest -= high.to(norm.dtype)


def gradient_of_rows(
    x: Tensor,  # [N, D], the input
    sums: Tensor,  # [N, D], over m: weight x both factors x prepared row of y x unit
    unit: Tensor | None,  # []
    cosine: bool,
    times: Tensor | None = None,  # [], a factor of the gradient
    fine: bool = False,
) -> Tensor:  # [N, D]
    """Return the gradient of x, in its dtype, from one pass over x and one over the sums."""
    N, D = x.shape
    out = torch.empty((N, D), dtype=stored_dtype(x.dtype), device=x.device)
    options, layout = row_blocks(D), _layout(x, kind_of(x), cosine, fine)
    _gradient_kernel[(cdiv(N, options["ROWS"]),)](
        x, sums, sums if unit is None else unit, sums if times is None else times, out,
        *x.stride(), sums.stride(0), N, D, COSINE=cosine, UNIT_ROWS=layout.unit_rows,
        POWERS=layout.powers, HAS_UNIT=unit is not None, TIMES=times is not None, **options,
    )  # fmt: skip
    return out.to(x.dtype)


@jit(do_not_specialize=["N"])
def _gradient_kernel(
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
            factor = tl.full((ROWS,), _POWER, DTYPE) if UNIT_ROWS else _power(tl.max(largest, 1))
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
