"""Cross attention: a library product per chunk of contexts, softmax, and a product with its Gram.

The norm of what is attended to is the square root of alpha^T G alpha, with the Gram matrix G of the
context. Where rows cancel, fp32 would lose twice the digits that attending loses: those columns are
computed in fp64 (`_attention_vectors`).

fp32 rows are multiplied in fp32. Products of fp16 parts on an H200 have 13 times eager's error, and
the softmax and cosines magnify it.
"""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._attention import Attention, attend
from itm_kernels.triton._attention_gradients import of_cosines, write_weights
from itm_kernels.triton._attention_tiles import arguments, asked, query_blocks, rows_of
from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._products import add_product
from itm_kernels.triton._row_set_gradients import gradients
from itm_kernels.triton._row_sets import RowSets, chunks, prepared


def cross_attention_forward(
    context: Tensor,  # [N, C, D]
    query: Tensor,  # [M, Q, D]
    context_counts: Tensor | None,  # [N]
    query_counts: Tensor | None,  # [M]
    feature_norm: str,
    smooth: float,
    aggregate: str,
    scale: float,
    keep_products: bool,  # False
) -> tuple[Tensor, Tensor]:  # [N, M], [0, 0, 0, 0]
    """Return the scores."""
    rows, others = prepared(context, query, context_counts, query_counts, cosine=False, split=False)
    scores = rows.factor.new_empty((context.shape[0], query.shape[0]))
    for chunk in chunks(rows, others):
        wide = _wide_rows(rows, chunk)
        gram = torch.bmm(wide, wide.mT)
        found = attend(rows, chunk, others, gram, feature_norm, smooth, gradients=False)
        _aggregate(found.cosine, scores[chunk], arguments(rows, chunk, others), aggregate, scale)
        del found
    return scores, rows.factor.new_empty((0, 0, 0, 0))


def cross_attention_backward(
    grad: Tensor,  # [N, M]
    scores: Tensor,  # [N, M]
    products: Tensor,  # [0, 0, 0, 0]
    context: Tensor,  # [N, C, D]
    query: Tensor,  # [M, Q, D]
    context_counts: Tensor | None,  # [N]
    query_counts: Tensor | None,  # [M]
    feature_norm: str,
    smooth: float,
    aggregate: str,
    scale: float,
) -> tuple[Tensor, Tensor]:  # [N, C, D], [M, Q, D]
    """Return the gradients of context and query, recomputing the attention of every chunk."""
    rows, others = prepared(context, query, context_counts, query_counts, cosine=False, split=False)
    _, C, D = context.shape
    of_context = rows.factor.new_empty((rows.factor.shape[0], D))
    of_query = of_query_norm = None
    for chunk in chunks(rows, others):
        wide, at = _wide_rows(rows, chunk), slice(chunk.start * C, chunk.stop * C)
        gram = torch.bmm(wide, wide.mT)
        found = attend(rows, chunk, others, gram, feature_norm, smooth, gradients=True)
        sides = arguments(rows, chunk, others)
        given = grad[chunk], scores[chunk], found, sides, others, aggregate, scale
        of_cosine, along = of_cosines(*given)
        options = feature_norm, smooth
        weights, unit = write_weights(found, of_cosine, rows, chunk, others, *options)
        of_gram, along = _of_gram(found, rows), along.sum(0)
        del found, given, of_cosine
        into = add_product(None, weights, others.parts, out=of_context[at])
        of_rows = rows.parts[:, at]
        if unit is None:
            of_query = add_product(of_query, weights, of_rows, transposed=True)
        else:
            into.div_(unit)
            more = add_product(None, weights, of_rows, transposed=True).div_(unit)
            of_query = more if of_query is None else of_query.add_(more)
        if rows.powers:
            of_gram = of_gram * rows.factor[at].view(-1, C, 1)
        into.view(wide.shape).add_(torch.bmm(of_gram, wide.to(of_gram.dtype)))
        of_query_norm = along if of_query_norm is None else of_query_norm.add_(along)
        del weights  # before the next chunk
    assert of_query is not None
    return gradients(rows, others, of_context, of_query, None, of_query_norm)


def _of_gram(found: Attention, rows: RowSets) -> Tensor:  # [n, C, C]
    """Return twice the gradient of the Gram matrices.

    Where rows cancel, so does its product with them: rounded to fp32, the matrices of fp32 rows
    would have errors of up to four times those of attending.
    """
    C = rows.rows.shape[1]
    outer, alpha = (pairs.view(-1, C, pairs.shape[1]) for pairs in (found.times_gram, found.alpha))
    if rows.kind != "ieee":
        return torch.bmm(outer, alpha.mT)
    size = cdiv(outer.shape[0], 16)  # of the contexts whose copies in fp64 exist at once
    parts = zip(outer.split(size), alpha.split(size), strict=True)
    return torch.cat([torch.bmm(one.double(), other.double().mT) for one, other in parts])


def _wide_rows(rows: RowSets, chunk: slice) -> Tensor:  # [n, C, D]
    """Return the rows of a chunk in fp32 or fp64, 0 for padded rows."""
    wide = rows.rows[chunk].to(rows.factor.dtype)
    if not rows.has_counts:
        return wide
    exists = torch.arange(wide.shape[1], device=wide.device) < rows.counts[chunk][:, None]
    return wide.masked_fill(~exists[..., None], 0)


def _aggregate(
    cosine: Tensor, scores: Tensor, sides: dict[str, Any], aggregate: str, scale: float
) -> None:
    M, Q = sides["M"], sides["Q"]
    blocks = query_blocks(M, Q, 256)
    _aggregate_kernel[(scores.shape[0], cdiv(M, blocks["QUERIES"]))](
        cosine, scores, sides["context_counts"], sides["query_counts"], M, sides["C"], Q, scale,
        HAS_CONTEXT_COUNTS=sides["HAS_CONTEXT_COUNTS"],
        HAS_QUERY_COUNTS=sides["HAS_QUERY_COUNTS"], AGGREGATE=aggregate, **blocks,
    )  # fmt: skip


@jit
def _aggregate_kernel(
    cosine,  # [n, M Q]
    scores,  # [n, M]
    context_counts,
    query_counts,
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
    total = tl.zeros((QUERIES,), DTYPE)
    top = tl.full((QUERIES,), float("-inf"), DTYPE)
    unknown = tl.zeros((QUERIES,), tl.int32)
    factor = tl.cast(scale, DTYPE)
    for first in range(0, Q, COLUMNS):
        q = first + tl.arange(0, COLUMNS)
        there = q[None, :] < asks[:, None]
        value = tl.load(cosine + n * columns + m[:, None] * Q + q[None, :], mask=there, other=0.0)
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
    tl.store(scores + n * M + m, tl.where(both, found, 0.0), mask=m < M)
