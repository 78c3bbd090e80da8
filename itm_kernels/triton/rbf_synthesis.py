"""Synthetic vectors and their cosines: scores, a softmax per cluster, a product with its members.

A block of anchors has its scores in memory, and nothing of N x M outlives it. Vectors whose cosine
alone is wanted do not leave registers. With one clustering the kernel associative memory is solved
once, W = A^-1 X with A = K + ridge I: vectors are then sums of its rows as those of attention are
sums of members. With a clustering per anchor the anchor's weights are solved instead.

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
from itm_kernels.triton._synthesis_logits import cosines, gradient_of_anchors

_SMALLEST = 1e-8  # of a length, as torch.nn.functional.cosine_similarity


def rbf_synthesis_forward(
    anchors: Tensor,  # [N, D]
    *inputs: Any,  # as `Synthesis`, and whether to keep scores: False
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K, D], [N, K], [0, 0]
    """Return one vector per anchor and cluster, 0 where it has no member, and where it has."""
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
    *inputs: Any,  # as `Synthesis`, whether vectors are constants, whether to keep scores: False
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K], [N, K], [0, 0]
    """Return the cosine of every anchor with its vectors, 0 where there is none, and where not."""
    return *cosines(Synthesis(anchors, *inputs[:-2])), no_scores(anchors)


def _length(rows: Tensor) -> Tensor:  # [..., D] -> [..., 1]
    return torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=wide_dtype(rows))


def _divisor(length: Tensor) -> Tensor:
    """Return what a cosine is divided by: infinity for a row of 0, which has no direction."""
    return length.clamp_min(_SMALLEST).masked_fill_(length == 0, torch.inf)


def _over_length(x: Tensor, length: Tensor) -> Tensor:
    """Return x / length, 0 where that is: a length has no slope at 0."""
    return (x / length).masked_fill_(length == 0, 0)


def _through_cosine(
    grad: Tensor,  # [R, K]
    anchors: Tensor,  # [R, D]
    vectors: Tensor,  # [R, K, D]
) -> tuple[Tensor, Tensor]:  # [R, D], [R, K, D]
    """Return what the anchor of a cosine gets, and its vectors.

    cos = a v / (|a| |v|), dL/dv = alpha a + beta v: alpha = g / (|a| |v|), beta = -g cos / v^2.
    """
    a = anchors.to(vectors.dtype)[:, None]  # [R, 1, D]
    of_a, of_v = _length(a), _length(vectors)
    a_least, v_least = _divisor(of_a), _divisor(of_v)
    alpha = grad.to(vectors.dtype)[..., None] / a_least / v_least
    through = -alpha * (vectors * a).sum(-1, keepdim=True)  # -g cos
    to_a = alpha * vectors + _over_length(through / a_least, of_a) * a
    return to_a.sum(1), alpha * a + _over_length(through / v_least, of_v) * vectors


def rbf_synthesis_logits_backward(
    grad: Tensor,  # [N, K]
    scores: Tensor,  # [0, 0]
    anchors: Tensor,
    members: Tensor,
    *inputs: Any,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of anchors and members; with detach, that of the cosine's anchor."""
    if inputs[-1]:
        one = Synthesis(anchors, members, *inputs[:-1])
        return gradient_of_anchors(one, grad, anchors.dtype), torch.zeros_like(members)
    one = Synthesis(anchors, members, *inputs[:-1], keep_memory=True)
    D, K = anchors.shape[1], one.clusters.number
    found = one.members  # before the rows of which they are made are gone
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
