"""Late interaction: a library product per chunk of contexts, then a segmented maximum.

Forward and backward take three products of all rows, 24 GFLOP each at N = M = 128, C = 36, Q = 20,
D = 1024 [C]. The products of that batch are one chunk: written and read, 22 us of an H200, where a
tile of products in registers would have to pad 36 rows to 64, 31 us of tensor cores.

The gradient is a sparse matrix times rows, one element in C. Adding the best rows would read 1.3 GB
from the L2, 180 us in bf16; the same matrix with its zeros takes two products of 41 us. Rows are
cheaper beyond C = 80.
"""

import torch
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._blocked_products import blocked_products
from itm_kernels.triton._launch import cdiv, jit, next_power_of_2
from itm_kernels.triton._operands import Operands, tile_and_precision
from itm_kernels.triton._products import (
    precision_of,
    store_parts,
    weight_scale,
    weights_empty,
    whole_groups,
)
from itm_kernels.triton._row_set_gradients import gradients
from itm_kernels.triton._row_sets import (
    RowSets,
    chunks,
    contexts_at_once,
    prepared,
    products,
)

_PAIRS = 256  # columns of products per program, of whole queries where they fit
_ROWS = 16  # rows of a context per step of the backward pass
_ROWS_AT_ONCE = 4  # of a context, whose products a thread loads before it compares them


def late_interaction_forward(
    context: Tensor,  # [N, C, D]
    query: Tensor,  # [M, Q, D]
    context_counts: Tensor | None,  # [N]
    query_counts: Tensor | None,  # [M]
    mean: bool,
    cosine: bool,
    keep_winners: bool,
) -> tuple[Tensor, Tensor]:  # [N, M], [N, M, Q] or [0, 0, 0]
    """Return the scores, and the best row of every context for every query row."""
    N, (M, Q, _) = context.shape[0], query.shape
    rows, others = prepared(context, query, context_counts, query_counts, cosine)
    scores = torch.empty((N, M), dtype=rows.factor.dtype, device=context.device)
    kept = (N, M, Q) if keep_winners else (0, 0, 0)
    winners = torch.empty(kept, dtype=torch.int16, device=context.device)
    for chunk in chunks(rows, others):
        into = winners[chunk] if keep_winners else None
        _find_best(rows, chunk, others, scores[chunk], into, mean)
    return scores, winners


