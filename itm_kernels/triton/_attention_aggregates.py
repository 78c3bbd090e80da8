"""Device functions between cosines and scores: the aggregate of a query, and its gradient."""

import triton
import triton.language as tl

from itm_kernels.triton._attention_tiles import LEAST, asked


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
    total = tl.zeros(block.shape, DTYPE)
    top = tl.full(block.shape, float("-inf"), DTYPE)
    unknown = tl.zeros(block.shape, tl.int32)
    factor = tl.cast(scale, DTYPE)
    for first in range(0, Q, COLUMNS):
        q = first + tl.arange(0, COLUMNS)
        there = q[None, :] < asks[:, None]
        value = tl.load(cosine + block[:, None] * Q + q[None, :], mask=there, other=0.0)
        if AGGREGATE == "log_sum_exp" or AGGREGATE == "max":
            value = value * factor if AGGREGATE == "log_sum_exp" else value
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
    both = (asks > 0) & (rows > 0)
    found = total
    if AGGREGATE == "mean":
        found = total / tl.maximum(asks, 1).to(DTYPE)
    if AGGREGATE == "max":
        found = tl.where(unknown > 0, float("nan"), top)
    if AGGREGATE == "log_sum_exp":
        known = both & (unknown == 0)
        found = (tl.where(known, top, 0.0) + tl.log(tl.where(known, total, 1.0))) / factor
        found = tl.where(unknown > 0, float("nan"), found)
    return tl.where(both, found, 0.0)


@triton.jit
def write_multiples(
    own, multiples, part, query_norm, query_counts, grad, score, block, rows, M, Q, scale,
    HAS_COUNTS: tl.constexpr, AGGREGATE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write what the gradient of some queries multiplies, from their cosines.

    These are the multiples of s and of the Gram matrix times alpha in the gradient of alpha, the
    dot product of alpha and that gradient, and the multiple of a query row in its own gradient.

    Args:
        own: `[3 parts]`: cosines `[M Q]`, lengths of what is attended to, least divisors.
        multiples: `[4 parts]`, to write.
        part: elements of a part.
        query_norm: `[M Q]`.
        query_counts: `[M]`.
        grad: `[K]`, of the scores.
        score: `[K]`.
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
        length = tl.load(own + part + at, mask=there, other=1.0)
        least = tl.load(own + 2 * part + at, mask=there, other=1.0)
        of_cosine = grad[:, None] + tl.zeros_like(cosine)
        if AGGREGATE == "log_sum_exp":
            apart = tl.where(there, cosine - score[:, None], 0.0)
            of_cosine *= tl.exp(tl.cast(scale, DTYPE) * apart)
        if AGGREGATE == "max":
            of_cosine = tl.where(q[None, :] == winner[:, None], of_cosine, 0.0)
        of_cosine = tl.where(there, of_cosine, 0.0)
        norm = tl.load(query_norm + at, mask=there, other=1.0)
        norms = length * norm
        constant = norms < least
        two = of_cosine * cosine / tl.where(constant, 1.0, length * length)
        # The gradient of alpha is orthogonal to it, unless the divisor is constant.
        level = tl.where(constant, of_cosine * cosine / (least / LEAST), 0.0)
        along = -of_cosine * cosine / tl.where(constant, 1.0, norm * norm)
        mask = (block < M)[:, None] & (q < Q)[None, :]
        to = multiples + at
        tl.store(to, of_cosine / tl.where(constant, least, norms), mask=mask)
        tl.store(to + part, tl.where(constant, 0.0, two), mask=mask)
        tl.store(to + 2 * part, level, mask=mask)
        tl.store(to + 3 * part, tl.where(constant, 0.0, along), mask=mask)
