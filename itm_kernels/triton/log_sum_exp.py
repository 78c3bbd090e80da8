"""Log-sum-exp of rows and of columns from one pass.

A tile leaves one number for each of its rows and columns: the log-sum-exp of what it saw.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import operands, wide_dtype
from itm_kernels.triton._pairs import id_arguments
from itm_kernels.triton._tiles import place, same_id, score_tile
from itm_kernels.triton._weights import no_scores, products_of_weights


@triton.jit
def _log_sum(logits, AXIS: tl.constexpr):
    shift = _shift(tl.max(logits, AXIS))
    return _logarithm(shift, tl.sum(tl.exp(logits - tl.expand_dims(shift, AXIS)), AXIS))


@triton.jit
def _shift(largest):
    # An infinite maximum would leave inf - inf; without it infinities come out as they are.
    return tl.where(tl.abs(largest) == float("inf"), tl.zeros_like(largest), largest)


@triton.jit
def _logarithm(shift, total):
    empty = total == 0
    return tl.where(empty, float("-inf"), shift + tl.log(tl.where(empty, 1.0, total)))


@triton.jit
def _forward_kernel(
    x,
    y,
    scale,  # []
    x_ids,
    y_ids,
    row,  # [column tiles, N]
    column,  # [row tiles, M]
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
    logits = tl.where(off, float("-inf"), tl.load(scale) * scores)
    tl.store(row + column_tile.to(tl.int64) * N + n, _log_sum(logits, 1), mask=n < N)
    tl.store(column + row_tile.to(tl.int64) * M + m, _log_sum(logits, 0), mask=m < M)


@triton.jit
def _of_tiles(tile_sums, found, tiles, anchors, a, TILES: tl.constexpr):
    DTYPE: tl.constexpr = found.dtype.element_ty
    at = tl.minimum(a, anchors - 1)[None, :]
    largest = tl.full((a.shape[0],), float("-inf"), DTYPE)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)[:, None].to(tl.int64)
        sums = tl.load(tile_sums + tile * anchors + at, tile < tiles, float("-inf"))
        largest = tl.maximum(largest, tl.max(sums, 0))
    shift = _shift(largest)
    total = tl.zeros((a.shape[0],), tl.float64)  # tiles grow in number with the batch
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)[:, None].to(tl.int64)
        sums = tl.load(tile_sums + tile * anchors + at, tile < tiles, float("-inf"))
        total += tl.sum(tl.exp(sums - shift[None, :]), 0).to(tl.float64)
    tl.store(found + a, _logarithm(shift, total.to(DTYPE)), mask=a < anchors)


@triton.jit
def _finish_kernel(
    row,  # [column tiles, N]
    column,  # [row tiles, M]
    of_row,  # [N]
    of_column,  # [M]
    N,
    M,
    row_tiles,
    column_tiles,
    ANCHORS: tl.constexpr,
    TILES: tl.constexpr,
):
    a = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS)
    if tl.program_id(1) == 0:
        _of_tiles(row, of_row, column_tiles, N, a, TILES)
    else:
        _of_tiles(column, of_column, row_tiles, M, a, TILES)


def log_sum_exp_forward(
    x: Tensor,  # [N, D]
    y: Tensor,  # [M, D]
    scale: Tensor,  # []
    x_ids: Tensor | None,
    y_ids: Tensor | None,
    keep_scores: bool,  # False
) -> tuple[Tensor, Tensor, Tensor]:  # [N], [M], [0, 0]
    """Return the log-sum-exp of every row and column of the scaled scores."""
    both = operands(x, y)
    N, M = both.shape
    dtype, device = wide_dtype(x), x.device
    row = torch.empty((triton.cdiv(M, both.tile.columns), N), dtype=dtype, device=device)
    column = torch.empty((triton.cdiv(N, both.tile.rows), M), dtype=dtype, device=device)
    _forward_kernel[both.tile.programs(N, M)](
        **both.arguments(), **id_arguments(both, x_ids, y_ids),
        scale=scale, row=row, column=column, N=N, M=M,
    )  # fmt: skip
    of_row, of_column = row.new_empty(N), row.new_empty(M)
    _finish_kernel[(triton.cdiv(max(N, M), 64), 2)](
        row, column, of_row, of_column, N, M, column.shape[0], row.shape[0], ANCHORS=64, TILES=16
    )
    return of_row, of_column, no_scores(x)


@triton.jit
def _weights_kernel(
    x,
    y,
    scale,
    x_ids,
    y_ids,
    row,  # [N] log-sum-exp
    column,  # [M]
    grad_row,
    grad_column,
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
    of_row = tl.exp(tl.where(on, logits - tl.load(row + rows)[:, None], float("-inf")))
    of_column = tl.exp(tl.where(on, logits - tl.load(column + columns)[None, :], float("-inf")))
    weight = tl.load(grad_row + rows)[:, None] * of_row
    weight += tl.load(grad_column + columns)[None, :] * of_column
    weight = tl.where(on, weight, 0.0)
    tl.store(weights + r[:, None].to(tl.int64) * M + m[None, :], factor * weight, mask=inside)
    tl.store(slope + tl.program_id(0), tl.sum(tl.where(on, weight * scores, 0.0)))


def log_sum_exp_backward(
    grad_row: Tensor,  # [N]
    grad_column: Tensor,  # [M]
    row: Tensor,  # [N]
    column: Tensor,  # [M]
    scores: Tensor,  # [0, 0]
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    x_ids: Tensor | None,
    y_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, y and scale: softmax weights from the saved log-sum-exp."""
    both = operands(x, y, narrow=True)
    grads = {"grad_row": grad_row.contiguous(), "grad_column": grad_column.contiguous()}
    slopes = []

    def fill(first: int, weights: Tensor) -> None:
        R, M = weights.shape
        grid = both.tile.programs(R, M)
        slopes.append(torch.empty(grid, dtype=wide_dtype(x), device=x.device))
        _weights_kernel[grid](
            **both.arguments(), **id_arguments(both, x_ids, y_ids), **grads, scale=scale, row=row,
            column=column, weights=weights, slope=slopes[-1], first=first, R=R, M=M,
        )  # fmt: skip

    grad_x, grad_y = products_of_weights(x, y, fill)
    grad_scale = torch.cat(slopes).sum(dtype=torch.float64)
    return grad_x.to(x.dtype), grad_y.to(y.dtype), grad_scale.to(scale.dtype)
