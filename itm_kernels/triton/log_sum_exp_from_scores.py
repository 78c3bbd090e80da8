"""Log-sum-exp of the rows and columns of given scores: a tile is read once and reduced both ways.

A program visits tiles along a stripe of rows. Every thread keeps the maximum and the sum of its
part of each row until the end; a tile leaves the maxima and sums of its columns.

The backward pass reads each score once and writes its gradient once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._given_scores import (
    LANES,
    accurate_exponential,
    all_outside,
    exponential,
    given_scores,
    stripes_of,
    tile_columns,
    tile_of,
)
from itm_kernels.triton._joined_sums import join_sums_kernel, ratio, shift_of
from itm_kernels.triton._launch import cdiv, jit

# Rows and adjacent columns of a thread. With 32 rows the forward pass spills (sm_90).
_FORWARD_TILE = (16, 4)
_BACKWARD_ELEMENTS = 32  # 64 spill


@jit(do_not_specialize=["N", "M", "splits", "tiles"])
def _forward_kernel(
    scores,  # [N, M]
    row_stride,
    column_stride,
    N,
    M,
    scale,  # []
    x_ids,  # [N]
    y_ids,  # [M]
    row,  # [2, splits, N] maxima and sums
    column,  # [2, stripes, width]
    width,  # M, whole tiles
    splits,
    tiles,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    stripe, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    n = stripe * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(n, N - 1)
    row_ids = tl.load(x_ids + rows)
    lowest, highest = tl.min(row_ids, 0), tl.max(row_ids, 0)
    factor = tl.load(scale)
    whole = stripe * ROWS + ROWS <= N
    DTYPE: tl.constexpr = row.dtype.element_ty
    best = tl.full((LANES, ROWS), float("-inf"), DTYPE)
    total = tl.zeros((LANES, ROWS), DTYPE)
    last = tl.minimum(split * tiles + tiles, tl.cdiv(M, LANES * VECTOR))
    for tile in range(split * tiles, last):
        m = tile_columns(tile, LANES, VECTOR)
        columns = tl.minimum(m, M - 1)
        column_ids = tl.load(y_ids + columns)
        at = tile_of(scores, row_stride, column_stride, rows, m)
        complete = whole & (tile * (LANES * VECTOR) + LANES * VECTOR <= M)
        if complete:
            logits = factor * tl.load(at).to(DTYPE)
        else:
            logits = factor * tl.load(at, mask=(m < M)[:, None, :], other=0.0).to(DTYPE)
            logits = tl.where((n < N)[None, :, None], logits, float("-inf"))
            logits = tl.where((m < M)[:, None, :], logits, float("-inf"))
        if all_outside(column_ids, lowest, highest) == 0:
            # Loaded again: kept, 64-bit ids would fill the registers.
            off = tl.load(x_ids + rows)[None, :, None] == tl.load(y_ids + columns)[:, None, :]
            logits = tl.where(off, float("-inf"), logits)
        of_column = tl.max(logits, 1)
        sums = tl.sum(exponential(logits - shift_of(of_column)[:, None, :]), 1)
        to = column + stripe.to(tl.int64) * width + m
        tl.store(to, of_column)
        tl.store(to + tl.cast(tl.cdiv(N, ROWS), tl.int64) * width, sums)
        better = tl.maximum(best, tl.max(logits, 2))
        shift = shift_of(better)
        sums = tl.sum(exponential(logits - shift[:, :, None]), 2)
        total = total * exponential(best - shift) + sums
        best = better
    of_row = tl.max(best, 0)
    sums = tl.sum(total * ratio(best, shift_of(of_row)[None, :]), 0)
    at = row + split.to(tl.int64) * N + n
    tl.store(at, of_row, mask=n < N)
    tl.store(at + tl.cast(splits, tl.int64) * N, sums, mask=n < N)


def log_sum_exp_from_scores_forward(
    scores: Tensor,  # [N, M]
    scale: Tensor,  # []
    x_ids: Tensor,
    y_ids: Tensor,
    positive: Tensor,  # [M]
) -> tuple[Tensor, ...]:  # [N], [M], [M], [N], [M]
    """Return the log-sum-exp of every row and column of the logits, and those of the positives.

    The log-sum-exps are relative to the maxima, which follow the positives' logits.
    """
    given = given_scores(scores)
    N, M = scores.shape
    cut = stripes_of(given, *_FORWARD_TILE)
    row, column = given.empty(2, cut.splits, N), given.empty(2, cut.stripes, cut.width(M))
    of_row, row_highest = given.empty(N), given.empty(N)
    of_column, column_highest, of_positive = (given.empty(M) for _ in range(3))
    _forward_kernel[cut.grid](
        *given, scale, x_ids.contiguous(), y_ids.contiguous(), row, column, column.shape[2],
        cut.splits, cut.tiles, ROWS=cut.rows, LANES=LANES, VECTOR=cut.vector,
    )  # fmt: skip
    join_sums_kernel[(cdiv(max(N, M), 32), 2)](
        *given, scale, positive.contiguous(), row, column, of_row, row_highest, of_column,
        column_highest, of_positive, column.shape[2], cut.splits, cut.stripes, ANCHORS=32, PARTS=64,
    )  # fmt: skip
    return of_row, of_column, of_positive, row_highest, column_highest


@triton.jit
def _softmax_terms(sums, highest, grad, at):
    """Return a shift and a coefficient: the gradient of a logit is the latter times e^(it - shift).

    The sum of no logit, or of -inf only, has no gradient; -inf - -inf would be NaN. The largest
    weights are those of the maxima: with a fast exponential their error was 4 times eager's.
    """
    of_sum, shift = tl.load(sums + at), tl.load(highest + at)
    infinite = tl.abs(of_sum) == float("inf")
    coefficient = tl.load(grad + at) * accurate_exponential(-tl.where(infinite, 0.0, of_sum))
    return tl.where(infinite, float("inf"), shift), coefficient


@jit(do_not_specialize=["N", "M", "splits", "tiles"])
def _backward_kernel(
    scores,  # [N, M]
    row_stride,
    column_stride,
    N,
    M,
    out_stride,  # M, between rows of the gradient
    scale,  # []
    x_ids,
    y_ids,
    positive,  # [M]
    row,  # [N] log-sum-exp
    column,  # [M]
    row_highest,  # [N], the maximum that it is relative to
    column_highest,  # [M]
    grad_row,
    grad_column,
    grad_positive,
    grad_scores,  # [N, M]
    slope,  # [programs], the gradient of the scale
    splits,
    tiles,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    stripe, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    n = stripe * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(n, N - 1)
    row_ids = tl.load(x_ids + rows)
    lowest, highest = tl.min(row_ids, 0), tl.max(row_ids, 0)
    factor = tl.load(scale)
    whole = stripe * ROWS + ROWS <= N
    row_shift, row_term = _softmax_terms(row, row_highest, grad_row, rows)
    DTYPE: tl.constexpr = row.dtype.element_ty
    smallest: tl.constexpr = -1.7e308 if DTYPE == tl.float64 else -3.4e38
    slopes = tl.zeros((LANES,), DTYPE)
    last = tl.minimum(split * tiles + tiles, tl.cdiv(M, LANES * VECTOR))
    for tile in range(split * tiles, last):
        m = tile_columns(tile, LANES, VECTOR)
        columns = tl.minimum(m, M - 1)
        column_ids = tl.load(y_ids + columns)
        column_shift, column_term = _softmax_terms(column, column_highest, grad_column, columns)
        at = tile_of(scores, row_stride, column_stride, rows, m)
        to = tile_of(grad_scores, out_stride, 1, rows, m)
        complete = whole & (tile * (LANES * VECTOR) + LANES * VECTOR <= M)
        if complete:
            found = tl.load(at).to(DTYPE)
        else:
            found = tl.load(at, mask=(m < M)[:, None, :], other=0.0).to(DTYPE)
        logits = factor * found
        weight = row_term[None, :, None] * exponential(logits - row_shift[None, :, None])
        weight += column_term[:, None, :] * exponential(logits - column_shift[:, None, :])
        if all_outside(column_ids, lowest, highest) == 0:
            off = tl.load(x_ids + rows)[None, :, None] == tl.load(y_ids + columns)[:, None, :]
            of = tl.load(positive + columns).to(tl.int32)
            own = rows[None, :, None] == of[:, None, :]
            of_own = tl.load(grad_positive + columns)[:, None, :]
            # An excluded score may be infinite.
            found = tl.where(off, tl.where(own, found, 0.0), found)
            weight = tl.where(off, tl.where(own, of_own, 0.0), weight)
        if complete:
            tl.store(to, (factor * weight).to(grad_scores.dtype.element_ty))
        else:
            # A row beyond the last repeats it, and writes the same values.
            values = (factor * weight).to(grad_scores.dtype.element_ty)
            tl.store(to, values, mask=(m < M)[:, None, :])
            found = tl.where((n < N)[None, :, None], found, 0.0)
        # A score of -inf has a weight of 0.
        slopes += tl.sum(tl.sum(weight * tl.maximum(found, smallest), 2), 1)
    tl.store(slope + tl.program_id(0), tl.sum(slopes, 0))


def log_sum_exp_from_scores_backward(
    grad_row: Tensor,  # [N]
    grad_column: Tensor,  # [M]
    grad_positive: Tensor,  # [M]
    row: Tensor,  # [N]
    column: Tensor,  # [M]
    row_highest: Tensor,  # [N]
    column_highest: Tensor,  # [M]
    scores: Tensor,  # [N, M]
    scale: Tensor,  # []
    x_ids: Tensor,
    y_ids: Tensor,
    positive: Tensor,  # [M]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of scores and scale, with weights from the saved log-sum-exps."""
    given = given_scores(scores)
    vector = 16 // scores.element_size()
    cut = stripes_of(given, _BACKWARD_ELEMENTS // vector, vector)
    grad_scores = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    slope = given.empty(*cut.grid)
    sums = row, column, row_highest, column_highest, grad_row, grad_column, grad_positive
    _backward_kernel[cut.grid](
        *given, scores.shape[1], scale, x_ids.contiguous(), y_ids.contiguous(),
        positive.contiguous(), *(t.contiguous() for t in sums), grad_scores, slope, cut.splits,
        cut.tiles, ROWS=cut.rows, LANES=LANES, VECTOR=cut.vector,
    )  # fmt: skip
    return grad_scores, slope.sum(dtype=torch.float64).to(scale.dtype)
