"""Log-sum-exp of the rows and columns of given scores: a tile is read once and reduced both ways.

The backward pass reads each score once and writes its gradient once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._given_scores import SIDE, given_scores, load_scores, store_gradient
from itm_kernels.triton._launch import jit
from itm_kernels.triton._log_sums import log_sums_of_tiles, shares_exponentials, tile_log_sums
from itm_kernels.triton._score_tiles import program_tile, same_id


@jit(do_not_specialize=["N", "M"])
def _forward_kernel(
    scores,  # [N, M]
    row_stride,
    column_stride,
    N,
    M,
    scale,  # []
    x_ids,  # [N]
    y_ids,  # [M]
    positive,  # [M]
    row,  # [2, column tiles, N]
    column,  # [2, row tiles, M]
    of_positive,  # [M]
    SIDE: tl.constexpr,
    SHARED: tl.constexpr,
):
    n, m, row_tile, column_tile = program_tile(tl.program_id(0), SIDE, SIDE, N, M)
    rows, columns = tl.minimum(n, N - 1), tl.minimum(m, M - 1)
    logits = tl.load(scale) * load_scores(scores, row_stride, column_stride, rows, columns)
    of = tl.load(positive + columns)
    here = (of >= row_tile * SIDE) & (of < tl.minimum(N, row_tile * SIDE + SIDE)) & (m < M)
    if tl.sum(here.to(tl.int32), 0) > 0:
        own = n[:, None] == of[None, :]
        tl.store(of_positive + m, tl.sum(tl.where(own, logits, 0.0), 0), mask=here)
    if row_tile == 0:
        nobody = tl.full((SIDE,), float("nan"), logits.dtype)
        tl.store(of_positive + m, nobody, mask=((of < 0) | (of >= N)) & (m < M))
    off = (n >= N)[:, None] | (m >= M)[None, :] | same_id(rows, columns, x_ids, y_ids, True)
    logits = tl.where(off, float("-inf"), logits)
    row_shift, row_sum, column_shift, column_sum = tile_log_sums(logits, SHARED)
    at = row + column_tile.to(tl.int64) * N + n
    tl.store(at, row_shift, mask=n < N)
    tl.store(at + tl.cast(tl.cdiv(M, SIDE), tl.int64) * N, row_sum, mask=n < N)
    at = column + row_tile.to(tl.int64) * M + m
    tl.store(at, column_shift, mask=m < M)
    tl.store(at + tl.cast(tl.cdiv(N, SIDE), tl.int64) * M, column_sum, mask=m < M)


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
    row_tiles, column_tiles = given.tiles
    row, column = given.empty(2, column_tiles, given.N), given.empty(2, row_tiles, given.M)
    of_positive = given.empty(given.M)
    _forward_kernel[given.grid](
        *given, scale, x_ids.contiguous(), y_ids.contiguous(), positive.contiguous(),
        row, column, of_positive, SIDE=SIDE, SHARED=shares_exponentials(),
    )  # fmt: skip
    of_row, row_highest, of_column, column_highest = log_sums_of_tiles(row, column)
    return of_row, of_column, of_positive, row_highest, column_highest


@triton.jit
def _below_sum(sums, at):
    # The sum of no logit, or of -inf only, has no gradient; -inf - -inf would be NaN.
    found = tl.load(sums + at)
    return tl.where(found == float("-inf"), float("inf"), found)


@jit(do_not_specialize=["N", "M"])
def _backward_kernel(
    scores,  # [N, M]
    row_stride,
    column_stride,
    N,
    M,
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
    SIDE: tl.constexpr,
):
    n, m, _, _ = program_tile(tl.program_id(0), SIDE, SIDE, N, M)
    rows, columns = tl.minimum(n, N - 1), tl.minimum(m, M - 1)
    found = load_scores(scores, row_stride, column_stride, rows, columns)
    off = same_id(rows, columns, x_ids, y_ids, True)
    own = rows[:, None] == tl.load(positive + columns)[None, :]
    factor = tl.load(scale)
    logits = tl.where(off, float("-inf"), factor * tl.where(off, 0.0, found))
    # Differences are taken first: they are exact for two close scores.
    of_row = (logits - tl.load(row_highest + rows)[:, None]) - _below_sum(row, rows)[:, None]
    weight = tl.load(grad_row + rows)[:, None] * tl.exp(of_row)
    highest = tl.load(column_highest + columns)[None, :]
    of_column = (logits - highest) - _below_sum(column, columns)[None, :]
    weight += tl.load(grad_column + columns)[None, :] * tl.exp(of_column)
    of_own = tl.load(grad_positive + columns)[None, :]
    weight = tl.where(off, tl.where(own, of_own, 0.0), weight)
    store_gradient(grad_scores, factor * weight, n, m, N, M)
    # Rows and columns beyond the last repeat it. A score that is excluded may be infinite; one of
    # -inf has a weight of 0.
    on = (n < N)[:, None] & (m < M)[None, :] & (own | ~off) & (found != float("-inf"))
    slopes = tl.where(on, weight, 0.0) * tl.where(on, found, 0.0)
    tl.store(slope + tl.program_id(0), tl.sum(tl.sum(slopes, 1)))


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
    grad_scores = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    slope = given.empty(*given.grid)
    sums = row, column, row_highest, column_highest, grad_row, grad_column, grad_positive
    _backward_kernel[given.grid](
        *given, scale, x_ids.contiguous(), y_ids.contiguous(), positive.contiguous(),
        *(t.contiguous() for t in sums), grad_scores, slope, SIDE=SIDE,
    )  # fmt: skip
    return grad_scores, slope.sum(dtype=torch.float64).to(scale.dtype)
