"""Synthetic vectors and their cosines: scores, a softmax per cluster, a product with its members.

Anchors are processed in blocks whose scores are in memory; no N x M tensor is stored. If only
cosines are needed, the vectors stay in registers. With one clustering the kernel associative memory
is solved once, W = A^-1 X with A = K + ridge I: vectors are weighted sums of the rows of W, as
attention's are weighted sums of members. With a clustering per anchor, the weights of every anchor
are solved instead.

Backward, with vector v = W^T khat and g = dL/dv (attention: W = X):
  dL/dkhat = W g and dL/dW += khat g^T, H = A^-1 dL/dW; dL/dX += H and dL/dA = -H W^T;
  with c = A^-1 khat: dL/dc = X g, dL/dX += c g^T, dL/dkhat = A^-1 dL/dc, dL/dA = -c dL/dkhat^T;
  dL/ds = khat (dL/dkhat - khat . dL/dkhat), s = (q x - |x|^2 / 2) / sigma^2, and to q and x.
"""

from typing import Any

import torch
from torch import Tensor

from itm_kernels.triton._blocked_products import no_scores
from itm_kernels.triton._member_sums import store_vectors
from itm_kernels.triton._operands import wide_dtype
from itm_kernels.triton._synthesis_backward import Backward
from itm_kernels.triton._synthesis_blocks import Synthesis
from itm_kernels.triton._synthesis_logits import COSINE_EPS, cosines, gradient_of_anchors


def rbf_synthesis_forward(
    anchors: Tensor,  # [N, D]
    *inputs: Any,  # those of `Synthesis`, and whether to keep scores: False
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K, D], [N, K], [0, 0]
    """Return one vector per anchor and cluster, 0 without members, and which have members."""
    one = Synthesis(anchors, *inputs[:-1])
    shape = anchors.shape[0], one.clusters.number, anchors.shape[1]
    vectors = torch.empty(shape, dtype=wide_dtype(anchors), device=anchors.device)
    valid = torch.empty(shape[:2], dtype=torch.bool, device=anchors.device)
    for block in one.blocks(one.at_once(), valid):
        own = vectors[block.first : block.first + block.q.shape[0]]
        store_vectors(block.clusters, block.weights, one.members, block.valid, own)
    return vectors, valid, no_scores(anchors)


def rbf_synthesis_backward(
    grad: Tensor,  # [N, K, D]
    scores: Tensor,  # [0, 0]
    anchors: Tensor,
    members: Tensor,
    *inputs: Any,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of anchors and members."""
    one = Synthesis(anchors, members, *inputs, keep_memory=True)
    backward = Backward(one)

    def fill(first: int, weights: Tensor) -> None:
        R = weights.shape[0]
        backward.scores(one.block(first, R), grad[first : first + R], weights)

    return backward.run(fill, backward.at_once(grad[0].numel()), anchors, members)


def rbf_synthesis_logits_forward(
    anchors: Tensor,  # [N, D]
    *inputs: Any,  # those of `Synthesis`, whether vectors are constant, and to keep scores: False
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K], [N, K], [0, 0]
    """Return the cosine of every anchor with its vectors, 0 without members, and which have any."""
    return *cosines(Synthesis(anchors, *inputs[:-2])), no_scores(anchors)


def _norm(rows: Tensor) -> Tensor:  # [..., D] -> [..., 1]
    return torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=wide_dtype(rows))


def _divisor(norm: Tensor) -> Tensor:
    """Return the divisor of a cosine: infinity for a row of zeros, which has no direction."""
    return norm.clamp_min(COSINE_EPS.value).masked_fill_(norm == 0, torch.inf)


def _over_norm(x: Tensor, norm: Tensor) -> Tensor:
    """Return x / norm, and 0 where the norm is 0: its gradient there is defined as 0."""
    return (x / norm).masked_fill_(norm == 0, 0)


def _through_cosine(
    grad: Tensor,  # [R, K]
    anchors: Tensor,  # [R, D]
    vectors: Tensor,  # [R, K, D]
) -> tuple[Tensor, Tensor]:  # [R, D], [R, K, D]
    """Return the gradients of a cosine's anchors and vectors.

    cos = a v / (|a| |v|), dL/dv = alpha a + beta v: alpha = g / (|a| |v|), beta = -g cos / v^2.
    """
    a = anchors.to(vectors.dtype)[:, None]  # [R, 1, D]
    of_a, of_v = _norm(a), _norm(vectors)
    a_least, v_least = _divisor(of_a), _divisor(of_v)
    alpha = grad.to(vectors.dtype)[..., None] / a_least / v_least
    through = -alpha * (vectors * a).sum(-1, keepdim=True)  # -g cos
    to_a = alpha * vectors + _over_norm(through / a_least, of_a) * a
    return to_a.sum(1), alpha * a + _over_norm(through / v_least, of_v) * vectors


def rbf_synthesis_logits_backward(
    grad: Tensor,  # [N, K]
    scores: Tensor,  # [0, 0]
    anchors: Tensor,
    members: Tensor,
    *inputs: Any,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of anchors and members; with detach, of anchors only."""
    if inputs[-1]:
        one = Synthesis(anchors, members, *inputs[:-1])
        return gradient_of_anchors(one, grad, anchors.dtype), torch.zeros_like(members)
    one = Synthesis(anchors, members, *inputs[:-1], keep_memory=True)
    D, K = anchors.shape[1], one.clusters.number
    found = one.members  # prepared before `Backward` deletes the rows
    backward = Backward(one)

    def fill(first: int, weights: Tensor) -> Tensor:
        block = one.block(first, weights.shape[0])
        rows = slice(first, first + weights.shape[0])
        vectors = torch.empty((weights.shape[0], K, D), dtype=backward.dtype, device=grad.device)
        store_vectors(block.clusters, block.weights, found, block.valid, vectors)
        own = grad[rows].masked_fill(~block.valid, 0)
        of_anchors, of_vectors = _through_cosine(own, block.q, vectors)
        backward.scores(block, of_vectors, weights)
        return of_anchors

    return backward.run(fill, backward.at_once(K * D), anchors, members)
