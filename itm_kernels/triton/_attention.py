"""Cross attention of a chunk of contexts in one kernel, from the products of all rows.

The products are a matrix of all rows of the contexts and all query rows, one column per query row.
A column attends to the rows of its context; a row is normalised over the columns of a query.

A program has some queries of one context: the products that it reads several times stay in the
caches. It computes the norms of its rows, then for every block of columns the attention and the
cosines, and last the scores. For gradients it recomputes these and writes weights of rows instead.
"""

from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._attention_aggregates import aggregate, write_cosines, write_multiples
from itm_kernels.triton._attention_columns import (
    negative_entries,
    squared_lengths,
    write_alpha,
    write_norms,
)
from itm_kernels.triton._attention_gradients import write_weights
from itm_kernels.triton._attention_tiles import (
    COLUMNS,
    ROWS,
    Options,
    arguments,
    asked,
    kind_of_norm,
    rows_of,
    spans,
)
from itm_kernels.triton._attention_vectors import attended_in_double
from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._products import precision_of, weights_empty
from itm_kernels.triton._row_sets import RowSets
from itm_kernels.triton._split_weights import split
from itm_kernels.triton._tile_table import architecture

# Exponents up to this size need no maximum: squares of exponentials are 1e-14 to 1e14.
_LARGEST_EXPONENT = 16.0
# If this multiple of |a|^2 is less than its negative terms may be, more than 3 bits may be lost.
_SHARE = tl.constexpr(4)


class Gradients(NamedTuple):
    """Factors of the gradients of a chunk of n contexts."""

    weights: Tensor  # [parts, n C, M Q]: the gradients of products, times factors and unit
    unit: Tensor | None  # []
    alpha: Tensor  # [n C, M Q], not divided by its sum
    outer: Tensor  # [n C, M Q]: its product with alpha is twice the gradient of Gram matrices
    along: Tensor  # [n, M Q]: the multiple of a query row in its gradient


def write_scores(
    context: RowSets,
    chunk: slice,
    query: RowSets,
    products: Tensor,  # [n C, M Q], without factors
    gram: Tensor,  # [n, C, C]
    options: Options,
    scores: Tensor,  # [n, M], to write
) -> None:
    """Write the scores of all queries with a chunk of contexts."""
    grid, given = _arguments(context, chunk, query, products, gram, options)
    alpha = products.new_empty((*grid, context.rows.shape[1], COLUMNS))
    own = products.new_empty((1, grid[0], products.shape[1]))
    _attention_kernel[grid](
        alpha=alpha, times_gram=alpha, own=own, multiples=own, weights=own, largest=own,
        scores=scores, part=0, stride=0, scores_stride=scores.stride(0),
        scores_column=scores.stride(1), GRADIENTS=False, PARTS=1, PRECISION="ieee", LARGEST=False,
        **given,
    )  # fmt: skip


def gradients_of(
    context: RowSets,
    chunk: slice,
    query: RowSets,
    products: Tensor,  # [n C, M Q], without factors
    gram: Tensor,  # [n, C, C]
    options: Options,
    grad: Tensor,  # [n, M]
    overwrite: bool,
) -> Gradients:
    """Return the gradients of products, and what those of Gram matrices and query rows need.

    With `overwrite`, weights of the products' dtype take their place.

    Weights of fp16 rows are multiplied by a power of two, which the largest determines: they are
    written twice.
    """
    (_, C, _), columns, n = context.rows.shape, products.shape[1], chunk.stop - chunk.start
    grid, given = _arguments(context, chunk, query, products, gram, options)
    like, kind, twice = context.rows.flatten(0, 1), context.kind, context.powers
    wide = twice or kind == "ieee"
    weights = products[None] if wide else weights_empty(n * C, columns, like, kind=kind)
    if wide and not overwrite:
        weights = torch.empty_like(weights)
    alpha, outer = torch.empty_like(products), torch.empty_like(products)
    own, multiples = products.new_empty((4, n, columns)), products.new_empty((2, n, columns))
    largest = products.new_empty(grid)
    _attention_kernel[grid](
        alpha=alpha, times_gram=outer, own=own, multiples=multiples, weights=weights,
        largest=largest, scores=grad, part=weights.stride(0), stride=weights.stride(1),
        scores_stride=grad.stride(0), scores_column=grad.stride(1), GRADIENTS=True,
        PARTS=weights.shape[0], PRECISION="ieee" if wide else precision_of(weights),
        LARGEST=twice, **given,
    )  # fmt: skip
    unit = None
    if twice:
        weights, unit = split(weights[0], weights_empty(n * C, columns, like), largest)
    return Gradients(weights, unit, alpha, outer, multiples[1])


