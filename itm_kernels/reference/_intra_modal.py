"""Intra-modal constraint: band sums over the pairs of one modality."""

from collections.abc import Callable

import torch
from torch import Tensor

from itm_kernels.reference._nan import nan_unless_finite, with_nan_gradient
from itm_kernels.reference._positives import same_id
from itm_kernels.reference._similarity import similarity

# The scores of rows [n, D] and [N, D] by a metric, as `similarity`.
Score = Callable[[Tensor, Tensor, str], Tensor]


def intra_modal(
    x: Tensor,  # [N, D]
    ids: Tensor | None,  # [N]; given with a block
    metric: str,
    mode: str,
    lower: float,
    upper: float,
    per_row: bool,
    block: slice | None = None,
    score: Score = similarity,
) -> Tensor:  # [N], or [n] of the rows of a block
    """Return the sum of every row over its pairs, without the weight and without 1 / N."""
    values, off = _banded(x, ids, metric, mode, lower, upper, per_row, block, score)
    sums = values.masked_fill(off, 0).sum(1)
    if mode == "official" and metric == "cosine":
        # An infinite row is outside every band; its diagonal entry makes the sum NaN.
        own = values.diagonal(block.start if block else 0)
        return with_nan_gradient(sums + nan_unless_finite(own))
    return sums


def in_band(
    x: Tensor,  # [N, D]
    ids: Tensor | None,  # [N]
    metric: str,
    mode: str,
    lower: float,
    upper: float,
    per_row: bool,
) -> Tensor:  # [N, N]
    """Mark the pairs that `intra_modal` sums."""
    return ~_banded(x, ids, metric, mode, lower, upper, per_row)[1]


def _banded(
    x: Tensor,
    ids: Tensor | None,
    metric: str,
    mode: str,
    lower: float,
    upper: float,
    per_row: bool,
    block: slice | None = None,
    score: Score = similarity,
) -> tuple[Tensor, Tensor]:  # [n, N], [n, N]
    """Return the value of every pair of a row of the block, and mark the excluded pairs."""
    rows, row_ids = x, ids
    if block is not None and ids is not None:
        rows, row_ids = x[block], ids[block]
    if mode == "official" and metric != "cosine":
        elsewhere = block is not None and block.start > 0 and not per_row
        if elsewhere:
            # Row 0 has the bounds. The same operations compute it, so that equal distances tie.
            rows = torch.cat([x[:1], rows])
        relative, low, high = _official_distance(rows, x, metric, lower, upper, per_row, score)
        relative = relative[1:] if elsewhere else relative
        return relative, _off(relative, low, high, row_ids, ids)
    return _absolute(rows, x, row_ids, ids, metric, mode, lower, upper, score)


def absolute_band_sums(
    rows: Tensor,  # [n, D]
    columns: Tensor,  # [k, D]
    row_ids: Tensor,  # [n]
    column_ids: Tensor,  # [k]
    metric: str,
    mode: str,
    lower: float,
    upper: float,
    score: Score,
) -> Tensor:  # [n]
    """Return the sums of `intra_modal` over some columns, for bounds other than ranks."""
    ids = row_ids, column_ids
    values, off = _absolute(rows, columns, *ids, metric, mode, lower, upper, score)
    return values.masked_fill(off, 0).sum(1)


def _absolute(
    rows: Tensor,  # [n, D]
    x: Tensor,  # [N, D]
    row_ids: Tensor | None,  # [n]
    ids: Tensor | None,  # [N]
    metric: str,
    mode: str,
    lower: float,
    upper: float,
    score: Score,
) -> tuple[Tensor, Tensor]:  # [n, N], [n, N]
    if mode == "official":
        similarities = score(rows, x, "dot")
        return similarities, _off(similarities, upper, 1 - lower, row_ids, ids)
    delta = score(rows, x, metric)
    if metric == "cosine":
        delta = 1 - delta
    if mode == "paper":
        return delta, _off(delta, lower, upper, row_ids, ids)
    return (upper - delta).relu(), _off(delta, lower, upper, row_ids, ids)


def _official_distance(
    rows: Tensor,  # [n, D], the first is row 0 unless per_row
    x: Tensor,  # [N, D]
    metric: str,
    lower: float,
    upper: float,
    per_row: bool,
    score: Score,
) -> tuple[Tensor, Tensor, Tensor]:  # [n, N], and bounds [n, 1] or [1, 1]
    distance = score(rows, x, metric)
    # Rows of equal embeddings have norm 0; as in F.normalize, a lower bound prevents 0 / 0.
    norm = torch.linalg.vector_norm(distance, dim=1, keepdim=True).clamp_min(1e-12)
    relative = distance / norm
    ranked = (relative if per_row else relative[:1]).detach().sort(1).values
    low, high = (_at_rank(ranked, round(bound * x.shape[0])) for bound in (lower, upper))
    return relative, low, high


def _at_rank(ranked: Tensor, rank: int) -> Tensor:
    """Return the column of a rank, and infinity beyond the last rank."""
    beyond = torch.full_like(ranked[:, :1], torch.inf)
    return torch.cat([ranked, beyond], 1).narrow(1, min(rank, ranked.shape[1]), 1)


def _off(
    key: Tensor,  # [n, N]
    low: Tensor | float,
    high: Tensor | float,
    row_ids: Tensor | None,  # [n]
    ids: Tensor | None,  # [N]
) -> Tensor:  # [n, N]
    """Mark the pairs outside the band, and those that share an id."""
    # A NaN is not outside, so that it propagates to the sum.
    outside = (key <= low) | (key >= high)
    return outside | (same_id(key, row_ids, ids) & ~key.isnan())
