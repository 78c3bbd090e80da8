"""Rank of the best positive of every query, without the whole score matrix in memory."""

import torch
from torch import Tensor

from itm_kernels.reference._rows import wide

_SCORES_AT_ONCE = 1 << 22  # 16 MiB of fp32


def ranks(
    queries: Tensor,  # [Q, D]
    gallery: Tensor,  # [G, D]
    query_ids: Tensor,  # [Q]
    gallery_ids: Tensor,  # [G]
) -> Tensor:  # [Q]
    """Return 1 + the number of candidates that score above the query's best positive."""
    rows = max(1, _SCORES_AT_ONCE // gallery.shape[0])
    blocks = []
    for block, ids in zip(queries.split(rows), query_ids.split(rows), strict=True):
        scores = wide(block) @ wide(gallery).T
        positive = scores.masked_fill(ids[:, None] != gallery_ids, -torch.inf)
        best = positive.max(1, keepdim=True).values
        blocks.append(1 + (scores > best).sum(1))
    return torch.cat(blocks)
