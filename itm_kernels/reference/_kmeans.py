"""k-means: k-means++ start and Lloyd iterations, for one set of members or one per anchor."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from itm_kernels.reference._precision import wide

_BY_DIFFERENCES = "donot_use_mm_for_euclid_dist"


def kmeans_plus_plus(
    x: Tensor,  # [M, D]
    member: Tensor | None,  # [B, M]; None: one problem over all rows
    draws: Tensor,  # [K, M] from Exp(1)
) -> Tensor:  # [B, K, D]
    """Choose K start centroids, each a member drawn in proportion to its squared distance.

    The distance is that to the nearest centroid so far, and the member with the largest distance /
    draw is such a draw. If all members coincide with centroids, or a distance is NaN, the first
    centroid is repeated. Without members, all centroids are row 0.
    """
    x = wide(x)
    distance = x.new_ones(1, x.shape[0]) if member is None else member.to(x.dtype)
    chosen: list[Tensor] = []
    for draw in draws:
        index = (distance / draw).argmax(1)  # [B]
        if chosen:
            index = torch.where(distance.sum(1) > 0, index, chosen[0])
        chosen.append(index)
        # Computed from differences, so that copies of a row have distance 0, without [B, M, D] in
        # memory.
        to_new = torch.cdist(x[index], x, compute_mode=_BY_DIFFERENCES).square()  # [B, M]
        if member is not None:
            to_new = to_new.masked_fill(~member, 0)
        distance = to_new if len(chosen) == 1 else distance.minimum(to_new)
    return x[torch.stack(chosen, 1)]


def kmeans(
    x: Tensor,  # [M, D]
    member: Tensor | None,  # [B, M]
    centroids: Tensor,  # [B, K, D]
    iterations: int,
) -> tuple[Tensor, Tensor]:  # [B, M], [B, K, D]
    """Run Lloyd's iterations; return the nearest centroid of every row, and the centroids.

    Ties go to the lowest cluster, an empty cluster keeps its centroid, non-members get -1.
    """
    x = wide(x)
    centroids = wide(centroids)
    clusters = torch.arange(centroids.shape[1], device=x.device)
    for _ in range(iterations):
        inside = (_nearest(x, centroids)[..., None] == clusters).to(x.dtype)  # [B, M, K]
        if member is not None:
            inside = inside * member[..., None]
        count = inside.sum(1)[..., None]  # [B, K, 1]
        mean = _sums(inside, x) / count.clamp_min(1)
        centroids = torch.where(count > 0, mean, centroids)
    assignment = _nearest(x, centroids)
    if member is not None:
        assignment = assignment.masked_fill(~member, -1)
    return assignment, centroids


def _sums(inside: Tensor, x: Tensor) -> Tensor:  # [B, M, K], [M, D] -> [B, K, D]
    # Summed in blocks of rows: the error of a chain of additions grows with its length.
    block = torch.sym_min(x.shape[0], 1024)
    short = -x.shape[0] % block
    rows = pad(x, (0, 0, 0, short)).unflatten(0, (-1, block))
    own = pad(inside, (0, 0, 0, short)).unflatten(1, (-1, block))
    return torch.einsum("bnlk,nld->bnkd", own, rows).sum(1)


def _nearest(x: Tensor, centroids: Tensor) -> Tensor:
    # |x|^2 is the same for every cluster and is omitted.
    return (centroids.square().sum(-1)[:, None] / 2 - x @ centroids.mT).argmin(-1)
