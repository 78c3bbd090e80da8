"""Cross attention: a library product per chunk of contexts, softmax, and a product with its Gram.

The norm of what is attended to is the square root of alpha^T G alpha, with the Gram matrix G of the
context. Where rows cancel, fp32 would lose twice the digits that attending loses: those columns are
computed in fp64 (`_attention_vectors`).

fp32 rows are multiplied in fp32. Products of fp16 parts on an H200 have 13 times eager's error, and
the softmax and cosines magnify it.
"""

from torch import Tensor

from itm_kernels.triton._attention import gradients_of, write_scores
from itm_kernels.triton._attention_gram import add_through_gram, gradients_of_gram, gram_matrices
from itm_kernels.triton._attention_tiles import Options
from itm_kernels.triton._products import add_product
from itm_kernels.triton._row_set_gradients import gradients
from itm_kernels.triton._row_sets import chunks, prepared, products


def cross_attention_forward(
    context: Tensor,  # [N, C, D]
    query: Tensor,  # [M, Q, D]
    context_counts: Tensor | None,  # [N]
    query_counts: Tensor | None,  # [M]
    feature_norm: str,
    smooth: float,
    aggregate: str,
    scale: float,
    keep_products: bool,
) -> tuple[Tensor, Tensor]:  # [N, M], [N, C, M, Q] or [0, 0, 0, 0]
    """Return the scores, and the products of all rows without their factors."""
    rows, others = prepared(context, query, context_counts, query_counts, cosine=False, split=False)
    options = Options(feature_norm, smooth, aggregate, scale)
    (N, C, _), (M, Q, _) = context.shape, query.shape
    scores = rows.factor.new_empty((N, M))
    kept = rows.factor.new_empty((N, C, M, Q) if keep_products else (0, 0, 0, 0))
    for chunk in chunks(rows, others):
        out = kept[chunk].view(-1, M * Q) if keep_products else None
        found = products(rows, chunk, others, out)
        gram = gram_matrices(rows, chunk)
        write_scores(rows, chunk, others, found, gram, options, scores[chunk])
        del found  # before the next chunk
    return scores, kept


def cross_attention_backward(
    grad: Tensor,  # [N, M]
    kept: Tensor,  # [N, C, M, Q] or [0, 0, 0, 0]
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
    options = Options(feature_norm, smooth, aggregate, scale)
    (_, C, D), (M, Q, _) = context.shape, query.shape
    of_context = rows.factor.new_empty((rows.factor.shape[0], D))
    of_query = of_query_norm = None
    for chunk in chunks(rows, others):
        at, keeps = slice(chunk.start * C, chunk.stop * C), kept.shape[0] > 0
        of_rows = kept[chunk].view(-1, M * Q) if keeps else products(rows, chunk, others)
        gram = gram_matrices(rows, chunk)
        found = gradients_of(rows, chunk, others, of_rows, gram, options, grad[chunk], not keeps)
        weights, unit = found.weights, found.unit
        of_gram, along = gradients_of_gram(found.outer, found.alpha, rows), found.along.sum(0)
        del found, of_rows
        into = add_product(None, weights, others.parts, out=of_context[at])
        add_through_gram(of_gram, rows, chunk, unit, into)
        if unit is None:
            of_query = add_product(of_query, weights, rows.parts[:, at], transposed=True)
        else:
            more = add_product(None, weights, rows.parts[:, at], transposed=True).div_(unit)
            of_query = more if of_query is None else of_query.add_(more)
        of_query_norm = along if of_query_norm is None else of_query_norm.add_(along)
        del weights  # before the next chunk
    assert of_query is not None
    return gradients(rows, others, of_context, of_query, None, of_query_norm)
