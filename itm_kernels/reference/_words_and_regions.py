"""Rows of padded sets: which of them exist, and their scores with the rows of other sets.

A set is the regions of an image or the words of a text, `[rows, D]`; a batch of sets is padded to
the same number of rows. A padded row takes part in nothing, whatever its values are.
"""

import torch
from torch import Tensor

from itm_kernels.reference._precision import wide


def existing(rows: Tensor, counts: Tensor | None) -> Tensor:  # [N, R, D] -> [N, R] bool
    """Return which rows of the sets exist, all of them without counts."""
    number = torch.arange(rows.shape[1], device=rows.device)
    if counts is None:
        return (number >= 0).expand(rows.shape[:2])
    return number < counts[:, None]


def existing_rows(rows: Tensor, counts: Tensor | None) -> Tensor:
    """Return the sets in fp32 or better, with 0 in padded rows, which get no gradient."""
    rows = wide(rows)
    return rows if counts is None else rows.masked_fill(~existing(rows, counts)[..., None], 0)


def products_of_sets(context: Tensor, query: Tensor) -> Tensor:
    """Return the dot products of all rows of sets `[N, C, D]` and `[M, Q, D]`: `[N, M, C, Q]`."""
    products = context.flatten(0, 1) @ query.flatten(0, 1).T
    return products.view(*context.shape[:2], *query.shape[:2]).transpose(1, 2)
