"""Log-sum-exp of rows and of columns from one pass.

A tile leaves two numbers for each of its rows and columns: the highest logit that it saw, and the
log-sum-exp relative to it. One number for both would lose the digits that a loss is made of.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import Operands, operands, wide_dtype
from itm_kernels.triton._pairs import id_arguments
from itm_kernels.triton._tiles import place, same_id, score_tile
from itm_kernels.triton._weights import no_scores, products_of_weights


@triton.jit
def _log_sum(logits, AXIS: tl.constexpr):
    shift = _shift(tl.max(logits, AXIS))
    return shift, _logarithm(tl.sum(tl.exp(logits - tl.expand_dims(shift, AXIS)), AXIS))


@triton.jit
def _shift(largest):
    # An infinite maximum would leave inf - inf; without it infinities come out as they are.
    return tl.where(tl.abs(largest) == float("inf"), tl.zeros_like(largest), largest)


@triton.jit
def _logarithm(total):
    empty = total == 0
    return tl.where(empty, float("-inf"), tl.log(tl.where(empty, 1.0, total)))


@triton.jit
def _forward_kernel(
    x,
    y,
    scale,  # []
    x_ids,
    y_ids,
    positive,  # [M]
    row,  # [2, column tiles, N]
    column,  # [2, row tiles, M]
    of_positive,  # [M]
    x_stride,
    y_stride,
    x_part,
    y_part,
    N,
    M,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    HAS_IDS: tl.constexpr,
    OF_POSITIVE: tl.constexpr,
):
    n, m, row_tile, column_tile = place(tl.program_id(0), ROWS, COLUMNS, N, M)
    rows, columns = tl.minimum(n, N - 1), tl.minimum(m, M - 1)
    scores = score_tile(
        x, y, x_stride, y_stride, x_part, y_part, D, rows, columns,
        DEPTH, PARTS, PRECISION, ALIGN, EVEN,
    )  # fmt: skip
    off = (n >= N)[:, None] | (m >= M)[None, :]
    if HAS_IDS:
        off |= same_id(rows, columns, x_ids, y_ids, HAS_IDS)
    logits = tl.load(scale) * scores
    if OF_POSITIVE:
        own = n[:, None] == tl.load(positive + columns)[None, :]
        here = (tl.sum(own.to(tl.int32), 0) > 0) & (m < M)
        tl.store(of_positive + m, tl.sum(tl.where(own, logits, 0.0), 0), mask=here)
    logits = tl.where(off, float("-inf"), logits)
    shift, log_sum = _log_sum(logits, 1)
    at = row + column_tile.to(tl.int64) * N + n
    tl.store(at, shift, mask=n < N)
    tl.store(at + tl.cast(tl.cdiv(M, COLUMNS), tl.int64) * N, log_sum, mask=n < N)
    shift, log_sum = _log_sum(logits, 0)
    at = column + row_tile.to(tl.int64) * M + m
    tl.store(at, shift, mask=m < M)
    tl.store(at + tl.cast(tl.cdiv(N, ROWS), tl.int64) * M, log_sum, mask=m < M)


@triton.jit
def _of_tiles(tile_sums, found, found_highest, tiles, anchors, a, TILES: tl.constexpr):
    DTYPE: tl.constexpr = found.dtype.element_ty
    at = tl.minimum(a, anchors - 1)[None, :]
    skip = tl.cast(tiles, tl.int64) * anchors
    largest = tl.full((a.shape[0],), float("-inf"), DTYPE)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)[:, None].to(tl.int64)
        place = tile_sums + tile * anchors + at
        sums = tl.load(place + skip, tile < tiles, float("-inf"))
        # A tile without a logit has a shift that says nothing.
        shift = tl.load(place, tile < tiles, 0.0)
        shift = tl.where(sums == float("-inf"), float("-inf"), shift)
        largest = tl.maximum(largest, tl.max(shift, 0))
    shift = _shift(largest)
    total = tl.zeros((a.shape[0],), tl.float64)  # tiles grow in number with the batch
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)[:, None].to(tl.int64)
        place = tile_sums + tile * anchors + at
        sums = tl.load(place + skip, tile < tiles, float("-inf"))
        sums += tl.load(place, tile < tiles, 0.0) - shift[None, :]
        total += tl.sum(tl.exp(sums), 0).to(tl.float64)
    tl.store(found + a, _logarithm(total.to(DTYPE)), mask=a < anchors)
    tl.store(found_highest + a, shift, mask=a < anchors)


@triton.jit
def _finish_kernel(
    row,  # [2, column tiles, N]
    column,  # [2, row tiles, M]
    of_row,  # [N]
    row_highest,  # [N]
    of_column,  # [M]
    column_highest,  # [M]
    N,
    M,
    row_tiles,
    column_tiles,
    ANCHORS: tl.constexpr,
    TILES: tl.constexpr,
):
    a = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS)
    if tl.program_id(1) == 0:
        _of_tiles(row, of_row, row_highest, column_tiles, N, a, TILES)
    else:
        _of_tiles(column, of_column, column_highest, row_tiles, M, a, TILES)


def log_sum_exp_forward(
    x: Tensor,  # [N, D]
    y: Tensor,  # [M, D]
    scale: Tensor,  # []
    x_ids: Tensor | None,
    y_ids: Tensor | None,
    positive: Tensor | None,  # [M]
    keep_scores: bool,  # False
) -> tuple[Tensor, ...]:  # [N], [M], [M] or [0], [N], [M], [0, 0]
    """Return the log-sum-exp of every row and column of the scaled scores, and the positives.

    Sums are relative to the highest logits, which come behind the positives' logits.
    """
    both = operands(x, y)
    N, M = both.shape
    dtype, device = wide_dtype(x), x.device
    row = torch.empty((2, triton.cdiv(M, both.tile.columns), N), dtype=dtype, device=device)
    column = torch.empty((2, triton.cdiv(N, both.tile.rows), M), dtype=dtype, device=device)
    of_positive = row.new_full((0 if positive is None else M,), torch.nan)
    _forward_kernel[both.tile.programs(N, M)](
        **both.arguments(), **id_arguments(both, x_ids, y_ids), **_positives(both, positive),
        scale=scale, row=row, column=column, of_positive=of_positive, N=N, M=M,
    )  # fmt: skip
    of_row, row_highest = row.new_empty(N), row.new_empty(N)
    of_column, column_highest = row.new_empty(M), row.new_empty(M)
    _finish_kernel[(triton.cdiv(max(N, M), 64), 2)](
        row, column, of_row, row_highest, of_column, column_highest, N, M,
        column.shape[1], row.shape[1], ANCHORS=64, TILES=16,
    )  # fmt: skip
    return of_row, of_column, of_positive, row_highest, column_highest, no_scores(x)


def _positives(both: Operands, positive: Tensor | None) -> dict[str, object]:
    stand_in = both.x if positive is None else positive.contiguous()
    return {"positive": stand_in, "OF_POSITIVE": positive is not None}


@triton.jit
def _weights_kernel(
    x,
    y,
    scale,
    x_ids,
    y_ids,
    positive,  # [M]
    row,  # [N] log-sum-exp
    column,  # [M]
    row_highest,  # [N] what it is relative to
    column_highest,  # [M]
    grad_row,
    grad_column,
    grad_positive,
    weights,  # [R, M] of rows from `first` on
    slope,  # [programs] of the scale
    x_stride,
    y_stride,
    x_part,
    y_part,
    first,
    R,
    M,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    HAS_IDS: tl.constexpr,
    OF_POSITIVE: tl.constexpr,
):
    r, m, _, _ = place(tl.program_id(0), ROWS, COLUMNS, R, M)
    rows, columns = first + tl.minimum(r, R - 1), tl.minimum(m, M - 1)
    scores = score_tile(
        x, y, x_stride, y_stride, x_part, y_part, D, rows, columns,
        DEPTH, PARTS, PRECISION, ALIGN, EVEN,
    )  # fmt: skip
    inside = (r < R)[:, None] & (m < M)[None, :]
    on = inside
    if HAS_IDS:
        on &= ~same_id(rows, columns, x_ids, y_ids, HAS_IDS)
    factor = tl.load(scale)
    logits = factor * scores
    # Differences first: that of two near logits is exact.
    of_row = (logits - tl.load(row_highest + rows)[:, None]) - tl.load(row + rows)[:, None]
    of_row = tl.exp(tl.where(on, of_row, float("-inf")))
    of_column = logits - tl.load(column_highest + columns)[None, :]
    of_column -= tl.load(column + columns)[None, :]
    of_column = tl.exp(tl.where(on, of_column, float("-inf")))
    weight = tl.load(grad_row + rows)[:, None] * of_row
    weight += tl.load(grad_column + columns)[None, :] * of_column
    weight = tl.where(on, weight, 0.0)
    if OF_POSITIVE:
        own = (rows[:, None] == tl.load(positive + columns)[None, :]) & inside
        weight = tl.where(own, tl.load(grad_positive + columns)[None, :], weight)
        on |= own
    tl.store(weights + r[:, None].to(tl.int64) * M + m[None, :], factor * weight, mask=inside)
    tl.store(slope + tl.program_id(0), tl.sum(tl.where(on, weight * scores, 0.0)))


def log_sum_exp_backward(
    grad_row: Tensor,  # [N]
    grad_column: Tensor,  # [M]
    grad_positive: Tensor,  # [M] or [0]
    row: Tensor,  # [N]
    column: Tensor,  # [M]
    row_highest: Tensor,  # [N]
    column_highest: Tensor,  # [M]
    scores: Tensor,  # [0, 0]
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    x_ids: Tensor | None,
    y_ids: Tensor | None,
    positive: Tensor | None,  # [M]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, y and scale: softmax weights from the saved log-sum-exp."""
    both = operands(x, y, narrow=True)
    arguments = {
        **{**both.arguments(), **id_arguments(both, x_ids, y_ids), **_positives(both, positive)},
        **{"grad_row": grad_row.contiguous(), "grad_column": grad_column.contiguous()},
        **{"grad_positive": grad_positive.contiguous(), "scale": scale},
        **{"row": row.contiguous(), "row_highest": row_highest.contiguous()},
        **{"column": column.contiguous(), "column_highest": column_highest.contiguous()},
    }
    slopes = []

    def fill(first: int, weights: Tensor) -> None:
        R, M = weights.shape
        grid = both.tile.programs(R, M)
        slopes.append(torch.empty(grid, dtype=wide_dtype(x), device=x.device))
        _weights_kernel[grid](**arguments, weights=weights, slope=slopes[-1], first=first, R=R, M=M)

    grad_x, grad_y = products_of_weights(x, y, fill)
    grad_scale = torch.cat(slopes).sum(dtype=torch.float64)
    return grad_x.to(x.dtype), grad_y.to(y.dtype), grad_scale.to(scale.dtype)
