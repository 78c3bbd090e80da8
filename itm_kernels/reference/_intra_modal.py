"""Intra-modal constraint: band sums over the pairs of one modality."""

import torch
from torch import Tensor

from itm_kernels.reference._nan import nan_unless_finite, with_nan_gradient
from itm_kernels.reference._positives import same_id
from itm_kernels.reference._precision import wide
from itm_kernels.reference._similarity import similarity


def intra_modal(
    x: Tensor,  # [N, D]
    ids: Tensor | None,  # [N]
    metric: str,
    mode: str,
    lower: float,
    upper: float,
    per_row: bool,
) -> Tensor:  # [N]
    """Return the sum of every row over its pairs, without the weight and without 1 / N."""
    values, off = _banded(x, ids, metric, mode, lower, upper, per_row)
    sums = values.masked_fill(off, 0).sum(1)
    if mode == "official" and metric == "cosine":
        # An infinite row is outside every band; its diagonal entry makes the sum NaN.
        return with_nan_gradient(sums + nan_unless_finite(values.diagonal()))
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
) -> tuple[Tensor, Tensor]:  # [N, N], [N, N]
    """Return the value of every pair, and mark the excluded pairs."""
    if mode == "official" and metric == "cosine":
        similarities = wide(x) @ wide(x).T
        return similarities, _off(similarities, upper, 1 - lower, ids)
    if mode == "official":
        return _official_distance(x, ids, metric, lower, upper, per_row)
    delta = similarity(x, x, metric)
    if metric == "cosine":
        delta = 1 - delta
    if mode == "paper":
        return delta, _off(delta, lower, upper, ids)
    return (upper - delta).relu(), _off(delta, lower, upper, ids)


def _official_distance(
    x: Tensor, ids: Tensor | None, metric: str, lower: float, upper: float, per_row: bool
) -> tuple[Tensor, Tensor]:
    distance = similarity(x, x, metric)
    # Rows of equal embeddings have norm 0; as in F.normalize, a lower bound prevents 0 / 0.
    norm = torch.linalg.vector_norm(distance, dim=1, keepdim=True).clamp_min(1e-12)
    relative = distance / norm
    ranked = relative.detach().sort(1).values  # [N, N]
    ranked = ranked if per_row else ranked[:1]
    low, high = (_at_rank(ranked, round(bound * x.shape[0])) for bound in (lower, upper))
    return relative, _off(relative, low, high, ids)


def _at_rank(ranked: Tensor, rank: int) -> Tensor:
    """Return the column of a rank, and infinity beyond the last rank."""
    beyond = torch.full_like(ranked[:, :1], torch.inf)
    return torch.cat([ranked, beyond], 1).narrow(1, torch.sym_min(rank, ranked.shape[1]), 1)


def _off(key: Tensor, low: Tensor | float, high: Tensor | float, ids: Tensor | None) -> Tensor:
    """Mark the pairs outside the band, and those that share an id."""
    # A NaN is not outside, so that it propagates to the sum.
    outside = (key <= low) | (key >= high)
    return outside | (same_id(key, ids, ids) & ~key.isnan())