def late_interaction_backward(
    grad: Tensor,  # [N, M]
    winners: Tensor,  # [N, M, Q] or [0, 0, 0]
    context: Tensor,  # [N, C, D]
    query: Tensor,  # [M, Q, D]
    context_counts: Tensor | None,  # [N]
    query_counts: Tensor | None,  # [M]
    mean: bool,
    cosine: bool,
) -> tuple[Tensor, Tensor]:  # [N, C, D], [M, Q, D]
    """Return the gradients of context and query, which kept or recomputed winners select."""
    C, (M, Q, _) = context.shape[1], query.shape
    rows, others = prepared(context, query, context_counts, query_counts, cosine)
    unit = _unit(grad, rows, others)

    def fill(first: int, weights: Tensor) -> None:
        chunk = slice(first // C, (first + weights.shape[1]) // C)
        n = chunk.stop - chunk.start
        found = winners[chunk] if winners.shape[0] > 0 else None
        if found is None:
            found = torch.empty((n, M, Q), dtype=torch.int32, device=context.device)
            scores = torch.empty((n, M), dtype=rows.factor.dtype, device=context.device)
            _find_best(rows, chunk, others, scores, found, mean)
        _weights_kernel[(n, cdiv(M * Q, _PAIRS))](
            grad[chunk], found, rows.factor[chunk.start * C :], others.factor, others.counts,
            grad if unit is None else unit, weights, *grad.stride(), *weights.stride()[:2], M, C, Q,
            MEAN=mean, HAS_COUNTS=others.has_counts, HAS_UNIT=unit is not None,
            PARTS=weights.shape[0], PRECISION=precision_of(weights), ROWS=_ROWS, COLUMNS=_PAIRS,
        )  # fmt: skip

    like = context.flatten(0, 1)
    of_context, of_query = blocked_products(
        rows.parts, others.parts, lambda R, columns: weights_empty(R, columns, like), fill,
        contexts_at_once(rows, others) * C,
    )  # fmt: skip
    return gradients(rows, others, of_context, of_query, unit)


def _unit(grad: Tensor, rows: RowSets, others: RowSets) -> Tensor | None:  # []
    """Return the power of two that makes the weights fit fp16, None for 1."""
    if not rows.powers:
        return None
    x, y = rows.parts, others.parts
    tile, precision = tile_and_precision(rows.kind, x[0], y[0])
    both = Operands(x, y, rows.kind, precision, tile, rows.factor, others.factor)
    largest = torch.linalg.vector_norm(grad, torch.inf).view(1)
    like = rows.rows.flatten(0, 1)
    return weight_scale(like, both, torch.ones_like(largest[0]), largest)


def _find_best(
    rows: RowSets,
    chunk: slice,
    others: RowSets,
    scores: Tensor,  # [n, M] to write
    winners: Tensor | None,  # [n, M, Q] to write
    mean: bool,
) -> None:
    (_, C, _), (M, Q, _) = rows.rows.shape, others.rows.shape
    found = products(rows, chunk, others)
    columns = min(next_power_of_2(Q), _PAIRS)
    queries = min(_PAIRS // columns, next_power_of_2(M))
    _best_kernel[(chunk.stop - chunk.start, cdiv(M, queries))](
        found, rows.factor[chunk.start * C :], others.factor, rows.counts[chunk], others.counts,
        scores, scores if winners is None else winners, found.stride(0), M, C, Q,
        HAS_CONTEXT_COUNTS=rows.has_counts, HAS_QUERY_COUNTS=others.has_counts, MEAN=mean,
        KEEP=winners is not None, ROWS=_ROWS_AT_ONCE, QUERIES=queries, COLUMNS=columns,
    )  # fmt: skip


@jit(do_not_specialize=["M"])
def _best_kernel(
    products,  # [n C, M Q]
    context_factor,  # [n C]
    query_factor,  # [M Q]
    context_counts,  # [n]
    query_counts,  # [M]
    scores,  # [n, M]
    winners,  # [n, M, Q]
    stride,
    M,
    C,
    Q,
    HAS_CONTEXT_COUNTS: tl.constexpr,
    HAS_QUERY_COUNTS: tl.constexpr,
    MEAN: tl.constexpr,
    KEEP: tl.constexpr,
    ROWS: tl.constexpr,
    QUERIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    m = tl.program_id(1).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    DTYPE: tl.constexpr = scores.dtype.element_ty
    rows = tl.cast(C, tl.int32)
    if HAS_CONTEXT_COUNTS:
        rows = tl.load(context_counts + n).to(tl.int32)
    asks = tl.where(m < M, tl.cast(Q, tl.int32), 0)
    if HAS_QUERY_COUNTS:
        asks = tl.load(query_counts + m, mask=m < M, other=0).to(tl.int32)
    total = tl.zeros((QUERIES,), DTYPE)
    for first in range(0, Q, COLUMNS):
        q = first + tl.arange(0, COLUMNS)
        column = tl.reshape(m[:, None] * Q + q[None, :], (QUERIES * COLUMNS,))
        there = tl.reshape(q[None, :] < asks[:, None], (QUERIES * COLUMNS,))
        highest = tl.full((QUERIES * COLUMNS,), float("-inf"), DTYPE)
        best = highest  # NaN if a product is
        which = tl.zeros((QUERIES * COLUMNS,), tl.int32)
        at = products + n * C * stride + tl.where(there, column, 0)
        for row in range(0, rows, ROWS):
            # Lanes are columns: a tile would be given lanes along its rows, and loads of single
            # elements. Beyond the last row it is read again, which changes nothing.
            for k in tl.static_range(ROWS):
                c = tl.minimum(row + k, rows - 1)
                value = tl.load(at + tl.cast(c, tl.int64) * stride)
                value *= tl.load(context_factor + n * C + c)
                best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
                value = tl.where(value == value, value, float("inf"))
                which = tl.where(value > highest, c, which)
                highest = tl.maximum(highest, value)
        there &= rows > 0
        best = tl.where(there, best, 0.0)
        best *= tl.load(query_factor + column, mask=there, other=0.0)
        total += tl.sum(tl.reshape(best, (QUERIES, COLUMNS)), 1)
        if KEEP:
            inside = tl.reshape((m < M)[:, None] & (q < Q)[None, :], (QUERIES * COLUMNS,))
            found = tl.where(there, which, -1).to(winners.dtype.element_ty)
            tl.store(winners + n * M * Q + column, found, mask=inside)
    if MEAN:
        total /= tl.maximum(asks, 1).to(DTYPE)
    tl.store(scores + n * M + m, total, mask=m < M)


@jit(do_not_specialize=["M"])
def _weights_kernel(
    grad,  # [n, M]
    winners,  # [n, M, Q]
    context_factor,  # [n C]
    query_factor,  # [M Q]
    query_counts,  # [M]
    unit,  # []
    weights,  # [PARTS, n C, M Q]
    grad_stride,
    grad_column,
    part,
    stride,
    M,
    C,
    Q,
    MEAN: tl.constexpr,
    HAS_COUNTS: tl.constexpr,
    HAS_UNIT: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    columns = tl.cast(M, tl.int64) * Q
    there = column < columns
    m = (column // Q).to(tl.int64)
    DTYPE: tl.constexpr = query_factor.dtype.element_ty
    best = tl.load(winners + n * columns + column, mask=there, other=-1).to(tl.int32)
    at = grad + n * grad_stride + m * grad_column
    value = tl.load(at, mask=there, other=0.0).to(DTYPE)
    if MEAN:
        asks = tl.cast(Q, tl.int64)
        if HAS_COUNTS:
            asks = tl.maximum(tl.load(query_counts + m, mask=there, other=1), 1)
        value /= asks.to(DTYPE)
    if HAS_UNIT:
        value *= tl.load(unit)
    value *= tl.load(query_factor + column, mask=there, other=0.0)
    for row in range(0, C, ROWS):
        c = row + tl.arange(0, ROWS)
        factor = tl.load(context_factor + n * C + c, mask=c < C, other=0.0)
        found = tl.where(best[None, :] == c[:, None], value[None, :] * factor[:, None], 0.0)
        to = weights + ((n * C + c) * stride)[:, None] + column[None, :]
        inside = (c < C)[:, None] & whole_groups(column, columns)[None, :]
        store_parts(to, tl.cast(part, tl.int64), found, inside, PARTS, PRECISION)
