"""Operands whose scores are multiplied by a factor per row: cosines without fp32 unit rows.

bf16 rows are exact on tensor cores. They, tf32 and fp64 rows are used unchanged, and the factors
are 1 / |x|. fp16 and fp32 rows are multiplied by a power of two per row, so that a row of any norm
fits fp16: fp16 rows are one exact part, fp32 rows two parts (three products), which are as accurate
as fp32 itself. bf16 would need three parts (six products). The power is that of the largest
element, which forward and backward kernels find exactly; norms are sums, whose rounding differs
between kernels, and a norm of about 1 lies between two powers. Weights that multiply a row are
divided by its power. A limit keeps the weights of rows of zeros, and of tiny rows, among those of
other rows; cosines need none, since the gradient of a row grows as the row shrinks.

Fine operands, for a softmax with a large scale:
- bf16 rows are also converted to fp16 with powers of two, exact but for bits below 2^-38 of the
  largest element. Their weights are fp16, and the rounding error is an eighth of that of a bf16
  gradient. The error of bf16 weights is as large as that, and in total exceeds twice eager's.
- Cosines of fp32, tf32 and fp64 use unit rows. The rounding of a row's factor affects all its
  scores: with factors, the loss of a converged batch had four times the error of eager's.

The library multiplies the same rows by weights (`_products`); `_operand_gradients` then removes the
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
    wide_dtype,
)


def scaled_operands(
    x: Tensor,
    y: Tensor,
    cosine: bool,
    fine: bool = False,
    weighted: bool = True,
    **options: Any,
) -> Operands:
    """Prepare rows as `_operands.operands`, with factors for `_score_tiles.scale_scores`.

    Args:
        x: `[N, D]`.
        y: `[M, D]`.
        cosine: the scores are cosines, 0 for a zero row; otherwise dot products.
        fine: see above.
        weighted: weights multiply the rows, in a gradient.
        options: of `_operands.operands`.
    """
    kind = kind_of(x)
    sides = [x] if y is x else [x, y]
    rows = _scaled(sides, kind, cosine, fine, limited=weighted and not cosine)
    tile, precision = _operands.tile_and_precision(kind, x, y, **options)
    (x_rows, x_factor), (y_rows, y_factor) = rows[0], rows[-1]
    return Operands(x_rows, y_rows, kind, precision, tile, x_factor, y_factor)


class _Layout(NamedTuple):
    """The representation of rows."""

    parts: int  # that are written; 0: the rows are used unchanged
    unit_rows: bool  # norms are 1, or 2^13 in fp16
    powers: bool  # fp16; rows other than unit rows are multiplied by a power of two per row


def layout_of(x: Tensor, kind: str, cosine: bool, fine: bool) -> _Layout:
    unit_rows = cosine and fine
    if kind == "parts":
        return _Layout(2, unit_rows, True)
    if kind == "half":
        powers = fine or x.dtype == torch.float16
        return _Layout(int(powers), False, powers)
    return _Layout(int(unit_rows), unit_rows, False)


def scaled_rows(
    x: Tensor,
    kind: str,
    cosine: bool,
    fine: bool = False,
    weighted: bool = True,
    padded: int = PADDED,
) -> tuple[Tensor, Tensor]:
    """Return prepared rows `[parts, N, D]` and their factors `[N]`, or `[0]` for none."""
    return _scaled([x], kind, cosine, fine, weighted and not cosine, padded)[0]


def _scaled(
    sides: list[Tensor],
    kind: str,
    cosine: bool,
    fine: bool,
    limited: bool,
    padded: int = PADDED,
) -> list[tuple[Tensor, Tensor]]:
    """Return the rows and factors of one side, or of two sides in one launch."""
    x, y = sides[0], sides[-1]
    D, (parts, unit_rows, powers) = x.shape[1], layout_of(x, kind, cosine, fine)
    has_factor = powers or (cosine and not unit_rows)
    factors = [
        torch.empty(each.shape[0] if has_factor else 0, dtype=wide_dtype(x), device=x.device)
        for each in sides
    ]
    if not (cosine or parts):
        return [(prepare(each, kind), factor) for each, factor in zip(sides, factors, strict=True)]
    width, options = D + -D % padded if powers else D, row_blocks(D)
    dtype = torch.float16 if powers else x.dtype
    rows = [
        torch.empty((parts, each.shape[0], width), dtype=dtype, device=x.device) for each in sides
    ]
    N, M = x.shape[0], y.shape[0]
    _scale_kernel[(cdiv(max(N, M), options["ROWS"]), len(sides))](
        x, y, rows[0], rows[-1], factors[0], factors[-1], *x.stride(), *y.stride(), N, M, D, width,
        PARTS=parts, COSINE=cosine, UNIT_ROWS=unit_rows, POWERS=powers, LIMITED=limited,
        FACTOR=has_factor, **options,
    )  # fmt: skip
    if not powers:
        rows = [prepare(r[0] if unit_rows else s, kind) for r, s in zip(rows, sides, strict=True)]
    return list(zip(rows, factors, strict=True))


def unit_rows(x: Tensor) -> Tensor:  # [N, D]
    """Return unit rows in at least fp32."""
    (N, D), options = x.shape, row_blocks(x.shape[1])
    rows = torch.empty((N, D), dtype=wide_dtype(x), device=x.device)
    _scale_kernel[(cdiv(N, options["ROWS"]),)](
        x, x, rows, rows, rows, rows, *x.stride(), *x.stride(), N, N, D, D, PARTS=1, COSINE=True,
        UNIT_ROWS=True, POWERS=False, LIMITED=False, FACTOR=False, **options,
    )  # fmt: skip
    return rows


POWER = tl.constexpr(2.0**13)  # the norm of unit rows in fp16
# Rows above 2^-24 = 6e-8 keep 22 bits in two parts, and so do the weights of a row of zeros beside
# those of rows of norm 1.
LARGEST_POWER = tl.constexpr(2.0**28)


@triton.jit
def row_power(largest, LIMITED: tl.constexpr):
    """Return the power of two that scales a row's largest element to between 2^13 and 2^14."""
    power = power_of_two_scale(largest.to(tl.float32), 14)
    return tl.minimum(power, LARGEST_POWER) if LIMITED else power


@jit(do_not_specialize=["N", "M"])
def _scale_kernel(
    x,
    y,
    x_parts,  # [PARTS, N, width]
    y_parts,  # [PARTS, M, width]
    x_factor,  # [N]
    y_factor,  # [M]
    x_stride,
    x_column_stride,
    y_stride,
    y_column_stride,
    N,
    M,
    D,
    width,
    PARTS: tl.constexpr,
    COSINE: tl.constexpr,
    UNIT_ROWS: tl.constexpr,
    POWERS: tl.constexpr,
    LIMITED: tl.constexpr,
    FACTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    if tl.program_id(1) == 0:
        _scale_rows(
            x, x_parts, x_factor, x_stride, x_column_stride, N, D, width,
            PARTS, COSINE, UNIT_ROWS, POWERS, LIMITED, FACTOR, ROWS, COLUMNS,
        )  # fmt: skip
    else:
        _scale_rows(
            y, y_parts, y_factor, y_stride, y_column_stride, M, D, width,
            PARTS, COSINE, UNIT_ROWS, POWERS, LIMITED, FACTOR, ROWS, COLUMNS,
        )  # fmt: skip


@triton.jit
def _scale_rows(
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
    LIMITED: tl.constexpr,
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
        power = tl.full((ROWS,), POWER, norm.dtype) if UNIT_ROWS else row_power(largest, LIMITED)
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
