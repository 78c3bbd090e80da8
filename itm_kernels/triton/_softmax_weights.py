"""Softmax weights over rows and columns, computed and stored for 32 columns of a tile at a time.

A thread holds two rows of a tile but a quarter of its columns, and every column needs seven values.
For all columns they do not fit the registers with the scores: 128 x 128 scores in 8 warps cause 74
to 287 spills on sm_90. The scores are therefore halved, which moves no value between threads, until
32 columns are left; their weights are stored before the values of the next columns are loaded.
128 x 256 scores then compile without a spill.
"""

import triton
import triton.language as tl

from itm_kernels.triton._log_sums import SPREAD, finite_or
from itm_kernels.triton._products import store_parts, whole_groups

# Columns at a time: with 64 columns, 128 x 256 scores cause up to 99 spills on sm_90.
_PIECE = tl.constexpr(32)


@triton.jit
def common_base(row, row_highest, column, column_highest):
    """Return a base for all exponents of a tile, and whether it is safe for all of them.

    Rows and columns share one exponential per logit unless their log-sum-exps are far apart.
    """
    base = tl.max(finite_or(row_highest + row, float("-inf")), 0)
    base = tl.where(base == float("-inf"), 0.0, base)
    of_rows, of_columns = (
        below_base(base, row, row_highest),
        below_base(base, column, column_highest),
    )
    most = tl.maximum(tl.max(finite_or(of_rows, 0.0), 0), tl.max(finite_or(of_columns, 0.0), 0))
    return base, most < SPREAD


@triton.jit
def below_base(base, relative, highest):
    """Return base - log-sum-exp; 0 for an empty sum."""
    # The difference of two logits first: it is exact if they are close.
    return tl.where(highest + relative == float("-inf"), 0.0, (base - highest) - relative)


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
    products,  # [R, WIDTH] of columns from `first` on
    r,  # [R] rows of the block of weights
    first,
    R,
    M,
    tile,  # base, whether it is common, whether no pair is excluded, scale, scale x unit
    of_rows,  # [R] each: index, log-sum-exp, maximum, gradient, gradient x exp(gap), id, factor
    of_columns,  # pointers: log-sum-exp, maximum, gradient, id, factor, positive, its gradient
    weights,  # pointer, stride of parts, stride of rows
    FACTORS: tl.constexpr,
    HAS_IDS: tl.constexpr,
    OF_POSITIVE: tl.constexpr,
    WEIGHTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store the softmax weights of a tile; return the sums `[R]` of weights x scores."""
    WIDTH: tl.constexpr = products.shape[1]
    if WIDTH > _PIECE:
        HALF: tl.constexpr = WIDTH // 2
        left, right = products.reshape((products.shape[0], 2, HALF)).permute((0, 2, 1)).split()
        slope = store_softmax_weights(
            left, r, first, R, M, tile, of_rows, of_columns, weights,
            FACTORS, HAS_IDS, OF_POSITIVE, WEIGHTS, PRECISION,
        )  # fmt: skip
        return slope + store_softmax_weights(
            right, r, first + HALF, R, M, tile, of_rows, of_columns, weights,
            FACTORS, HAS_IDS, OF_POSITIVE, WEIGHTS, PRECISION,
        )  # fmt: skip
    else:
        m = first + tl.arange(0, WIDTH)
        columns = tl.minimum(m, M - 1)
        base, common, all_on, scale, times = tile
        rows, row, row_highest, of_row, scaled_grad, x_id, x_factor = of_rows
        column, column_highest, of_column, y_ids, y_factor, positive, of_positive = of_columns
        scores = products
        if FACTORS:
            scores *= x_factor[:, None]
            factor = tl.load(y_factor + columns)
            scores *= factor[None, :]
        logits = scale * scores
        lse, highest = tl.load(column + columns), tl.load(column_highest + columns)
        grad = tl.load(of_column + columns)
        if common:
            weight = tl.exp(logits - base)
            weight *= (
                scaled_grad[:, None] + (grad * tl.exp(below_base(base, lse, highest)))[None, :]
            )
        else:
            row, row_highest = finite_shift(row, row_highest)
            lse, highest = finite_shift(lse, highest)
            weight = of_row[:, None] * tl.exp((logits - row_highest[:, None]) - row[:, None])
            weight += grad[None, :] * tl.exp((logits - highest[None, :]) - lse[None, :])
        if all_on:
            slope = tl.sum(weight * scores, 1)
        else:
            inside = (r < R)[:, None] & (m < M)[None, :]
            on = inside
            if HAS_IDS:
                on &= x_id[:, None] != tl.load(y_ids + columns)[None, :]
            weight = tl.where(on, weight, 0.0)
            if OF_POSITIVE:
                own = (rows[:, None] == tl.load(positive + columns)[None, :]) & inside
                weight = tl.where(own, tl.load(of_positive + columns)[None, :], weight)
                on |= own
            slope = tl.sum(tl.where(on, weight * scores, 0.0), 1)
        weight *= times
        if FACTORS:
            weight *= x_factor[:, None]
            weight *= factor[None, :]
        pointer, part, stride = weights
        at = pointer + r[:, None].to(tl.int64) * stride + m[None, :]
        stored = (r < R)[:, None] & whole_groups(m, M)[None, :]
        store_parts(at, part, weight, stored, WEIGHTS, PRECISION)
        return slope
