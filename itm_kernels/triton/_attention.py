"""Cross attention of a chunk of contexts: normalised products, their softmax, and cosines.

The products are a matrix of all rows of the contexts and all query rows, one column per query row.
A column attends to the rows of its context; a row is normalised over the columns of a query.
"""

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._attention_tiles import (
    LEAST,
    arguments,
    asked,
    clipped,
    kind_of_norm,
    normalised,
    query_blocks,
    rows_of,
    tile_of_products,
)
from itm_kernels.triton._attention_vectors import attended_in_double
from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._norms import square_root
from itm_kernels.triton._row_sets import RowSets, products
from itm_kernels.triton._tile_table import architecture

ROWS = 16  # of a context per step
_COLUMNS, _STEP = 64, 8  # columns of a program, rows per step
# If this multiple of |a|^2 is less than its negative terms may be, more than 3 bits may be lost.
_SHARE = tl.constexpr(4)


class Attention(NamedTuple):
    """The attention of the query rows in n contexts, with M Q columns."""

    products: Tensor  # [n C, M Q], without factors
    norm: Tensor  # [2, n C, M] of products: the norm, or maximum and sum of exponentials
    alpha: Tensor  # [n C, M Q], not divided by its sum: the cosine does not depend on its scale
    times_gram: Tensor  # [n C, M Q]: Gram matrix times alpha
    along: Tensor  # [n, M Q]: dot product of the query row and what it attends to
    least: Tensor  # [n, M Q]: the least divisor of cosines, on the scale of alpha
    length: Tensor  # [n, M Q]: norm of what it attends to
    cosine: Tensor  # [n, M Q]


def attend(
    context: RowSets,
    chunk: slice,
    query: RowSets,
    gram: Tensor,  # [n, C, C]
    feature_norm: str,
    smooth: float,
    gradients: bool,
) -> Attention:
    """Compute the attention of all query rows in a chunk, for scores or also for gradients."""
    (_, C, _), (M, Q, _), n = context.rows.shape, query.rows.shape, chunk.stop - chunk.start
    found, kind = products(context, chunk, query), kind_of_norm(feature_norm)
    sides = arguments(context, chunk, query)
    norm = found.new_empty((2, n * C if kind["NORM"] != "none" else 0, M))
    if kind["NORM"] != "none":
        blocks = query_blocks(M, Q)
        _norms_kernel[(n, cdiv(C, ROWS), cdiv(M, blocks["QUERIES"]))](
            found, norm, **sides, **kind, **blocks, ROWS=ROWS
        )
    alpha = torch.empty_like(found)
    times_gram = torch.empty_like(found) if gradients else found
    along, least, length, cosine = found.new_empty((4, n, M * Q)).unbind()
    grid = n, cdiv(M * Q, _COLUMNS)
    options = {"ROWS": _STEP, "COLUMNS": _COLUMNS}
    # By default 16 bytes spill on sm_100.
    most = {"maxnreg": 128} if isinstance(architecture(), int) else {}
    _attention_kernel[grid](
        found, norm, alpha, along, least, **sides, **kind, smooth=smooth, **options, num_warps=2
    )
    _cosine_kernel[grid](
        norm, alpha, gram, times_gram, context.rows[chunk], query.rows, along, least, query.norm,
        length, cosine, *context.rows.stride(), *query.rows.stride(), context.counts[chunk],
        query.counts, M, C, Q, context.rows.shape[2], smooth, **kind,
        HAS_CONTEXT_COUNTS=context.has_counts, HAS_QUERY_COUNTS=query.has_counts,
        GRADIENTS=gradients, num_warps=4, **options, **most,
    )  # fmt: skip
    return Attention(found, norm, alpha, times_gram, along, least, length, cosine)


