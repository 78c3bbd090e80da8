"""Late interaction: the best match of every query row, averaged or summed over the query."""

import torch
from torch import Tensor

from itm_kernels.reference._unit_rows import unit_rows
from itm_kernels.reference._words_and_regions import existing, existing_rows, products_of_sets


def late_interaction(
    context: Tensor,  # [N, C, D]
    query: Tensor,  # [M, Q, D]
    context_counts: Tensor | None,  # [N]
    query_counts: Tensor | None,  # [M]
    mean: bool,
    cosine: bool,
) -> Tensor:  # [N, M]
    """Return the mean or sum over the rows of a query of their best product, or cosine.

    Of equal maxima the row with the lowest index takes the gradient.
    """
    in_context, in_query = existing(context, context_counts), existing(query, query_counts)
    context, query = existing_rows(context, context_counts), existing_rows(query, query_counts)
    if cosine:
        context, query = unit_rows(context), unit_rows(query)
    products = products_of_sets(context, query).masked_fill(
        ~in_context[:, None, :, None], -torch.inf
    )
    found = products.max(2).values  # [N, M, Q]
    both = in_query & in_context.any(1)[:, None, None]
    sums = found.masked_fill(~both, 0).sum(2)
    return sums / in_query.sum(1).clamp_min(1) if mean else sums
