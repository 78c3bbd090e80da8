"""Operands whose scores are multiplied by a factor per row: cosines without unit rows.

Rows of bf16, which are exact on tensor cores, and those of tf32 and fp64 stay as they came, and the
factors are 1 / |x|. Rows of fp16 and fp32 are multiplied by a power of two each, so that a row of
any length fits fp16: fp16 rows in one part, exact, fp32 rows in two (three products), which is as
exact as fp32 itself. bf16 parts would need three (six products).

The library multiplies the same rows by weights (`_products`), and `gradient_of_rows` takes the
powers and factors back.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton import _launch
from itm_kernels.triton._launch import (
    PADDED,
    Operands,
    kind_of,
    prepare,
    row_blocks,
    stored_dtype,
    wide_dtype,
)
from itm_kernels.triton._tiles import (
    SMALLEST,
    divisor,
    power_above,
    reciprocal,
    root,
    squares_of,
)


def operands(x: Tensor, y: Tensor, cosine: bool, **options: Any) -> Operands:
    """Prepare rows as `_launch.operands`, with factors that `_tiles.scaled` multiplies scores by.

    Args:
        x: `[N, D]`.
        y: `[M, D]`.
        cosine: the scores are cosines; a row of zeros has cosines of 0. Otherwise dot products.
        options: of `_launch.operands`.
    """
    kind = kind_of(x)
    rows = [scaled_rows(x, kind, cosine)]
    rows.append(rows[0] if y is x else scaled_rows(y, kind, cosine))
    tile, precision = _launch.tile_and_precision(kind, x, y, **options)
    return Operands(rows[0][0], rows[1][0], kind, precision, tile, rows[0][1], rows[1][1])


def _parts(x: Tensor, kind: str) -> int:
    """Return in how many fp16 parts rows are laid out, 0 for rows that stay."""
    return 2 if kind == "parts" else int(x.dtype == torch.float16)


def scaled_rows(x: Tensor, kind: str, cosine: bool) -> tuple[Tensor, Tensor]:
    """Return rows of a kind laid out, `[parts, N, D]`, and their factors `[N]`, or `[0]`."""
    N, D = x.shape
    parts = _parts(x, kind)
    factor = torch.empty(N if cosine or parts else 0, dtype=wide_dtype(x), device=x.device)
    if not (cosine or parts):
        return prepare(x, kind), factor
    width, options = D + -D % PADDED, row_blocks(D)
    rows = torch.empty((parts, N, width), dtype=torch.float16, device=x.device)
    _scale_kernel[(triton.cdiv(N, options["ROWS"]),)](
        x, rows, factor, *x.stride(), N, D, WIDTH=width, PARTS=parts, COSINE=cosine, **options
    )
    return rows if parts else prepare(x, kind), factor


@triton.jit
def _power(length):
    """Return the power of two that a row is multiplied by: its length is then 2^13 to 2^14.

    A row of finite numbers whose squares are not has an infinite length, and fits too.
    """
    return power_above(length, 14)


@triton.jit
def _scale_kernel(
    x,
    parts,  # [PARTS, N, WIDTH] fp16
    factor,  # [N]
    stride,
    column_stride,
    N,
    D,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    COSINE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    from_row = x + tl.minimum(n, N - 1) * stride
    length = root(squares_of(from_row, column_stride, D, columns))
    found = tl.full((ROWS,), 1.0, length.dtype)
    if COSINE:
        found = reciprocal(divisor(length))
    if PARTS > 0:
        power = _power(length)
        found /= power
        for first in range(0, WIDTH, COLUMNS):
            d = (first + columns)[None, :].to(tl.int64)
            rest = tl.load(from_row[:, None] + d * column_stride, mask=d < D, other=0.0)
            rest = rest.to(length.dtype) * power[:, None]
            for part in tl.static_range(PARTS):
                high = rest.to(tl.float16)
                at = parts + (n[:, None] + part * N) * WIDTH + d
                tl.store(at, high, mask=(n < N)[:, None] & (d < WIDTH))
                rest -= high.to(length.dtype)
    tl.store(factor + n, found, mask=n < N)


def gradient_of_rows(
    x: Tensor,  # [N, D] as it came
    pull: Tensor,  # [N, D] sum over m of weight x x's factor x y's factor x y as laid out x unit
    unit: Tensor | None,  # []
    cosine: bool,
    times: Tensor | None = None,  # [] what the gradient is multiplied by
) -> Tensor:  # [N, D]
    """Return the gradient of x, in its dtype, in one pass over it and one over the pull."""
    N, D = x.shape
    out = torch.empty((N, D), dtype=stored_dtype(x.dtype), device=x.device)
    options = row_blocks(D)
    _gradient_kernel[(triton.cdiv(N, options["ROWS"]),)](
        x, pull, pull if unit is None else unit, pull if times is None else times, out,
        *x.stride(), pull.stride(0), N, D, COSINE=cosine, POWERS=_parts(x, kind_of(x)) > 0,
        UNIT=unit is not None, TIMES=times is not None, **options,
    )  # fmt: skip
    return out.to(x.dtype)


@triton.jit
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
    POWERS: tl.constexpr,
    UNIT: tl.constexpr,
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
        for first in range(0, D, COLUMNS):
            d = (first + columns)[None, :].to(tl.int64)
            at = x + rows[:, None] * stride + d * column_stride
            value = tl.load(at, mask=d < D, other=0.0).to(DTYPE)
            squares += value * value
            at = pull + rows[:, None] * pull_stride + d
            products += value * tl.load(at, mask=d < D, other=0.0)
        length = root(tl.sum(squares, 1))
        if POWERS:
            factor = _power(length)
        if COSINE:
            # Along itself a unit vector does not move; a row below the smallest length is none.
            over = reciprocal(divisor(length))
            along = tl.where(length > SMALLEST, tl.sum(products, 1) * over * over, 0.0)
    if UNIT:
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