def _arguments(
    context: RowSets, chunk: slice, query: RowSets, products: Tensor, gram: Tensor, options: Options
) -> tuple[tuple[int, int], dict[str, Any]]:
    """Return the grid and the arguments that scores and gradients have in common."""
    n, C, (M, Q, _) = chunk.stop - chunk.start, context.rows.shape[1], query.rows.shape
    kind, blocks = kind_of_norm(options.feature_norm), spans(n, M, Q)
    parts = {"none": 0, "softmax": 2}.get(kind["NORM"], 1)
    return (n, cdiv(M, blocks["QUERIES"])), {
        "products": products,
        "norm": products.new_empty((parts, n * C, M)),
        "gram": gram,
        **arguments(context, chunk, query),
        "smooth": options.smooth,
        "scale": options.scale,
        "AGGREGATE": options.aggregate,
        "BOUNDED": parts > 0 and abs(options.smooth) <= _LARGEST_EXPONENT,
        **{"ROWS": ROWS, "COLUMNS": COLUMNS, "num_warps": 4},
        # By default the compiler spills a few registers to keep some for other programs.
        **({"maxnreg": 255} if isinstance(architecture(), int) else {}),
        **kind,
        **blocks,
    }


@jit
def _attention_kernel(
    products,  # [n C, M Q]
    norm,  # [1 or 2, n C, M], to write
    alpha,  # [n C, M Q], or [programs, C, COLUMNS]; to write
    times_gram,  # [n C, M Q], to write
    gram,  # [n, C, C]
    context,  # [n, C, D]
    query,  # [M, Q, D]
    query_norm,  # [M Q]
    own,  # [1 or 4, n, M Q], to write: cosines, and what multiplies their gradients
    multiples,  # [2, n, M Q], to write: gradients of cosines, what multiplies query rows
    weights,  # [PARTS, n C, M Q], to write
    largest,  # [programs], to write
    scores,  # [n, M], to write; their gradients for gradients
    context_factor,
    query_factor,
    context_counts,
    query_counts,
    context_set,
    context_stride,
    context_column,
    query_set,
    query_stride,
    query_column,
    part,
    stride,
    scores_stride,
    scores_column,
    M,
    C,
    Q,
    D,
    smooth,
    scale,
    HAS_CONTEXT_COUNTS: tl.constexpr,
    HAS_QUERY_COUNTS: tl.constexpr,
    NORM: tl.constexpr,
    CLIPPED: tl.constexpr,
    AGGREGATE: tl.constexpr,
    BOUNDED: tl.constexpr,
    GRADIENTS: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    LARGEST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    QUERIES: tl.constexpr,
    OF_QUERY: tl.constexpr,  # columns of a query per step
    AT_ONCE: tl.constexpr,  # queries whose weights are computed at once
    OF_WEIGHTS: tl.constexpr,  # columns of these per step
    WHOLE: tl.constexpr,  # all of them
):
    n = tl.program_id(0).to(tl.int64)
    first_query = tl.program_id(1).to(tl.int64) * QUERIES
    block = first_query + tl.arange(0, QUERIES)
    columns = tl.cast(M, tl.int64) * Q
    contexts = tl.num_programs(0).to(tl.int64) * C
    part_of_columns = tl.num_programs(0) * columns
    DTYPE: tl.constexpr = products.dtype.element_ty
    # A gradient subtracts a mean that is a difference of sums, whose rounding all rows would share.
    SUM: tl.constexpr = tl.float64 if GRADIENTS else DTYPE
    rows = rows_of(context_counts, n, C, HAS_CONTEXT_COUNTS)
    if NORM != "none":
        write_norms(
            products, norm, context_factor, query_factor, query_counts, n, contexts, block, rows, M,
            C, Q, HAS_QUERY_COUNTS, CLIPPED, NORM, ROWS, OF_QUERY,
        )  # fmt: skip
        tl.debug_barrier()
    begin = first_query * Q
    end = tl.minimum(begin + QUERIES * Q, columns)
    to_own = own + n * columns
    if DTYPE == tl.float32:
        below, below_in_row = negative_entries(gram, n, rows, C, ROWS)
    for start in range(begin, end, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        within = column < end
        m = column // Q
        there = within & (column - m * Q < asked(query_counts, m, M, Q, HAS_QUERY_COUNTS))
        there &= rows > 0
        alpha_stride = columns
        from_alpha = alpha + n * C * columns + column
        if not GRADIENTS:
            alpha_stride = tl.cast(COLUMNS, tl.int64)
            program = n * tl.num_programs(1) + tl.program_id(1)
            from_alpha = alpha + program * C * COLUMNS + tl.arange(0, COLUMNS)
            tl.debug_barrier()  # other threads have read the exponentials of the last block
        to_gram = times_gram + n * C * columns + column
        dots, total = write_alpha(
            products, norm, from_alpha, alpha_stride, context_factor, query_factor, n, contexts,
            rows, column, m, there, within, M, C, columns, smooth, CLIPPED, NORM, BOUNDED, ROWS,
            SUM,
        )  # fmt: skip
        total = tl.where(there, total, 1.0)
        tl.debug_barrier()
        square, squares = squared_lengths(
            gram, from_alpha, to_gram, alpha_stride, columns, n, rows, C, within, GRADIENTS, ROWS,
            SUM,
        )  # fmt: skip
        if DTYPE == tl.float32:
            # The terms below 0 of |a|^2 = sum of alpha alpha' G add up to at most the largest entry
            # times the squared sum of alpha, and to at most the largest sum of a row times
            # |alpha|^2, since that sum bounds the eigenvalues of the matrix of these entries.
            most = tl.minimum(below_in_row * squares, below * total * total)
            cancels = within & (_SHARE * square < most)
            if tl.max(cancels.to(tl.int32), 0) > 0:
                from_query = query + m * query_set + (column - m * Q) * query_stride
                exact_dots, exact = attended_in_double(
                    from_alpha, to_gram, norm + n * C * M + m, contexts * M, M,
                    context + n * context_set, from_query, cancels & there, alpha_stride, columns,
                    context_stride, context_column, query_column, rows, D, smooth, CLIPPED, NORM,
                    BOUNDED, GRADIENTS,
                )  # fmt: skip
                dots = tl.where(cancels, exact_dots.to(SUM), dots)
                square = tl.where(cancels, exact.to(SUM), square)
        write_cosines(
            to_own, part_of_columns, query_norm, column, dots, square, total, within, GRADIENTS
        )  # fmt: skip
    tl.debug_barrier()
    at = scores + n * scores_stride + block * scores_column
    if GRADIENTS:
        given = tl.load(at, mask=block < M, other=0.0).to(DTYPE)
        of_context = multiples + n * columns
        write_multiples(
            to_own, of_context, part_of_columns, query_norm, query_counts, given, block, rows,
            M, Q, scale, HAS_QUERY_COUNTS, AGGREGATE, OF_QUERY,
        )  # fmt: skip
        tl.debug_barrier()
        most = tl.zeros((1,), DTYPE)
        for some in range(0, QUERIES, AT_ONCE):
            found = write_weights(
                products, norm, alpha, times_gram, to_own, of_context, part_of_columns, weights,
                part, stride, context_factor, query_factor, query_counts, n, contexts,
                first_query + some + tl.arange(0, AT_ONCE), rows, M, C, Q, smooth, HAS_QUERY_COUNTS,
                CLIPPED, NORM, PARTS, PRECISION, ROWS, OF_WEIGHTS, WHOLE,
            )  # fmt: skip
            most = tl.maximum(most, found)
        if LARGEST:
            program = n * tl.num_programs(1) + tl.program_id(1)
            tl.store(largest + program + tl.arange(0, 1), most)
    else:
        found = aggregate(
            to_own, query_counts, block, rows, M, Q, scale, HAS_QUERY_COUNTS, AGGREGATE, OF_QUERY
        )
        tl.store(at, found, mask=block < M)
