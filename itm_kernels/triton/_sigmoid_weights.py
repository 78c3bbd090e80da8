"""Weights and sums of the sigmoid loss, computed and stored for 32 columns of a tile at a time.

Like `_softmax_weights`: with all columns at once, 128 x 128 scores in 8 warps need 255 registers,
and a processor holds one program, whose products and exponentials take turns. In 128 registers it
holds two.
"""

import triton
import triton.language as tl

from itm_kernels.triton._logistic import (
    exp_in_base,
    logistic,
    logits,
    negate_positives,
    softplus,
)
from itm_kernels.triton._products import store_parts, whole_groups
from itm_kernels.triton._score_tiles import PIECE, folded, halves


@triton.jit
def store_sigmoid_weights(
    scores,  # [R, WIDTH] of columns from `first` on, without factors
    sums,  # three of `[R, 8]`, over the columns before `first`
    r,  # [R] rows of the block of weights
    first,
    R,
    M,
    first_row,  # of x
    bias,
    of_rows,  # [R] each: factor of logits, factor of weights
    row_ids,
    of_columns,  # pointers: id, factor, positive, gradient
    weights,  # pointer, stride of parts, stride of rows
    ORDINARY: tl.constexpr,  # no positive, no excluded pair
    FACTORS: tl.constexpr,
    HAS_IDS: tl.constexpr,
    WHOLE: tl.constexpr,
    WEIGHTS: tl.constexpr,  # parts; 0: none
    PRECISION: tl.constexpr,
):
    """Store the weights; return `sums` plus the sums of losses, weights and weights x scores.

    Factors of rows multiply the logits, the weights and the last sums: a thread holds few rows.
    """
    WIDTH: tl.constexpr = scores.shape[1]
    # Masks and a second part take more registers.
    MOST: tl.constexpr = PIECE // (1 if ORDINARY else 2) // (2 if WEIGHTS > 1 else 1)
    if WIDTH > MOST:
        left, right = halves(scores)
        sums = store_sigmoid_weights(
            left, sums, r, first, R, M, first_row, bias, of_rows, row_ids, of_columns, weights,
            ORDINARY, FACTORS, HAS_IDS, WHOLE, WEIGHTS, PRECISION,
        )  # fmt: skip
        return store_sigmoid_weights(
            right, sums, r, first + WIDTH // 2, R, M, first_row, bias, of_rows, row_ids, of_columns,
            weights, ORDINARY, FACTORS, HAS_IDS, WHOLE, WEIGHTS, PRECISION,
        )  # fmt: skip
    else:
        m = first + tl.arange(0, WIDTH)
        rows = first_row + tl.minimum(r, R - 1)
        columns = m if ORDINARY else tl.minimum(m, M - 1)
        of_logit, of_weight = of_rows
        y_ids, y_factor, positive, grad = of_columns
        if FACTORS:
            factor = tl.load(y_factor + columns)
            scores *= factor[None, :]
        SPECIAL: tl.constexpr = not ORDINARY
        IDS: tl.constexpr = HAS_IDS and SPECIAL
        z, scores, own = logits(
            scores, r, m, R, M, rows, columns, of_logit, bias, positive, row_ids, y_ids, SPECIAL,
            IDS,
        )  # fmt: skip
        small = exp_in_base(-tl.abs(z))
        loss, total, slope = sums
        if WHOLE:
            loss += folded(softplus(z, small))
        if WEIGHTS > 0:
            weight = logistic(z, small)
            weight = negate_positives(weight, own, rows, columns, SPECIAL, IDS)
            if not WHOLE:
                weight *= tl.load(grad + columns)[None, :]
            total += folded(weight)
            slope += folded(weight * scores)
            weight *= of_weight[:, None]
            if FACTORS:
                weight *= factor[None, :]
            pointer, part, stride = weights
            at = pointer + r[:, None].to(tl.int64) * stride + m[None, :]
            stored = None if ORDINARY else (r < R)[:, None] & whole_groups(m, M)[None, :]
            store_parts(at, part, weight, stored, WEIGHTS, PRECISION)
        return loss, total, slope
