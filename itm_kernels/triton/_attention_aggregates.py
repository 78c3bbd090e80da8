"""Device functions of cosines: their aggregate over a query, and its gradient."""

import triton
import triton.language as tl

from itm_kernels.triton._attention_tiles import LEAST, asked
from itm_kernels.triton._norms import square_root


@triton.jit
def write_cosines(
    own, part, query_norm, column, dots, square, total, within, GRADIENTS: tl.constexpr
):  # fmt: skip
    """Write the cosines of some columns, and for gradients what multiplies theirs.

    The gradient of a cosine to alpha is `one` times s minus `two` times the Gram matrix times
    alpha. Its mean is 0 but for rounding that all rows share, unless the divisor is constant: the
    softmax subtracts this mean, not 0.

    Args:
        own: `[1 or 4 parts]`, to write: cosines `[M Q]`; `one`, `two` (0 if the divisor is
            constant), mean.
        part: elements of a part.
        query_norm: `[M Q]`.
        column: `[K]`.
        dots: `[K]`, sums of alpha times s; in fp64 for gradients.
        square: `[K]`, squared lengths of what is attended to; in fp64 for gradients.
        total: `[K]`, sums of alpha.
        within: `[K]`, which columns to write.
        GRADIENTS: whether gradients are needed.
    """
    DTYPE: tl.constexpr = query_norm.dtype.element_ty
    square = tl.where(square < 0, 0.0, square).to(tl.float64)
    norm = tl.load(query_norm + column, mask=within, other=0.0).to(tl.float64)
    norms = square_root(square) * norm
    least = total.to(tl.float64) * LEAST
    constant = norms < least
    norms = tl.where(constant, least, norms)
    cosine = dots / norms
    tl.store(own + column, cosine.to(DTYPE), mask=within)
    if GRADIENTS:
        one = (1 / norms).to(DTYPE)
        two = tl.where(constant, 0.0, cosine / tl.where(constant, 1.0, square)).to(DTYPE)
        tl.store(own + part + column, one, mask=within)
        tl.store(own + 2 * part + column, two, mask=within)
        # Before these stores, the conversions to fp64 are an error of Triton 3.7.1.
        mean = (one.to(tl.float64) * dots - two.to(tl.float64) * square) / total
        tl.store(own + 3 * part + column, mean.to(DTYPE), mask=within)


@triton.jit
def _sums(cosine, asks, block, Q, scale, AGGREGATE: tl.constexpr, COLUMNS: tl.constexpr):
    """Return sums of cosines, or of exponentials above the largest, which is returned, too.

    The third result tells whether a cosine is NaN.
    """
    DTYPE: tl.constexpr = cosine.dtype.element_ty
    total = tl.zeros(block.shape, DTYPE)
    top = tl.full(block.shape, float("-inf"), DTYPE)
    unknown = tl.zeros(block.shape, tl.int32)
    for first in range(0, Q, COLUMNS):
        q = first + tl.arange(0, COLUMNS)
        there = q[None, :] < asks[:, None]
        value = tl.load(cosine + block[:, None] * Q + q[None, :], mask=there, other=0.0)
        if AGGREGATE == "log_sum_exp" or AGGREGATE == "max":
            value = value * tl.cast(scale, DTYPE) if AGGREGATE == "log_sum_exp" else value
            nan = there & (value != value)
            unknown = tl.maximum(unknown, tl.max(nan.to(tl.int32), 1))
            value = tl.where(there & (value == value), value, float("-inf"))
            higher = tl.maximum(top, tl.max(value, 1))
            if AGGREGATE == "log_sum_exp":
                base = tl.where(higher == float("-inf"), 0.0, higher)
                total = total * tl.exp(top - base) + tl.sum(tl.exp(value - base[:, None]), 1)
            top = higher
        else:
            total += tl.sum(tl.where(there, value, 0.0), 1)
    return total, top, unknown > 0


