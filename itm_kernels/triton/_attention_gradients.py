"""Device function that writes the gradients of the products of cross attention."""

import triton
import triton.language as tl

from itm_kernels.triton._attention_tiles import (
    LEAST,
    SLOPE,
    asked,
    clipped,
    normalised,
    tile_of_products,
)
from itm_kernels.triton._products import store_parts


@triton.jit
def write_weights(
    products, norm, alpha, times_gram, own, of_cosine, own_part, weights, part, stride,
    context_factor, query_factor, query_counts, n, contexts, block, rows, M, C, Q, smooth,
    HAS_COUNTS: tl.constexpr, CLIPPED: tl.constexpr, NORM: tl.constexpr, PARTS: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Write the gradients of products, times both factors; return the largest finite one.

    In place of the Gram matrix times alpha, write the weighted alpha whose product with alpha is
    the gradient of the Gram matrix.

    Args:
        products: `[n C, M Q]`.
        norm: of `write_norms`.
        alpha: `[n C, M Q]`.
        times_gram: `[n C, M Q]`, overwritten.
        own: `[4 parts]`, of which the last three multiply the gradients of cosines.
        of_cosine: `[M Q]`, gradients of cosines.
        own_part: elements of a part.
        weights: `[PARTS, n C, M Q]`, to write; may be the products.
        part: elements between parts of the weights.
        stride: elements between rows of the weights.
        context_factor: `[n C]`.
        query_factor: `[M Q]`.
        query_counts: `[M]`.
        n: the context.
        contexts: n C.
        block: `[K]`, the queries.
        rows: of the context.
        M: queries.
        C: rows of a padded context.
        Q: rows of a padded query.
        smooth: inverse temperature.
        HAS_COUNTS: of queries.
        CLIPPED: of `normalised`.
        NORM: of `normalised`.
        PARTS: of `store_parts`.
        PRECISION: of `store_parts`.
        ROWS: per step.
        COLUMNS: of a query per step.
        WHOLE: a query has at most COLUMNS rows.
    """
    QUERIES: tl.constexpr = block.shape[0]
    SIZE: tl.constexpr = QUERIES * COLUMNS
    DTYPE: tl.constexpr = products.dtype.element_ty
    columns = tl.cast(M, tl.int64) * Q
    asks = asked(query_counts, block, M, Q, HAS_COUNTS)
    most = tl.zeros((SIZE,), DTYPE)
    ONCE: tl.constexpr = WHOLE or NORM == "none"
    for row in range(0, C, ROWS):
        c = row + tl.arange(0, ROWS)
        factor = tl.load(context_factor + n * C + c, mask=c < rows, other=0.0)
        dots = tl.zeros((ROWS, QUERIES), tl.float64 if NORM == "l2norm" else DTYPE)
        squares = tl.zeros((ROWS, QUERIES), tl.float64)
        # First the sums over the query that its normalisation needs, then the gradients; in one
        # step if the query is whole.
        for step in range(1 if ONCE else 0, 2):
            for first in range(0, Q, COLUMNS):
                q = first + tl.arange(0, COLUMNS)
                column = tl.reshape(block[:, None] * Q + q[None, :], (SIZE,))
                m = tl.reshape(block[:, None] + tl.zeros_like(q)[None, :], (SIZE,))
                there = tl.reshape(q[None, :] < asks[:, None], (SIZE,))
                inside = (c < rows)[:, None] & there[None, :]
                of_query = tl.load(query_factor + column, mask=there, other=0.0)
                s, norms, total = tile_of_products(
                    products, norm, contexts, n * C + c, factor, of_query, column, m, inside, M,
                    columns, CLIPPED, NORM,
                )  # fmt: skip
                at = own + own_part + column
                one = tl.load(at, mask=there, other=0.0)
                two = tl.load(at + own_part, mask=there, other=0.0)
                mean = tl.load(at + 2 * own_part, mask=there, other=0.0)
                to = ((n * C + c) * columns)[:, None] + column[None, :]
                share = tl.load(alpha + to, mask=inside, other=0.0)
                share *= tl.load(of_cosine + column, mask=there, other=0.0)[None, :]
                turned = tl.load(times_gram + to, mask=inside, other=0.0)
                of_alpha = one[None, :] * s - two[None, :] * turned - mean[None, :]
                # Of the normalised products.
                grad = share * of_alpha * tl.cast(smooth, DTYPE)
                y = normalised(s, norms, total, CLIPPED, NORM)
                if NORM == "l2norm":
                    # The gradient of a query of one row is 0: the difference of two numbers that
                    # cancel, divided by the norm. fp64 keeps it below the error of the rest.
                    y = clipped(s, CLIPPED).to(tl.float64)
                    grad = grad.to(tl.float64)
                if NORM != "none" and (WHOLE or step == 0):
                    kept = tl.reshape(tl.where(inside, grad * y, 0.0), (ROWS, QUERIES, COLUMNS))
                    dots += tl.sum(kept, 2)
                    if NORM == "l2norm":
                        squares += tl.sum(tl.reshape(y * y, (ROWS, QUERIES, COLUMNS)), 2)
                if ONCE or step == 1:
                    spread = dots
                    if NORM == "l2norm":
                        # y / (norm + LEAST) grows by 1 / norm along itself, not at norm 0.
                        root = tl.sqrt(squares)
                        over = 1 / (root + LEAST)
                        spread = tl.where(
                            root == 0, 0.0, dots * over / tl.where(root == 0, 1.0, root)
                        )
                        over = tl.broadcast_to(over[:, :, None], (ROWS, QUERIES, COLUMNS))
                        over = tl.reshape(over, (ROWS, SIZE))
                    spread = tl.broadcast_to(spread[:, :, None], (ROWS, QUERIES, COLUMNS))
                    spread = tl.reshape(spread, (ROWS, SIZE))
                    result = grad
                    if NORM == "l2norm":
                        result = ((grad - y * spread) * over).to(DTYPE)
                    if NORM == "softmax":
                        result = y * (grad - spread)
                    if CLIPPED:
                        result = tl.where(s > 0, result, result * SLOPE)
                    result += share * one[None, :]
                    result *= factor[:, None] * of_query[None, :]
                    result = tl.where(inside, result, 0.0)
                    here = tl.reshape((block < M)[:, None] & (q < Q)[None, :], (SIZE,))
                    mask = (c < C)[:, None] & here[None, :]
                    into = weights + ((n * C + c) * stride)[:, None] + column[None, :]
                    store_parts(into, tl.cast(part, tl.int64), result, mask, PARTS, PRECISION)
                    outer = tl.where(inside, -two[None, :] * share, 0.0)
                    tl.store(times_gram + to, outer, mask=mask)
                    finite = tl.abs(result)
                    finite = tl.where(finite < float("inf"), finite, 0.0)
                    most = tl.maximum(most, tl.max(finite, 0))
    return tl.max(most, 0)
