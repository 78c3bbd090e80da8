"""Device functions of a program of cross attention: norms, exponentials and lengths of columns.

The caller has a barrier before each function that reads what other threads of the program wrote.
"""

import triton
import triton.language as tl

from itm_kernels.triton._attention_tiles import asked, clipped, normalised, tile_of_products
from itm_kernels.triton._norms import square_root

_ENTRIES = tl.constexpr(32)  # of a row of the Gram matrix per step


@triton.jit
def write_norms(
    products, norm, context_factor, query_factor, query_counts, n, contexts, block, rows, M, C, Q,
    HAS_COUNTS: tl.constexpr, CLIPPED: tl.constexpr, NORM: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write the norms of the products of a context's rows over some queries.

    Args:
        products: `[n C, M Q]`.
        norm: `[1 or 2, n C, M]`: the norms, or the largest products and the sums of exponentials.
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
        HAS_COUNTS: of queries.
        CLIPPED: of `normalised`.
        NORM: of `normalised`.
        ROWS: per step.
        COLUMNS: of a query per step.
    """
    DTYPE: tl.constexpr = products.dtype.element_ty
    columns = tl.cast(M, tl.int64) * Q
    asks = asked(query_counts, block, M, Q, HAS_COUNTS)
    for row in range(0, rows, ROWS):
        c = row + tl.arange(0, ROWS)
        exists = c < rows
        factor = tl.load(context_factor + n * C + c, mask=exists, other=0.0)
        total = tl.zeros((ROWS, block.shape[0]), DTYPE)
        top = tl.full((ROWS, block.shape[0]), float("-inf"), DTYPE)
        for first in range(0, Q, COLUMNS):
            q = first + tl.arange(0, COLUMNS)
            column = block[:, None] * Q + q[None, :]
            there = q[None, :] < asks[:, None]
            inside = exists[:, None, None] & there[None, :, :]
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
        at = norm + ((n * C + c) * M)[:, None] + block[None, :]
        mask = exists[:, None] & (block < M)[None, :]
        if NORM == "softmax":
            tl.store(at, top, mask=mask)
            tl.store(at + contexts * M, total, mask=mask)
        else:
            tl.store(at, square_root(total), mask=mask)


@triton.jit
def write_alpha(
    products, norm, alpha, stride, context_factor, query_factor, n, contexts, rows, column, m,
    there, within, M, C, columns, smooth, CLIPPED: tl.constexpr, NORM: tl.constexpr,
    BOUNDED: tl.constexpr, ROWS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Write exponentials; return the sum of their products with s, and their own sum.

    Args:
        products: `[n C, M Q]`.
        norm: of `write_norms`.
        alpha: pointers to the first row of the columns.
        stride: elements between rows of alpha.
        context_factor: `[n C]`.
        query_factor: `[M Q]`.
        n: the context.
        contexts: n C.
        rows: of the context.
        column: `[K]`.
        m: `[K]`, their queries.
        there: `[K]`, which columns exist.
        within: `[K]`, which columns to write.
        M: queries.
        C: rows of a padded context.
        columns: M Q.
        smooth: inverse temperature.
        CLIPPED: of `normalised`.
        NORM: of `normalised`.
        BOUNDED: the exponents are so small that none must be subtracted from them.
        ROWS: per step.
        SUM: dtype of the sum of products.
    """
    DTYPE: tl.constexpr = products.dtype.element_ty
    of_query = tl.load(query_factor + column, mask=there, other=0.0)
    total = tl.zeros(column.shape, DTYPE)
    top = tl.zeros(column.shape, DTYPE)
    if not BOUNDED:
        top += float("-inf")
        for row in range(0, rows, ROWS):
            c = row + tl.arange(0, ROWS)
            inside = (c < rows)[:, None] & there[None, :]
            factor = tl.load(context_factor + n * C + c, mask=c < rows, other=0.0)
            s, own, sums = tile_of_products(
                products, norm, contexts, n * C + c, factor, of_query, column, m, inside, M,
                columns, CLIPPED, NORM,
            )  # fmt: skip
            x = normalised(s, own, sums, CLIPPED, NORM) * tl.cast(smooth, DTYPE)
            top = tl.maximum(top, tl.max(tl.where(inside, x, float("-inf")), 0))
        top = tl.where(there, top, 0.0)
    dots = tl.zeros(column.shape, SUM)
    for row in range(0, C, ROWS):
        c = row + tl.arange(0, ROWS)
        inside = (c < rows)[:, None] & there[None, :]
        factor = tl.load(context_factor + n * C + c, mask=c < rows, other=0.0)
        s, own, sums = tile_of_products(
            products, norm, contexts, n * C + c, factor, of_query, column, m, inside, M, columns,
            CLIPPED, NORM,
        )  # fmt: skip
        x = normalised(s, own, sums, CLIPPED, NORM) * tl.cast(smooth, DTYPE)
        if not BOUNDED:
            x -= top[None, :]
        share = tl.exp(tl.where(inside, x, float("-inf")))
        dots += tl.sum((share * s).to(SUM), 0)
        total += tl.sum(share, 0)
        tl.store(
            alpha + tl.cast(c, tl.int64)[:, None] * stride, share,
            mask=(c < C)[:, None] & within[None, :],
        )  # fmt: skip
    return dots, total


@triton.jit
def negative_entries(gram, n, rows, C, ROWS: tl.constexpr):
    """Bound the negative entries of a Gram matrix: the largest, and the largest sum of a row."""
    largest = tl.zeros((ROWS,), gram.dtype.element_ty)
    highest = tl.zeros((ROWS,), gram.dtype.element_ty)
    for row in range(0, rows, ROWS):
        c = row + tl.arange(0, ROWS)
        below = tl.zeros((ROWS,), gram.dtype.element_ty)
        for first in range(0, rows, _ENTRIES):
            k = first + tl.arange(0, _ENTRIES)
            inside = (c < rows)[:, None] & (k < rows)[None, :]
            at = gram + ((n * C + c) * C)[:, None] + k[None, :]
            entry = tl.maximum(-tl.load(at, mask=inside, other=0.0), 0.0)
            largest = tl.maximum(largest, tl.max(entry, 1))
            below += tl.sum(entry, 1)
        highest = tl.maximum(highest, below)
    return tl.max(largest, 0), tl.max(highest, 0)


@triton.jit
def squared_lengths(
    gram, alpha, times_gram, alpha_stride, columns, n, rows, C, within,
    GRADIENTS: tl.constexpr, ROWS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Return the squared norms of what columns attend to, and the sums of squares of alpha.

    For gradients, write the product of the Gram matrix and alpha. Otherwise the entries above its
    diagonal are counted twice, and those below it are not read.

    Args:
        gram: `[n, C, C]`.
        alpha: pointers to the first row of the columns.
        times_gram: pointers to the first row of the columns, to write.
        alpha_stride: elements between rows of alpha.
        columns: elements between rows of times_gram.
        n: the context.
        rows: of the context.
        C: rows of a padded context.
        within: `[K]`, which columns to compute.
        GRADIENTS: whether gradients are needed.
        ROWS: per step.
        SUM: dtype of the squared norms.
    """
    DTYPE: tl.constexpr = gram.dtype.element_ty
    square = tl.zeros(within.shape, SUM)
    squares = tl.zeros(within.shape, DTYPE)
    for row in range(0, rows, ROWS):
        c = row + tl.arange(0, ROWS)
        turned = tl.zeros((ROWS, within.shape[0]), DTYPE)
        for k in range(0 if GRADIENTS else row, rows):
            entry = tl.load(gram + (n * C + k) * C + c, mask=c < rows, other=0.0)
            if not GRADIENTS:
                entry = tl.where(c < k, 2 * entry, tl.where(c == k, entry, 0.0))
            other = tl.load(alpha + tl.cast(k, tl.int64) * alpha_stride, mask=within, other=0.0)
            turned += entry[:, None] * other[None, :]
        inside = (c < rows)[:, None] & within[None, :]
        at = alpha + tl.cast(c, tl.int64)[:, None] * alpha_stride
        own = tl.load(at, mask=inside, other=0.0)
        square += tl.sum((own * turned).to(SUM), 0)
        squares += tl.sum(own * own, 0)
        if GRADIENTS:
            to = times_gram + tl.cast(c, tl.int64)[:, None] * columns
            tl.store(to, turned, mask=(c < C)[:, None] & within[None, :])
    return square, squares
