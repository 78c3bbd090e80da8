"""Fusion loss of ITO over the ranks of a process group."""

from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from itm_kernels.distributed._agreement import Agreement
from itm_kernels.distributed._collectives import attached
from itm_kernels.distributed._side import Side
from itm_kernels.losses._contrast import Embeddings, LogSums, cross_entropy, log_sums
from itm_kernels.losses._logit_scale import checked_scale
from itm_kernels.losses._module import check_options
from itm_kernels.losses._views import check_fused
from itm_kernels.losses.over_ranks._batch import reduce_over_ranks
from itm_kernels.losses.over_ranks._log_sums import log_sums_over_ranks
from itm_kernels.losses.over_ranks._multi_view_alignment import gather_views
from itm_kernels.ops._log_sum_exp import as_scalar


def fusion_over_ranks(
    fused: Tensor,  # [V, n, D]
    scales: tuple[Any, Any, Any],  # logit_scale, temperature, max_scale
    backend: str,
    agreement: Agreement,
) -> Tensor:
    """Compute `fusion_contrastive_loss` of the global batch."""
    with agreement:
        check_fused(fused, 0)
        check_options("mean", backend)
        scale = checked_scale(fused, *scales)
        agreement.describe(
            "fusion_contrastive_loss", {"fused": fused}, logit_scale=scale, max_scale=scales[2]
        )
    fused, scale = agreement.entering(fused, as_scalar(scale, fused))
    return mean_fusion(fused, scale, backend, agreement.sides["fused"])


def mean_fusion(
    fused: Tensor,  # [V, n, D]
    scale: Tensor,  # []
    backend: str,
    side: Side,
) -> Tensor:  # []
    """Return the mean over all pairs of views, both directions and all samples."""
    own = side.indices(fused.device)
    everyone = torch.arange(side.total, device=fused.device)
    views = Embeddings(fused, backend).unbind()
    gathered = Embeddings(gather_views(fused, side), backend).unbind()
    # Scores within a view are symmetric: the sums of this rank's columns need no other rank.
    within = [
        _column_sums(x, y, scale, everyone, own) for x, y in zip(gathered, views, strict=True)
    ]
    losses = []
    for a, b in combinations(range(len(views)), 2):
        across = log_sums_over_ranks(gathered[a], views[b], scale, everyone, own, own, side)
        to_b = [LogSums(across.row[side.own], across.row_highest[side.own]), within[a]]
        to_a = [LogSums(across.column, across.column_highest), within[b]]
        losses.append(cross_entropy(across.positive, to_b, to_a, 0.5, backend))
    return reduce_over_ranks(torch.stack(losses), "mean", side, len(losses) * side.total)


def _column_sums(
    x: Embeddings,  # [N, D]
    y: Embeddings,  # [n, D], rows of x
    scale: Tensor,  # []
    x_ids: Tensor,  # [N]
    y_ids: Tensor,  # [n]
) -> LogSums:  # [n]
    """Return the sums over all rows but a row itself."""
    if not y.raw.shape[0]:
        none = scale.new_empty(0)
        return LogSums(attached(none, x.raw, y.raw, scale), none)
    found = log_sums(x, y, scale, x_ids, y_ids)
    return LogSums(found.column, found.column_highest)
