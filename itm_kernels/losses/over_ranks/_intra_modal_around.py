"""Intra-modal constraint whose rows travel around a ring: bounds other than ranks."""

import torch
from torch import Tensor

from itm_kernels._policies import scored_at_once
from itm_kernels.distributed._ring import Outputs, circulate
from itm_kernels.distributed._side import Side
from itm_kernels.losses.over_ranks._in_blocks import scores_of
from itm_kernels.ops._unit_rows import fused_unit_rows
from itm_kernels.reference._intra_modal import absolute_band_sums
from itm_kernels.reference._nan import nan_unless_finite, with_nan_gradient
from itm_kernels.reference._precision import wide


def constraint_values_around(
    x: Tensor,  # [n, D], of this rank
    ids: Tensor,  # [N]
    side: Side,
    metric: str,
    mode: str,
    lower: float,
    upper: float,
    backend: str,
) -> Tensor:  # [n]
    """Return the sums of this rank's rows over their pairs in the global batch.

    Own rows are normalised once; visiting rows, for every part of them.
    """
    own_ids = ids[side.own]
    unit = metric == "cosine" and mode != "official"
    score = scores_of(backend)

    def score_of_unit(rows: Tensor, visiting: Tensor, _: str) -> Tensor:
        return score(rows, fused_unit_rows(visiting, backend), "dot")

    band = metric, mode, lower, upper, score_of_unit if unit else score
    own = fused_unit_rows(x, backend) if unit else wide(x)

    def of_block(visiting: Tensor, given: slice, rows: Tensor) -> Outputs:
        if not rows.shape[0] or not visiting.shape[0]:
            return Outputs((), (torch.zeros_like(rows[:, 0]),))
        return Outputs((), (absolute_band_sums(rows, wide(visiting), own_ids, ids[given], *band),))

    (found,) = circulate(of_block, side, x, own, at_once=scored_at_once(x)).sums
    if mode == "official":
        # An infinite row is outside every band; its score with itself makes the sum NaN.
        return with_nan_gradient(found + nan_unless_finite(wide(x).square().sum(1)))
    return found