@jit
def _norms_kernel(
    products,  # [n C, M Q]
    norm,  # [2, n C, M]
    context_factor,
    query_factor,
    context_counts,
    query_counts,
    M,
    C,
    Q,
    HAS_CONTEXT_COUNTS: tl.constexpr,
    HAS_QUERY_COUNTS: tl.constexpr,
    NORM: tl.constexpr,
    CLIPPED: tl.constexpr,
    ROWS: tl.constexpr,
    QUERIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    m = tl.program_id(2).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    DTYPE: tl.constexpr = products.dtype.element_ty
    rows = rows_of(context_counts, n, C, HAS_CONTEXT_COUNTS)
    asks = asked(query_counts, m, M, Q, HAS_QUERY_COUNTS)
    factor = tl.load(context_factor + n * C + c, mask=c < rows, other=0.0)
    columns = tl.cast(M, tl.int64) * Q
    total = tl.zeros((ROWS, QUERIES), DTYPE)
    top = tl.full((ROWS, QUERIES), float("-inf"), DTYPE)
    for first in range(0, Q, COLUMNS):
        q = first + tl.arange(0, COLUMNS)
        column = m[:, None] * Q + q[None, :]
        there = q[None, :] < asks[:, None]
        inside = (c < rows)[:, None, None] & there[None, :, :]
        at = products + ((n * C + c) * columns)[:, None, None] + column[None, :, :]
        of_query = tl.load(query_factor + column, mask=there, other=0.0)
        s = tl.load(at, mask=inside, other=0.0) * factor[:, None, None] * of_query[None, :, :]
        if NORM == "softmax":
            y = tl.where(inside, clipped(s, CLIPPED), float("-inf"))
            higher = tl.maximum(top, tl.max(y, 2))
            base = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp(top - base) + tl.sum(tl.exp(y - base[:, :, None]), 2)
            top = higher
        else:
            y = tl.where(inside, clipped(s, CLIPPED), 0.0)
            total += tl.sum(y * y, 2)
    at = norm + (n * C + c)[:, None] * M + m[None, :]
    mask = (c < C)[:, None] & (m < M)[None, :]
    if NORM == "softmax":
        tl.store(at, top, mask=mask)
        tl.store(at + tl.num_programs(0).to(tl.int64) * C * M, total, mask=mask)
    else:
        tl.store(at, square_root(total), mask=mask)


@jit
def _attention_kernel(
    products,  # [n C, M Q]
    norm,  # [2, n C, M]
    alpha,  # [n C, M Q]
    along,  # [n, M Q]
    least,  # [n, M Q]
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
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    columns = tl.cast(M, tl.int64) * Q
    contexts = tl.num_programs(0).to(tl.int64) * C
    m = column // Q
    DTYPE: tl.constexpr = products.dtype.element_ty
    rows = rows_of(context_counts, n, C, HAS_CONTEXT_COUNTS)
    there = column - m * Q < asked(query_counts, m, M, Q, HAS_QUERY_COUNTS)
    there &= rows > 0
    of_query = tl.load(query_factor + column, mask=there, other=0.0)
    top = tl.full((COLUMNS,), float("-inf"), DTYPE)
    total = tl.zeros((COLUMNS,), DTYPE)
    for row in range(0, rows, ROWS):
        c = row + tl.arange(0, ROWS)
        exists = (c < rows)[:, None]
        factor = tl.load(context_factor + n * C + c, mask=c < rows, other=0.0)
        s, own, sums = tile_of_products(
            products, norm, contexts, n * C + c, factor, of_query, column, m,
            exists & there[None, :], M, columns, CLIPPED, NORM,
        )  # fmt: skip
        x = normalised(s, own, sums, CLIPPED, NORM) * tl.cast(smooth, DTYPE)
        x = tl.where(exists, x, float("-inf"))
        higher = tl.maximum(top, tl.max(x, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher[None, :]), 0)
        top = higher
    dots = tl.zeros((COLUMNS,), DTYPE)
    for row in range(0, C, ROWS):
        c = row + tl.arange(0, ROWS)
        inside = (c < rows)[:, None] & there[None, :]
        factor = tl.load(context_factor + n * C + c, mask=c < rows, other=0.0)
        s, own, sums = tile_of_products(
            products, norm, contexts, n * C + c, factor, of_query, column, m, inside, M, columns,
            CLIPPED, NORM,
        )  # fmt: skip
        x = normalised(s, own, sums, CLIPPED, NORM) * tl.cast(smooth, DTYPE)
        x = tl.where(inside, x - tl.where(there, top, 0.0)[None, :], float("-inf"))
        share = tl.exp(x)
        dots += tl.sum(share * s, 0)
        at = alpha + ((n * C + c) * columns)[:, None] + column[None, :]
        tl.store(at, share, mask=(c < C)[:, None] & (column < columns)[None, :])
    tl.store(along + n * columns + column, dots, mask=column < columns)
    total = tl.where(there, total, 1.0)
    tl.store(least + n * columns + column, total * LEAST, mask=column < columns)


@jit
def _cosine_kernel(
    norm,  # [2, n C, M] of products
    alpha,  # [n C, M Q]
    gram,  # [n, C, C]
    times_gram,  # [n C, M Q] to write for gradients
    context,  # [n, C, D]
    query,  # [M, Q, D]
    along,  # [n, M Q]
    least,  # [n, M Q]
    query_norm,  # [M Q]
    length,  # [n, M Q]
    cosine,  # [n, M Q]
    context_set,
    context_stride,
    context_column,
    query_set,
    query_stride,
    query_column,
    context_counts,
    query_counts,
    M,
    C,
    Q,
    D,
    smooth,
    HAS_CONTEXT_COUNTS: tl.constexpr,
    HAS_QUERY_COUNTS: tl.constexpr,
    NORM: tl.constexpr,
    CLIPPED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GRADIENTS: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    columns = tl.cast(M, tl.int64) * Q
    there = column < columns
    DTYPE: tl.constexpr = alpha.dtype.element_ty
    rows = rows_of(context_counts, n, C, HAS_CONTEXT_COUNTS)
    square = tl.zeros((COLUMNS,), DTYPE)
    squares = tl.zeros((COLUMNS,), DTYPE)  # of alpha
    largest = tl.zeros((ROWS,), DTYPE)  # of entries of the Gram matrix below 0
    highest = tl.zeros((ROWS,), DTYPE)  # sum of those of a row
    from_alpha = alpha + n * C * columns + column
    for row in range(0, rows, ROWS):
        c = row + tl.arange(0, ROWS)
        turned = tl.zeros((ROWS, COLUMNS), DTYPE)
        below = tl.zeros((ROWS,), DTYPE)
        for k in range(0, rows):
            entry = tl.load(gram + (n * C + k) * C + c, mask=c < rows, other=0.0)
            other = tl.load(from_alpha + k * columns, mask=there, other=0.0)
            turned += entry[:, None] * other[None, :]
            largest = tl.maximum(largest, -entry)
            below += tl.maximum(-entry, 0.0)
        highest = tl.maximum(highest, below)
        inside = (c < rows)[:, None] & there[None, :]
        at = ((n * C + c) * columns)[:, None] + column[None, :]
        own = tl.load(alpha + at, mask=inside, other=0.0)
        square += tl.sum(own * turned, 0)
        squares += tl.sum(own * own, 0)
        if GRADIENTS:
            tl.store(times_gram + at, turned, mask=(c < C)[:, None] & there[None, :])
    at = n * columns + column
    dots = tl.load(along + at, mask=there, other=0.0)
    smallest = tl.load(least + at, mask=there, other=1.0)
    if DTYPE == tl.float32:
        # The terms below 0 of |a|^2 = sum of alpha alpha' G add up to at most `largest` times the
        # squared sum of alpha, and to at most `highest` |alpha|^2, since `highest` bounds the
        # eigenvalues of the matrix of these entries.
        total = smallest / LEAST
        most = tl.minimum(tl.max(highest, 0) * squares, tl.max(largest, 0) * total * total)
        cancels = there & (_SHARE * square < most)
        if tl.max(cancels.to(tl.int32), 0) > 0:
            m = column // Q
            from_query = query + m * query_set + (column - m * Q) * query_stride
            of_query = cancels & (column - m * Q < asked(query_counts, m, M, Q, HAS_QUERY_COUNTS))
            exact_dots, exact = attended_in_double(
                from_alpha, times_gram + n * C * columns + column, norm + n * C * M + m,
                tl.num_programs(0).to(tl.int64) * C * M, M, context + n * context_set, from_query,
                of_query, columns, context_stride, context_column, query_column, rows, D, smooth,
                CLIPPED, NORM, GRADIENTS,
            )  # fmt: skip
            dots = tl.where(cancels, exact_dots, dots)
            square = tl.where(cancels, exact, square)
            tl.store(along + at, dots, mask=there)
    own = square_root(tl.where(square < 0, 0.0, square))
    norms = own * tl.load(query_norm + column, mask=there, other=0.0)
    divisor = tl.where(norms < smallest, smallest, norms)
    tl.store(length + at, own, mask=there)
    tl.store(cosine + at, dots / divisor, mask=there)
