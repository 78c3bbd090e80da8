"""Fusion loss of ITO over the ranks of a process group."""

from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from itm_kernels.distributed._agreement import Agreement
from itm_kernels.losses._contrast import Embeddings, LogSums, cross_entropy
from itm_kernels.losses._logit_scale import checked_scale
from itm_kernels.losses._module import check_options
from itm_kernels.losses._views import check_fused
from itm_kernels.losses.over_ranks._batch import reduce_over_ranks
from itm_kernels.losses.over_ranks._multi_view_alignment import ViewsOfAll
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
    return mean_fusion(fused, scale, backend, agreement)


def mean_fusion(
    fused: Tensor,  # [V, n, D]
    scale: Tensor,  # []
    backend: str,
    agreement: Agreement,
) -> Tensor:  # []
    """Return the mean over all pairs of views, both directions and all samples."""
    side = agreement.sides["fused"]
    views = Embeddings(fused, backend).unbind()
    everyone = ViewsOfAll(fused, side, agreement.exchange, backend)
    # Scores within a view are symmetric: the sums of this rank's columns are those of its rows, so
    # nothing is combined over ranks.
    among = [everyone.log_sums_of_columns(index, view, scale) for index, view in enumerate(views)]
    within = [LogSums(found.column, found.column_highest) for found in among]
    losses = []
    for a, b in combinations(range(len(views)), 2):
        across = everyone.log_sums(a, views[b], scale)
        to_b = [LogSums(across.row[side.own], across.row_highest[side.own]), within[a]]
        to_a = [LogSums(across.column, across.column_highest), within[b]]
        losses.append(cross_entropy(across.positive, to_b, to_a, 0.5, backend))
    return reduce_over_ranks(torch.stack(losses), "mean", side, len(losses) * side.total)
