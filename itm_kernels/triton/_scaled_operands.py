"""Operands whose scores are multiplied by a factor per row: cosines without fp32 unit rows.

Rows of bf16, which are exact on tensor cores, and those of tf32 and fp64 stay as they came, and the
factors are 1 / |x|. Rows of fp16 and fp32 are multiplied by a power of two each, so that a row of
any length fits fp16: fp16 rows in one part, exact, fp32 rows in two (three products), which is as
exact as fp32 itself. bf16 parts would need three (six products).

Fine operands, for a softmax whose scale is large:
- bf16 rows are fp16 with powers too, exact but for digits below 2^-38 of a row's length, and so are
  their weights, whose rounding is an eighth of a bf16 gradient's own; that of bf16 weights is as
  large, and in all more than twice eager's error.
- Cosines of fp32, tf32 and fp64 are of unit rows. The rounding of a row's factor meets all its
  scores: with it a converged batch's loss erred four times as much as eager's.

The library multiplies the same rows by weights (`_products`), and `gradient_of_rows` takes powers
and factors back.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton import _operands
from itm_kernels.triton._norms import (
    SMALLEST,
    divided_by_norm,
    norm_divisor,
    power_of_two_scale,
    reciprocal,
    square_root,
    squared_norms,
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
        cosine: the scores are cosines; a row of zeros has cosines of 0. Otherwise dot products.
        fine: see above.
        options: of `_operands.operands`.
    """
    kind = kind_of(x)
    rows = [scaled_rows(x, kind, cosine, fine)]
    rows.append(rows[0] if y is x else scaled_rows(y, kind, cosine, fine))
    tile, precision = _operands.tile_and_precision(kind, x, y, **options)
    return Operands(rows[0][0], rows[1][0], kind, precision, tile, rows[0][1], rows[1][1])


class _Layout(NamedTuple):
    """How rows of a kind are laid out."""

    parts: int  # that are written; 0: the rows stay
    unit_rows: bool  # of length 1, or 2^13 in fp16
    powers: bool  # in fp16: rows that are not unit are multiplied by a power of two each


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
    """Return rows of a kind laid out, `[parts, N, D]`, and their factors `[N]`, or `[0]`."""
    (N, D), (parts, unit_rows, powers) = x.shape, _layout(x, kind, cosine, fine)
    has_factor = powers or (cosine and not unit_rows)
    factor = torch.empty(N if has_factor else 0, dtype=wide_dtype(x), device=x.device)
    if not (cosine or parts):
        return prepare(x, kind), factor
    width, options = D + -D % padded if powers else D, row_blocks(D)
    dtype = torch.float16 if powers else x.dtype
    rows = torch.empty((parts, N, width), dtype=dtype, device=x.device)
    _scale_kernel[(triton.cdiv(N, options["ROWS"]),)](
        x, rows, factor, *x.stride(), N, D, width, PARTS=parts, COSINE=cosine,
        UNIT_ROWS=unit_rows, POWERS=powers, FACTOR=has_factor, **options,
    )  # fmt: skip
    if powers:
        return rows, factor
    return prepare(rows[0] if unit_rows else x, kind), factor


def unit_rows(x: Tensor) -> Tensor:  # [N, D]
    """Return rows of length 1, in fp32 or better."""
    (N, D), options = x.shape, row_blocks(x.shape[1])
    rows = torch.empty((N, D), dtype=wide_dtype(x), device=x.device)
    _scale_kernel[(triton.cdiv(N, options["ROWS"]),)](
        x, rows, rows, *x.stride(), N, D, D, PARTS=1, COSINE=True, UNIT_ROWS=True, POWERS=False,
        FACTOR=False, **options,
    )  # fmt: skip
    return rows


_POWER = tl.constexpr(2.0**13)  # of unit rows in fp16


@triton.jit
def _power(length):
    """Return the power of two that a row is multiplied by: its length is then 2^13 to 2^14.

    A row of finite numbers whose squares are not has an infinite length, and fits too.
    """
    return power_of_two_scale(length, 14)


