"""Rank of the best positive of every query, without the full score matrix in memory."""

import torch
from torch import Tensor

from itm_kernels.reference._precision import wide

_BLOCK = 1 << 22  # scores; 16 MiB in fp32


def ranks(
    queries: Tensor,  # [Q, D]
    gallery: Tensor,  # [G, D]
    query_ids: Tensor,  # [Q]
    gallery_ids: Tensor,  # [G]
    gallery_keys: Tensor,  # [G], equal for equal rows
) -> tuple[Tensor, Tensor, Tensor]:  # [Q] each
    """Count negatives above the best finite positive, negatives and positives that tie with it.

    The count of positives is 0 if none has a finite score. Equal rows tie with one another, however
    their products are rounded.
    """
    rows = max(1, _BLOCK // gallery.shape[0])
    blocks = []
    for block, ids in zip(queries.split(rows), query_ids.split(rows), strict=True):
        scores = wide(block) @ wide(gallery).T
        own = ids[:, None] == gallery_ids
        best = scores.masked_fill(~own | ~scores.isfinite(), -torch.inf).max(1, keepdim=True)
        copy = gallery_keys[best.indices] == gallery_keys
        tied = (copy | (scores == best.values)) & (best.values > -torch.inf)
        above = (scores > best.values) & ~copy & ~own  # a positive may be infinite
        counted = above, tied & ~own, tied & own
        blocks.append(torch.stack([which.sum(1) for which in counted]))
    above, ties, positives = torch.cat(blocks, 1)
    return above, ties, positives
