"""Attended vectors of query rows, in fp64, where the rows of a context nearly cancel.

|a|^2 from a Gram matrix in fp32 loses twice the digits that forming a = sum of alpha v loses.
"""

import triton
import triton.language as tl

from itm_kernels.triton._attention_tiles import LEAST, clipped

DEPTH = tl.constexpr(16)  # elements of vectors per step
_LONG = tl.constexpr(256)  # of rows


@triton.jit
def _products(from_row, from_query, cancels, column_stride, query_column, D):
    """Return the products of a context row and query rows in fp64."""
    found = tl.zeros(cancels.shape, tl.float64)
    for first in range(0, D, DEPTH):
        d = (first + tl.arange(0, DEPTH)).to(tl.int64)
        value = tl.load(from_row + d * column_stride, mask=d < D, other=0.0).to(tl.float64)
        inside = (d < D)[:, None] & cancels[None, :]
        at = from_query[None, :] + d[:, None] * query_column
        own = tl.load(at, mask=inside, other=0.0).to(tl.float64)
        found += tl.sum(own * value[:, None], 0)
    return found


@triton.jit
def _write_alpha(
    alpha, norm, norms, M, from_context, from_query, cancels, alpha_stride, stride, column_stride,
    query_column, rows, D, smooth, CLIPPED: tl.constexpr, NORM: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """Write exponentials again, computed in fp64 and rounded once."""
    top = tl.full(cancels.shape, 0.0 if BOUNDED else float("-inf"), tl.float64)
    for step in range(1 if BOUNDED else 0, 2):
        for row in range(0, rows):
            s = _products(
                from_context + tl.cast(row, tl.int64) * stride, from_query, cancels, column_stride,
                query_column, D,
            )  # fmt: skip
            # fp32 divides: a division in fp64 is a call, which spills registers.
            x = clipped(s, CLIPPED)
            if NORM != "none":
                at = norm + tl.cast(row, tl.int64) * M
                own = tl.load(at, mask=cancels, other=0.0)
                if NORM == "softmax":
                    total = tl.load(at + norms, mask=cancels, other=1.0)
                    x = tl.exp(x - own.to(tl.float64)) * (1 / total).to(tl.float64)
                    # The largest product is rounded to fp32: alone, it still has a share of 1.
                    x = tl.where((total == 1) & (x > 0.5), 1.0, x)
                else:
                    x *= (1 / (own + LEAST)).to(tl.float64)
            x *= tl.cast(smooth, tl.float64)
            if step == 0:
                top = tl.maximum(top, x)
            else:
                to = alpha + tl.cast(row, tl.int64) * alpha_stride
                tl.store(to, tl.exp(x - top).to(tl.float32), mask=cancels)
    tl.debug_barrier()  # other threads read them


@triton.jit
def _attended(
    from_alpha, from_context, from_query, cancels, alpha_stride, stride, column_stride,
    query_column, rows, D,
):  # fmt: skip
    """Form what columns attend to in fp64; return its product with their query rows, its square."""
    dots = tl.zeros(cancels.shape, tl.float64)
    square = tl.zeros(cancels.shape, tl.float64)
    for first in range(0, D, DEPTH):
        d = (first + tl.arange(0, DEPTH)).to(tl.int64)
        attended = tl.zeros((DEPTH, cancels.shape[0]), tl.float64)
        for row in range(0, rows):
            of_row = from_alpha + tl.cast(row, tl.int64) * alpha_stride
            share = tl.load(of_row, mask=cancels, other=0.0).to(tl.float64)
            at = from_context + tl.cast(row, tl.int64) * stride + d * column_stride
            value = tl.load(at, mask=d < D, other=0.0).to(tl.float64)
            attended += value[:, None] * share[None, :]
        inside = (d < D)[:, None] & cancels[None, :]
        at = from_query[None, :] + d[:, None] * query_column
        own = tl.load(at, mask=inside, other=0.0).to(tl.float64)
        dots += tl.sum(own * attended, 0)
        square += tl.sum(attended * attended, 0)
    return dots, square


@triton.jit
def _times_gram_row(
    from_alpha, from_context, row, cancels, alpha_stride, stride, column_stride, rows, D
):  # fmt: skip
    """Return a row of the Gram matrix times alpha in fp64, for the columns of `from_alpha`."""
    found = tl.zeros(cancels.shape, tl.float64)
    own = from_context + tl.cast(row, tl.int64) * stride
    for other in range(0, rows):
        products = tl.zeros((_LONG,), tl.float64)
        at = from_context + tl.cast(other, tl.int64) * stride
        for first in range(0, D, _LONG):
            d = (first + tl.arange(0, _LONG)).to(tl.int64)
            left = tl.load(own + d * column_stride, mask=d < D, other=0.0).to(tl.float64)
            right = tl.load(at + d * column_stride, mask=d < D, other=0.0).to(tl.float64)
            products += left * right
        of_row = from_alpha + tl.cast(other, tl.int64) * alpha_stride
        found += tl.sum(products, 0) * tl.load(of_row, mask=cancels, other=0.0).to(tl.float64)
    return found


@triton.jit
def attended_in_double(
    alpha, times_gram, norm, norms, M, from_context, from_query, cancels, alpha_stride, columns,
    stride, column_stride, query_column, rows, D, smooth, CLIPPED: tl.constexpr, NORM: tl.constexpr,
    BOUNDED: tl.constexpr, GRADIENTS: tl.constexpr,
):  # fmt: skip
    """Return the products of query rows and what they attend to, and its squares, through fp64.

    Overwrites alpha, and for gradients the Gram matrix times alpha.

    Args:
        alpha: pointers to the first row of some columns.
        times_gram: pointers to the same columns.
        norm: pointers to the norms, or largest products, of the first row over their queries.
        norms: elements from the largest products to the sums of exponentials.
        M: elements between rows of norms.
        from_context: pointer to the context.
        from_query: pointers to the query rows.
        cancels: the columns to compute; 0 is returned for others.
        alpha_stride: elements between rows of alpha.
        columns: between rows of the Gram matrix times alpha.
        stride: between rows of the context.
        column_stride: between its columns.
        query_column: between columns of the query.
        rows: of the context.
        D: columns of both.
        smooth: inverse temperature.
        CLIPPED: of `clipped`.
        NORM: the normalisation.
        BOUNDED: no maximum is subtracted from exponents.
        GRADIENTS: whether gradients are needed.
    """
    _write_alpha(
        alpha, norm, norms, M, from_context, from_query, cancels, alpha_stride, stride,
        column_stride, query_column, rows, D, smooth, CLIPPED, NORM, BOUNDED,
    )  # fmt: skip
    if GRADIENTS:
        for row in range(0, rows):
            found = _times_gram_row(
                alpha, from_context, row, cancels, alpha_stride, stride, column_stride, rows, D
            )
            to = times_gram + tl.cast(row, tl.int64) * columns
            tl.store(to, found.to(tl.float32), mask=cancels)
    return _attended(
        alpha, from_context, from_query, cancels, alpha_stride, stride, column_stride, query_column,
        rows, D,
    )  # fmt: skip