@triton.jit(do_not_specialize=["N"])
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
    length = square_root(squared_norms(from_row, column_stride, D, columns))
    found = tl.full((ROWS,), 1.0, length.dtype)
    power = found
    if POWERS:
        power = tl.full((ROWS,), _POWER, length.dtype) if UNIT_ROWS else _power(length)
    if COSINE and not UNIT_ROWS:
        found = reciprocal(norm_divisor(length, SMALLEST))
    if FACTOR:
        tl.store(factor + n, found / power, mask=n < N)
    if PARTS > 0:
        for first in range(0, width, COLUMNS):
            d = (first + columns)[None, :].to(tl.int64)
            rest = tl.load(from_row[:, None] + d * column_stride, mask=d < D, other=0.0)
            rest = rest.to(length.dtype)
            if UNIT_ROWS:
                rest = divided_by_norm(rest, length)
            rest *= power[:, None]
            for part in tl.static_range(PARTS):
                high = rest.to(parts.dtype.element_ty)
                at = parts + (n[:, None] + part * N) * width + d
                tl.store(at, high, mask=(n < N)[:, None] & (d < width))
                rest -= high.to(length.dtype)


def gradient_of_rows(
    x: Tensor,  # [N, D] as it came
    pull: Tensor,  # [N, D] sum over m of weight x x's factor x y's factor x y as laid out x unit
    unit: Tensor | None,  # []
    cosine: bool,
    times: Tensor | None = None,  # [] what the gradient is multiplied by
    fine: bool = False,
) -> Tensor:  # [N, D]
    """Return the gradient of x, in its dtype, in one pass over it and one over the pull."""
    N, D = x.shape
    out = torch.empty((N, D), dtype=stored_dtype(x.dtype), device=x.device)
    options, layout = row_blocks(D), _layout(x, kind_of(x), cosine, fine)
    _gradient_kernel[(triton.cdiv(N, options["ROWS"]),)](
        x, pull, pull if unit is None else unit, pull if times is None else times, out,
        *x.stride(), pull.stride(0), N, D, COSINE=cosine, UNIT_ROWS=layout.unit_rows,
        POWERS=layout.powers, HAS_UNIT=unit is not None, TIMES=times is not None, **options,
    )  # fmt: skip
    return out.to(x.dtype)


@triton.jit(do_not_specialize=["N"])
def _gradient_kernel(
    x,
    pull,
    unit,
    times,
    out,  # [N, D]
    stride,
    column_stride,
    pull_stride,
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
    DTYPE: tl.constexpr = pull.dtype.element_ty
    factor = tl.full((ROWS,), 1.0, DTYPE)
    along = tl.zeros((ROWS,), DTYPE)
    if COSINE or POWERS:
        squares = tl.zeros((ROWS, COLUMNS), DTYPE)
        products = tl.zeros((ROWS, COLUMNS), DTYPE)
        zeros = tl.zeros((ROWS, COLUMNS), DTYPE)
        for first in range(0, D, COLUMNS):
            d = (first + columns)[None, :].to(tl.int64)
            at = x + rows[:, None] * stride + d * column_stride
            value = tl.load(at, mask=d < D, other=0.0).to(DTYPE)
            squares += value * value
            zeros += 0 * value
            at = pull + rows[:, None] * pull_stride + d
            products += value * tl.load(at, mask=d < D, other=0.0)
        length = square_root(tl.sum(squares, 1))
        if POWERS:
            factor = tl.full((ROWS,), _POWER, DTYPE) if UNIT_ROWS else _power(length)
        if COSINE:
            # Along itself a unit vector does not move; a row below the smallest length is none.
            over = reciprocal(norm_divisor(length, SMALLEST))
            # Nor has one of infinite length a direction, unless an infinity in it makes it NaN.
            still = (length <= SMALLEST) | (over == 0)
            along = tl.where(still, tl.sum(zeros, 1), tl.sum(products, 1) * over * over)
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
        found = tl.load(pull + rows[:, None] * pull_stride + d, mask=inside, other=0.0)
        if COSINE:
            found -= along[:, None] * tl.load(at, mask=inside, other=0.0).to(DTYPE)
        tl.store(out + n[:, None] * D + d, found * factor[:, None], mask=inside)
