"""Hard negative synthesis: one synthetic vector per anchor and cluster."""

import torch
from torch import Tensor

from itm_kernels.reference._precision import wide


def rbf_synthesis(
    anchors: Tensor,  # [N, D]
    members: Tensor,  # [M, D]
    assignment: Tensor,  # [M] or [N, M]; -1: in no cluster
    anchor_ids: Tensor | None,  # [N]
    member_ids: Tensor | None,  # [M]
    num_clusters: int,
    sigma: float,
    weights: str,
    ridge: float,
) -> tuple[Tensor, Tensor]:  # [N, K, D], [N, K]
    """Return qbar_k = sum_n w_n khat_n over the members n of cluster k, and whether k has any."""
    q, x = wide(anchors), wide(members)
    # |q|^2 cancels in the softmax.
    logits = (q @ x.T - x.square().sum(-1) / 2) / sigma**2  # [N, M]
    allowed = torch.ones_like(logits, dtype=torch.bool)
    if anchor_ids is not None and member_ids is not None:
        allowed = anchor_ids[:, None] != member_ids[None, :]
    factor = _gram_factor(x, assignment, sigma, ridge) if weights == "kam" else None
    vectors, valid = [], []
    for k in range(num_clusters):
        inside = allowed & (assignment == k)  # [N, M]
        khat = _softmax_inside(logits, inside)
        if factor is not None:
            khat = _solve(factor, khat.to(factor.dtype))
        vectors.append(khat.to(x.dtype) @ x)
        valid.append(inside.any(1))
    return torch.stack(vectors, 1), torch.stack(valid, 1)


def rbf_synthesis_logits(
    anchors: Tensor,
    members: Tensor,
    assignment: Tensor,
    anchor_ids: Tensor | None,
    member_ids: Tensor | None,
    num_clusters: int,
    sigma: float,
    weights: str,
    ridge: float,
    detach: bool,
) -> tuple[Tensor, Tensor]:  # [N, K], [N, K]
    """Return the cosine of every anchor with its synthetic vectors, and whether they exist.

    With detach, the vectors are constants: only the anchor of the cosine has a gradient.
    """
    q, x = (anchors.detach(), members.detach()) if detach else (anchors, members)
    vectors, valid = rbf_synthesis(
        q, x, assignment, anchor_ids, member_ids, num_clusters, sigma, weights, ridge
    )
    return _cosine(wide(anchors)[:, None], vectors), valid


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    """Return the cosine of rows, as `torch.nn.functional.cosine_similarity`.

    The cosine with a zero row and its gradient are 0: both are divided by infinity.
    """
    norms = (torch.linalg.vector_norm(rows, dim=-1) for rows in (x, y))
    a, b = (norm.clamp_min(1e-8).masked_fill(norm == 0, torch.inf) for norm in norms)
    return (x * y).sum(-1) / a / b


def _solve(factor: Tensor, khat: Tensor) -> Tensor:
    """Return (K + ridge I)^-1 khat per anchor; qbar is X times it, so that W is not formed."""
    if factor.dim() == 2:  # one clustering: all anchors are right-hand sides of one system
        return torch.cholesky_solve(khat.mT, factor).mT
    return torch.cholesky_solve(khat[..., None], factor)[..., 0]


def _softmax_inside(logits: Tensor, inside: Tensor) -> Tensor:
    """Return the softmax over the marked entries; a row without any is 0."""
    some = inside.any(1, keepdim=True)
    khat = logits.masked_fill(~inside & some, -torch.inf).softmax(1)
    return torch.where(some, khat, 0)


def _gram_factor(x: Tensor, assignment: Tensor, sigma: float, ridge: float) -> Tensor:
    """Return the Cholesky factor of K + ridge I, block diagonal in the clusters, in fp64.

    It is NaN if the matrix is not positive definite, as for duplicates in a cluster with ridge 0.
    """
    x = x.double()
    square = x.square().sum(-1)
    distance = (square[:, None] + square - 2 * x @ x.T).clamp_min(0)
    same = (assignment[..., :, None] == assignment[..., None, :]) & (assignment >= 0)[..., None]
    eye = torch.eye(x.shape[0], dtype=x.dtype, device=x.device)
    kernel = torch.where(eye.bool(), 1, torch.exp(-distance / (2 * sigma**2)) * same)
    factor, info = torch.linalg.cholesky_ex(kernel + ridge * eye)
    return factor.masked_fill((info != 0)[..., None, None], torch.nan)
