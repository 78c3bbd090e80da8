"""Rank of the best positive of every query, without the score matrix in memory."""

import torch
from torch import Tensor

from itm_kernels import _checks, reference
from itm_kernels._autocast import outside_autocast
from itm_kernels.backends import resolve
from itm_kernels.ops._define import define, index_empty, operator


def _fake(queries: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> Tensor:
    return index_empty(queries, queries.shape[0])


define(
    "ranks",
    "(Tensor queries, Tensor gallery, Tensor query_ids, Tensor gallery_ids) -> Tensor",
    _fake,
)


@outside_autocast
@torch.no_grad()
def run(
    queries: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor, backend: str
) -> Tensor:
    """Compute `ranks` of checked arguments."""
    inputs = queries, gallery, query_ids, gallery_ids
    namespace = resolve("ranks", "ranks", queries, backend)
    if namespace is None:
        return reference.ranks(*inputs)
    return operator(namespace, "ranks")(*inputs)


def ranks(
    queries: Tensor,
    gallery: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """Return, for every query, the rank of its best positive among all candidates.

    Args:
        queries: `[Q, D]`, scored by dot product as they are.
        gallery: `[G, D]`.
        query_ids: `[Q]` integers; the positives of a query are the candidates with its id.
        gallery_ids: `[G]` integers.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.

    Returns:
        `[Q]` int64: 1 + the number of candidates that score above the best positive; G + 1 for a
        query without a positive. Embeddings are taken to be finite.

    Raises:
        TypeError: an argument is no floating-point tensor, or ids are no integers.
        ValueError: shapes or devices do not fit.
        RuntimeError: the backend asked for cannot run here.

    >>> import torch
    >>> x = torch.tensor([[0.8, 0.9], [0.1, 0.3]])
    >>> ranks(x, torch.eye(2), torch.tensor([0, 1]), torch.tensor([0, 1]))
    tensor([2, 1])
    """
    queries, gallery = _checks.embeddings("ranks", queries=queries, gallery=gallery)
    _checks.identifiers("ranks", "query_ids", query_ids, queries.shape[0], queries)
    _checks.identifiers("ranks", "gallery_ids", gallery_ids, gallery.shape[0], queries)
    device = queries.device
    return run(
        queries, gallery, query_ids.to(device).long(), gallery_ids.to(device).long(), backend
    )
