"""Gradients of cross attention: from scores to cosines, products and Gram matrices."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._attention import Attention
from itm_kernels.triton._attention_tiles import (
    LEAST,
    SLOPE,
    arguments,
    asked,
    clipped,
    kind_of_norm,
    normalised,
    query_blocks,
    rows_of,
    tile_of_products,
)
from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._products import precision_of, store_parts, weights_empty
from itm_kernels.triton._row_sets import RowSets
from itm_kernels.triton._split_weights import split

# Rows of a context per step, columns per program, and warps: twice the elements spill.
ROWS, _COLUMNS, _WARPS = 8, 64, 4


def write_weights(
    found: Attention,
    of_cosine: Tensor,  # [n, M Q]
    context: RowSets,
    chunk: slice,
    query: RowSets,
    feature_norm: str,
    smooth: float,
) -> tuple[Tensor, Tensor | None]:  # [parts, n C, M Q], []
    """Return the gradients of products; in place of `times_gram` those of alpha's outer products.

    They are multiplied by both factors and, if rows are fp16, by the power of two that is returned:
    the largest determines it, so they are written twice.
    """
    (_, C, _), (M, Q, _), n = context.rows.shape, query.rows.shape, chunk.stop - chunk.start
    blocks = query_blocks(M, Q, _COLUMNS)
    grid = n, cdiv(M, blocks["QUERIES"])
    like, kind, twice = context.rows.flatten(0, 1), context.kind, context.powers
    in_place = twice or kind == "ieee"
    weights = found.products[None] if in_place else weights_empty(n * C, M * Q, like, kind=kind)
    largest = found.along.new_empty(grid)
    sides = arguments(context, chunk, query)
    _weights_kernel[grid](
        found.products, found.norm, found.alpha, found.times_gram, found.least, found.length,
        found.cosine, of_cosine, query.norm, weights, largest, *weights.stride()[:2],
        **sides, **kind_of_norm(feature_norm), smooth=smooth,
        PARTS=weights.shape[0], PRECISION="ieee" if in_place else precision_of(weights),
        LARGEST=twice, ROWS=ROWS, **blocks, num_warps=2 * _WARPS if twice else _WARPS,
    )  # fmt: skip
    if not twice:
        return weights, None
    return split(weights[0], weights_empty(n * C, M * Q, like), largest)


@triton.jit
def _multiples(of_cosine, cosine, length, least, query_norm, there):
    """Return the multiples of s and of the Gram matrix times alpha in the gradient of alpha."""
    g = tl.load(of_cosine, mask=there, other=0.0)
    size = tl.load(length, mask=there, other=1.0)
    norms = size * tl.load(query_norm, mask=there, other=1.0)
    smallest = tl.load(least, mask=there, other=1.0)
    constant = norms < smallest
    square = tl.where(constant, 1.0, size * size)
    two = g * tl.load(cosine, mask=there, other=0.0) / square
    return g / tl.where(constant, smallest, norms), tl.where(constant, 0.0, two)


@jit
def _weights_kernel(
    products,  # [n C, M Q]
    norm,  # [2, n C, M]
    alpha,  # [n C, M Q]
    times_gram,  # [n C, M Q], overwritten
    least,  # [n, M Q]
    length,  # [n, M Q]
    cosine,  # [n, M Q]
    of_cosine,  # [n, M Q]
    query_norm,  # [M Q]
    weights,  # [PARTS, n C, M Q]
    largest,  # [programs]
    part,
    stride,
    context_factor,
    query_factor,
    context_counts,
    query_counts,
    M,
    C,
    Q,
    smooth,
    HAS_CONTEXT_COUNTS: tl.constexpr,
    HAS_QUERY_COUNTS: tl.constexpr,
    NORM: tl.constexpr,
    CLIPPED: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    LARGEST: tl.constexpr,
    ROWS: tl.constexpr,
    QUERIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    SIZE: tl.constexpr = QUERIES * COLUMNS
    DTYPE: tl.constexpr = products.dtype.element_ty
    n = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    columns = tl.cast(M, tl.int64) * Q
    contexts = tl.num_programs(0).to(tl.int64) * C
    rows = rows_of(context_counts, n, C, HAS_CONTEXT_COUNTS)
    asks = asked(query_counts, block, M, Q, HAS_QUERY_COUNTS)
    most = tl.zeros((SIZE,), DTYPE)
    for row in range(0, C, ROWS):
        c = row + tl.arange(0, ROWS)
        factor = tl.load(context_factor + n * C + c, mask=c < rows, other=0.0)
        dots = tl.zeros((ROWS, QUERIES), tl.float64 if NORM == "l2norm" else DTYPE)
        squares = tl.zeros((ROWS, QUERIES), tl.float64)
        # First the sums over the query that its normalisation needs, then the gradients.
        for step in range(0 if NORM != "none" else 1, 2):
            for first in range(0, Q, COLUMNS):
                q = first + tl.arange(0, COLUMNS)
                column = tl.reshape(block[:, None] * Q + q[None, :], (SIZE,))
                m = tl.reshape(block[:, None] + tl.zeros_like(q)[None, :], (SIZE,))
                there = tl.reshape(q[None, :] < asks[:, None], (SIZE,))
                inside = (c < rows)[:, None] & there[None, :]
                of_query = tl.load(query_factor + column, mask=there, other=0.0)
                s, own, total = tile_of_products(
                    products, norm, contexts, n * C + c, factor, of_query, column, m, inside, M,
                    columns, CLIPPED, NORM,
                )  # fmt: skip
                at = n * columns + column
                one, two = _multiples(
                    of_cosine + at, cosine + at, length + at, least + at, query_norm + column, there
                )
                # The gradient of alpha is orthogonal to it, unless the divisor is constant.
                smallest = tl.load(least + at, mask=there, other=1.0)
                level = tl.load(of_cosine + at, mask=there, other=0.0)
                level *= tl.load(cosine + at, mask=there, other=0.0) / (smallest / LEAST)
                norms = tl.load(length + at, mask=there, other=1.0)
                norms *= tl.load(query_norm + column, mask=there, other=1.0)
                level = tl.where(norms < smallest, level, 0.0)
                to = ((n * C + c) * columns)[:, None] + column[None, :]
                share = tl.load(alpha + to, mask=inside, other=0.0)
                turned = tl.load(times_gram + to, mask=inside, other=0.0)
                of_alpha = one[None, :] * s - two[None, :] * turned
                # Of the normalised products.
                grad = share * (of_alpha - level[None, :]) * tl.cast(smooth, DTYPE)
                y = normalised(s, own, total, CLIPPED, NORM)
                if NORM == "l2norm":
                    # The gradient of a query of one row is 0: the difference of two numbers that
                    # cancel, divided by the norm. fp64 keeps it below the error of the rest.
                    y = clipped(s, CLIPPED).to(tl.float64)
                    grad = grad.to(tl.float64)
                if step == 0:
                    kept = tl.reshape(tl.where(inside, grad * y, 0.0), (ROWS, QUERIES, COLUMNS))
                    dots += tl.sum(kept, 2)
                    if NORM == "l2norm":
                        squares += tl.sum(tl.reshape(y * y, (ROWS, QUERIES, COLUMNS)), 2)
                else:
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
                    if LARGEST:
                        finite = tl.abs(result)
                        finite = tl.where(finite < float("inf"), finite, 0.0)
                        most = tl.maximum(most, tl.max(finite, 0))
    if LARGEST:
        at = n * tl.num_programs(1) + tl.program_id(1)
        tl.store(largest + at, tl.max(most, 0))


def of_cosines(
    grad: Tensor,  # [n, M]
    scores: Tensor,  # [n, M]
    found: Attention,
    sides: dict[str, Any],
    query: RowSets,
    aggregate: str,
    scale: float,
) -> tuple[Tensor, Tensor]:  # [n, M Q], [n, M Q]
    """Return the gradients of cosines, and the multiples of query rows in their gradients."""
    M, Q = sides["M"], sides["Q"]
    both = torch.empty((2, *found.cosine.shape), dtype=found.cosine.dtype, device=grad.device)
    blocks = query_blocks(M, Q, 256)
    _of_cosines_kernel[(grad.shape[0], cdiv(M, blocks["QUERIES"]))](
        grad, scores, found.cosine, found.least, found.length, query.norm, *both.unbind(),
        sides["context_counts"], sides["query_counts"], *grad.stride(), *scores.stride(), M,
        sides["C"], Q, scale, HAS_CONTEXT_COUNTS=sides["HAS_CONTEXT_COUNTS"],
        HAS_QUERY_COUNTS=sides["HAS_QUERY_COUNTS"], AGGREGATE=aggregate, **blocks,
    )  # fmt: skip
    return both[0], both[1]


@jit
def _of_cosines_kernel(
    grad,
    scores,
    cosine,
    least,
    length,
    query_norm,
    of_cosine,
    along,
    context_counts,
    query_counts,
    grad_stride,
    grad_column,
    scores_stride,
    scores_column,
    M,
    C,
    Q,
    scale,
    HAS_CONTEXT_COUNTS: tl.constexpr,
    HAS_QUERY_COUNTS: tl.constexpr,
    AGGREGATE: tl.constexpr,
    QUERIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    m = tl.program_id(1).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    columns = tl.cast(M, tl.int64) * Q
    DTYPE: tl.constexpr = cosine.dtype.element_ty
    rows = rows_of(context_counts, n, C, HAS_CONTEXT_COUNTS)
    asks = asked(query_counts, m, M, Q, HAS_QUERY_COUNTS)
    g = tl.load(grad + n * grad_stride + m * grad_column, mask=m < M, other=0.0).to(DTYPE)
    score = tl.load(scores + n * scores_stride + m * scores_column, mask=m < M, other=0.0)
    if AGGREGATE == "mean":
        g /= tl.maximum(asks, 1).to(DTYPE)
    winner = tl.full((QUERIES,), 0, tl.int32) + Q
    if AGGREGATE == "max":
        for first in range(0, Q, COLUMNS):
            q = first + tl.arange(0, COLUMNS)
            there = q[None, :] < asks[:, None]
            value = tl.load(cosine + n * columns + m[:, None] * Q + q[None, :], there, 0.0)
            best = there & ((value == score[:, None]) | (value != value))
            winner = tl.minimum(winner, tl.min(tl.where(best, q[None, :], Q), 1))
    for first in range(0, Q, COLUMNS):
        q = first + tl.arange(0, COLUMNS)
        column = m[:, None] * Q + q[None, :]
        there = (q[None, :] < asks[:, None]) & (rows > 0)
        at = n * columns + column
        value = tl.load(cosine + at, mask=there, other=0.0)
        own = g[:, None] + tl.zeros_like(value)
        if AGGREGATE == "log_sum_exp":
            apart = tl.where(there, value - score[:, None], 0.0)
            own *= tl.exp(tl.cast(scale, DTYPE) * apart)
        if AGGREGATE == "max":
            own = tl.where(q[None, :] == winner[:, None], own, 0.0)
        own = tl.where(there, own, 0.0)
        norm = tl.load(query_norm + column, mask=there, other=1.0)
        smallest = tl.load(least + at, mask=there, other=0.0)
        constant = norm * tl.load(length + at, mask=there, other=1.0) < smallest
        multiple = -own * value / tl.where(constant, 1.0, norm * norm)
        mask = (m < M)[:, None] & (q < Q)[None, :]
        tl.store(of_cosine + at, own, mask=mask)
        tl.store(along + at, tl.where(constant, 0.0, multiple), mask=mask)
