"""Batched matrices of similarities and distances."""

import torch
from torch import Tensor

from itm_kernels.reference._precision import wide
from itm_kernels.reference._unit_rows import unit_rows


def similarity(
    x: Tensor,  # [..., N, D]
    y: Tensor,  # [..., M, D]
    metric: str,
) -> Tensor:  # [..., N, M]
    """Return s[n, m] for a similarity (dot, cosine) or a distance (l1, l2, sqeuclidean).

    Distances are computed from direct differences, so that equal rows have distance 0.
    """
    if metric == "dot":
        return wide(x) @ wide(y).mT
    if metric == "cosine":
        return unit_rows(x) @ unit_rows(y).mT
    p = 1.0 if metric == "l1" else 2.0
    direct = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(wide(x), wide(y), p=p, compute_mode=direct)
    return distance.square() if metric == "sqeuclidean" else distance
