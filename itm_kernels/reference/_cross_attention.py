"""Stacked cross attention: every row of a query against what it attends to in the context."""

import torch
from torch import Tensor

from itm_kernels.reference._words_and_regions import existing, existing_rows, products_of_sets

LEAST = 1e-8  # added to the norm of products, and the least product of two norms
SLOPE = 0.1  # of the leaky rectifier at products below 0


def normalised_products(products: Tensor, in_query: Tensor, feature_norm: str) -> Tensor:
    """Normalise the products of every context row over the query `[N, M, C, Q]`.

    Source: Lee et al., SCAN, 2018, section 3.1, and its code for the other norms.
    """
    if feature_norm == "softmax":
        return products.masked_fill(~in_query[:, None], -torch.inf).softmax(3)
    if feature_norm.startswith("clipped"):
        products = torch.nn.functional.leaky_relu(products, SLOPE)
    if feature_norm.endswith("l2norm"):
        products = products / (torch.linalg.vector_norm(products, dim=3, keepdim=True) + LEAST)
    return products


def cross_attention(
    context: Tensor,  # [N, C, D]
    query: Tensor,  # [M, Q, D]
    context_counts: Tensor | None,  # [N]
    query_counts: Tensor | None,  # [M]
    feature_norm: str,
    smooth: float,
    aggregate: str,
    scale: float,
) -> Tensor:  # [N, M]
    """Return the aggregated cosines of the rows of a query and the vectors they attend to.

    The attended vectors `[N, M, Q, D]` are formed, as in the paper.
    """
    in_context, in_query = existing(context, context_counts), existing(query, query_counts)
    context, query = existing_rows(context, context_counts), existing_rows(query, query_counts)
    both = in_context.any(1)[:, None] & in_query.any(1)  # [N, M]
    # An empty set keeps its first row here, without gradient, so that no softmax is empty.
    first = torch.arange(in_context.shape[1], device=context.device) == 0
    attends = in_context | (first & ~in_context.any(1, keepdim=True))
    first = torch.arange(in_query.shape[1], device=query.device) == 0
    asks = in_query | (first & ~in_query.any(1, keepdim=True))
    products = normalised_products(products_of_sets(context, query), asks, feature_norm)
    logits = (smooth * products).masked_fill(~attends[:, None, :, None], -torch.inf)
    attended = torch.einsum("nmcq,ncd->nmqd", logits.softmax(2), context)
    norms = torch.linalg.vector_norm(attended, dim=3) * torch.linalg.vector_norm(query, dim=2)
    cosine = (attended * query).sum(3) / norms.clamp_min(LEAST)  # [N, M, Q]
    return aggregated(cosine, asks, aggregate, scale).masked_fill(~both, 0)


def aggregated(cosine: Tensor, in_query: Tensor, aggregate: str, scale: float) -> Tensor:
    """Aggregate cosines `[N, M, Q]` over the query rows that exist; the first maximum counts."""
    if aggregate in ("log_sum_exp", "max"):
        cosine = cosine.masked_fill(~in_query, -torch.inf)
        if aggregate == "max":
            return cosine.gather(2, cosine.detach().argmax(2, keepdim=True)).squeeze(2)
        return (scale * cosine).logsumexp(2) / scale
    sums = cosine.masked_fill(~in_query, 0).sum(2)
    return sums / in_query.sum(1) if aggregate == "mean" else sums
