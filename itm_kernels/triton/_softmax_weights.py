"""Softmax weights over rows and columns, computed and stored for 32 columns of a tile at a time.

A thread holds two rows of a tile but a quarter of its columns, and every column needs seven values.
For all columns they do not fit the registers with the scores: 128 x 128 scores in 8 warps cause 74
to 287 spills on sm_90. The scores are therefore halved, which moves no value between threads, until
32 columns are left; their weights are stored before the values of the next columns are loaded.

A weight is the sum of two exponentials. With one exponential, relative to a base of the tile, every
thread would compute the factors of its columns, which takes as long; and tiles whose sums differ by
more than e^60 would need another path.
"""

import triton
import triton.language as tl

from itm_kernels.triton._log_sums import exp
from itm_kernels.triton._products import store_parts, whole_groups
from itm_kernels.triton._score_tiles import PIECE, folded, halves


@triton.jit
def finite_shift(relative, highest):
    """Return log-sum-exps for differences; those of an empty sum make all weights zero."""
    nothing = highest + relative == float("-inf")
    return tl.where(nothing, float("inf"), relative), tl.where(nothing, 0.0, highest)


@triton.jit
def disjoint_ids(some, others):
    """Return whether the intervals of two sets of ids do not overlap, so that none are equal."""
    return (tl.max(some, 0) < tl.min(others, 0)) | (tl.min(some, 0) > tl.max(others, 0))


@triton.jit
def store_softmax_weights(
    scores,  # [R, WIDTH] of columns from `first` on, without factors
    slope,  # [R, 8], sums over the columns before `first`
    r,  # [R] rows of the block of weights
    first,
    R,
    M,
    first_row,  # of x
    # [R] each: log-sum-exp and maximum of `finite_shift`, gradient, factors of logits and weights.
    of_rows,
    row_ids,
    of_columns,  # pointers: log-sum-exp, maximum, gradient, id, factor, positive, its gradient
    weights,  # pointer, stride of parts, stride of rows
    ORDINARY: tl.constexpr,  # no pair is excluded, no positive
    FACTORS: tl.constexpr,
    HAS_IDS: tl.constexpr,
    OF_POSITIVE: tl.constexpr,
    WEIGHTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store the softmax weights of a tile; return `slope` plus the sums of weights x scores.

    Factors of rows multiply the logits, the weights and the sums: a thread holds few rows.
    """
    WIDTH: tl.constexpr = scores.shape[1]
    if WIDTH > (PIECE if ORDINARY else PIECE // 2):  # masks take more registers
        left, right = halves(scores)
        slope = store_softmax_weights(
            left, slope, r, first, R, M, first_row, of_rows, row_ids, of_columns,
            weights, ORDINARY, FACTORS, HAS_IDS, OF_POSITIVE, WEIGHTS, PRECISION,
        )  # fmt: skip
        return store_softmax_weights(
            right, slope, r, first + WIDTH // 2, R, M, first_row, of_rows, row_ids, of_columns,
            weights, ORDINARY, FACTORS, HAS_IDS, OF_POSITIVE, WEIGHTS, PRECISION,
        )  # fmt: skip
    else:
        m = first + tl.arange(0, WIDTH)
        columns = m if ORDINARY else tl.minimum(m, M - 1)
        row, row_highest, row_grad, of_logit, of_weight = of_rows
        column, column_highest, of_column, y_ids, y_factor, positive, of_positive = of_columns
        if FACTORS:
            factor = tl.load(y_factor + columns)
            scores *= factor[None, :]
        logits = scores * of_logit[:, None]
        lse, highest = finite_shift(tl.load(column + columns), tl.load(column_highest + columns))
        grad = tl.load(of_column + columns)
        # The difference of two logits first: it is exact if they are close.
        weight = row_grad[:, None] * exp((logits - row_highest[:, None]) - row[:, None])
        weight += grad[None, :] * exp((logits - highest[None, :]) - lse[None, :])
        if ORDINARY:
            slope += folded(weight * scores)
        else:
            rows = first_row + tl.minimum(r, R - 1)
            inside = (r < R)[:, None] & (m < M)[None, :]
            on = inside
            if HAS_IDS:
                on &= tl.load(row_ids + rows)[:, None] != tl.load(y_ids + columns)[None, :]
            weight = tl.where(on, weight, 0.0)
            if OF_POSITIVE:
                own = (rows[:, None] == tl.load(positive + columns)[None, :]) & inside
                weight = tl.where(own, tl.load(of_positive + columns)[None, :], weight)
                on |= own
            slope += folded(tl.where(on, weight * scores, 0.0))
        weight *= of_weight[:, None]
        if FACTORS:
            weight *= factor[None, :]
        pointer, part, stride = weights
        at = pointer + r[:, None].to(tl.int64) * stride + m[None, :]
        stored = None if ORDINARY else (r < R)[:, None] & whole_groups(m, M)[None, :]
        store_parts(at, part, weight, stored, WEIGHTS, PRECISION)
        return slope