@triton.jit
def aggregate(
    cosine, query_counts, block, rows, M, Q, scale, HAS_COUNTS: tl.constexpr,
    AGGREGATE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Return the scores of some queries, 0 if the query or the context is empty.

    Args:
        cosine: `[M Q]`, of the context.
        query_counts: `[M]`.
        block: `[K]`, the queries.
        rows: of the context.
        M: queries.
        Q: rows of a padded query.
        scale: of a log-sum-exp.
        HAS_COUNTS: of queries.
        AGGREGATE: how cosines are aggregated.
        COLUMNS: of a query per step.
    """
    DTYPE: tl.constexpr = cosine.dtype.element_ty
    asks = asked(query_counts, block, M, Q, HAS_COUNTS)
    total, top, unknown = _sums(cosine, asks, block, Q, scale, AGGREGATE, COLUMNS)
    there = (asks > 0) & (rows > 0)
    found = total
    if AGGREGATE == "mean":
        found = total / tl.maximum(asks, 1).to(DTYPE)
    if AGGREGATE == "max":
        found = tl.where(unknown, float("nan"), top)
    if AGGREGATE == "log_sum_exp":
        known = there & ~unknown
        found = tl.where(known, top, 0.0) + tl.log(tl.where(known, total, 1.0))
        found = tl.where(unknown, float("nan"), found / tl.cast(scale, DTYPE))
    return tl.where(there, found, 0.0)


@triton.jit
def write_multiples(
    own, multiples, part, query_norm, query_counts, grad, block, rows, M, Q, scale,
    HAS_COUNTS: tl.constexpr, AGGREGATE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write what the gradient of some queries multiplies, from their cosines.

    These are the gradients of cosines, and the multiples of query rows in their own gradients.

    Args:
        own: `[4 parts]`: cosines `[M Q]`; the third part is 0 where a divisor is constant.
        multiples: `[2 parts]`, to write.
        part: elements of a part.
        query_norm: `[M Q]`.
        query_counts: `[M]`.
        grad: `[K]`, of the scores.
        block: `[K]`, the queries.
        rows: of the context.
        M: queries.
        Q: rows of a padded query.
        scale: of a log-sum-exp.
        HAS_COUNTS: of queries.
        AGGREGATE: how cosines are aggregated.
        COLUMNS: of a query per step.
    """
    DTYPE: tl.constexpr = query_norm.dtype.element_ty
    asks = asked(query_counts, block, M, Q, HAS_COUNTS)
    if AGGREGATE == "mean":
        grad /= tl.maximum(asks, 1).to(DTYPE)
    if AGGREGATE == "log_sum_exp":
        # The score of the forward pass would add its rounding to the sum of the shares.
        total, top, unknown = _sums(own, asks, block, Q, scale, AGGREGATE, COLUMNS)
        grad = tl.where(unknown, float("nan"), grad / tl.where(total > 0, total, 1.0))
    winner = tl.full(block.shape, 0, tl.int32) + Q
    if AGGREGATE == "max":
        # NaN wins, as in the forward pass, whose sums have another order.
        top = tl.full(block.shape, float("-inf"), DTYPE)
        for first in range(0, Q, COLUMNS):
            q = first + tl.arange(0, COLUMNS)
            there = q[None, :] < asks[:, None]
            value = tl.load(own + block[:, None] * Q + q[None, :], mask=there, other=float("-inf"))
            value = tl.where(value == value, value, float("inf"))
            higher = tl.max(value, 1)
            index = tl.min(tl.where(there & (value == higher[:, None]), q[None, :], Q), 1)
            winner = tl.where(higher > top, index, winner)
            top = tl.maximum(top, higher)
    for first in range(0, Q, COLUMNS):
        q = first + tl.arange(0, COLUMNS)
        at = block[:, None] * Q + q[None, :]
        there = (q[None, :] < asks[:, None]) & (rows > 0)
        cosine = tl.load(own + at, mask=there, other=0.0)
        two = tl.load(own + 2 * part + at, mask=there, other=0.0)
        of_cosine = grad[:, None] + tl.zeros_like(cosine)
        if AGGREGATE == "log_sum_exp":
            apart = tl.cast(scale, DTYPE) * cosine - top[:, None]
            of_cosine *= tl.exp(tl.where(there, apart, 0.0))
        if AGGREGATE == "max":
            of_cosine = tl.where(q[None, :] == winner[:, None], of_cosine, 0.0)
        of_cosine = tl.where(there, of_cosine, 0.0)
        norm = tl.load(query_norm + at, mask=there, other=1.0)
        along = tl.where(two == 0, 0.0, -of_cosine * cosine / tl.where(two == 0, 1.0, norm * norm))
        mask = (block < M)[:, None] & (q < Q)[None, :]
        to = multiples + at
        tl.store(to, of_cosine, mask=mask)
        tl.store(to + part, along, mask=mask)
