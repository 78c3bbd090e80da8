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

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from itm_kernels.triton._clusters import spans_of
from itm_kernels.triton._cosines import cosines, gradient_of_anchors
from itm_kernels.triton._gram import add_gradient_of_members
from itm_kernels.triton._launch import Operands, kind_of, prepare, tile_of, wide_dtype
from itm_kernels.triton._sums import Factor, vectors_of
from itm_kernels.triton._synthesis import (
    members_gradient_kernel,
    softmax_gradient_kernel,
    weights_gradient_kernel,
)
from itm_kernels.triton._synthesis_blocks import (
    Block,
    Synthesis,
    list_arguments,
    solved,
)
from itm_kernels.triton._weights import no_scores, products_of_weights, rows_at_once

_SMALLEST = 1e-8  # of a length, as torch.nn.functional.cosine_similarity


class Backward:
    """The gradient of the vectors, block by block, on its way to the scores and the members."""

    def __init__(self, synthesis: Synthesis) -> None:
        self.synthesis = synthesis
        x = synthesis.x
        dtype = wide_dtype(x)
        self.x = x.to(dtype) if synthesis.memory is None else synthesis.memory.rows
        self.kind = kind_of(self.x)
        self.prepared = prepare(synthesis.rows.to(dtype), self.kind)
        self.rows = torch.zeros(x.shape, dtype=dtype, device=x.device)  # [M, D] in columns' order
        self.total = torch.zeros(x.shape[0], dtype=dtype, device=x.device)
        M = x.shape[0] if synthesis.kam and synthesis.memory is None else 0
        self.of_kernel = torch.zeros((M, M), dtype=torch.float64, device=x.device)

    def scores(
        self,
        block: Block,
        grad: Tensor,  # [R, K, D] of the vectors
        out: Tensor,  # [R, M] to write
    ) -> None:
        """Add to the members' gradient, and return that of q x^T."""
        R, K, D = grad.shape
        one = self.synthesis
        rows = grad.to(self.x.dtype).reshape(R * K, D)
        tile = tile_of("half" if self.kind == "parts" else self.kind, 1, 1, D)
        tile = tile._replace(warps=8)  # rows that are pairs: 40 to 60 spills in 4 warps
        precision = "tf32" if self.kind == "tf32" else "ieee"
        both = Operands(prepare(rows, self.kind), self.prepared, self.kind, precision, tile)
        of_khat = out.zero_()
        self._through_vectors(block, both, of_khat, D)
        if block.own is not None:
            of_khat = solved(block.own, of_khat)
            self._to_kernel(block, of_khat)
            out.zero_()
        # In place: a program reads its cluster's columns of its rows before it writes them.
        arguments = list_arguments(block.clusters, R)
        softmax_gradient_kernel[arguments.pop("grid")](
            softmax=block.khat, grad=of_khat, out=out, scale=one.scale, **arguments
        )
        self.total += out.sum(0)

    def _through_vectors(self, block: Block, both: Operands, of_weights: Tensor, D: int) -> None:
        clusters, M = block.clusters, self.x.shape[0]
        P = clusters.rows(block.q.shape[0])
        shared = {**clusters.arguments(), "P": P}
        starts = shared.pop("starts")
        tile = both.tile
        spans = spans_of(starts, M, tile.columns).arguments()
        spans.pop("span_begin")
        T = spans["span_first"].shape[1]
        weights_gradient_kernel[(T * triton.cdiv(P, tile.rows),)](
            **both.arguments(), **spans, **shared, out=of_weights, T=T
        )
        terms = 3 if self.kind == "parts" else 0
        tile = tile_of("sum", 1, 1, D) if terms else tile
        factor = Factor(both.x, terms, both.precision, tile)
        spans = spans_of(starts, M, tile.rows).arguments()
        spans.pop("span_begin")
        T = spans["span_first"].shape[1]
        members_gradient_kernel[(T, triton.cdiv(D, tile.columns))](
            **factor.arguments(), **spans, **shared, weights=block.weights, out=self.rows, D=D
        )

    def _to_kernel(self, block: Block, of_khat: Tensor) -> None:
        for k in range(block.clusters.number):
            here = block.clusters.assignment == k
            c, d = (torch.where(here, t, 0) for t in (block.weights, of_khat))
            self.of_kernel.addmm_(c.mT, d, alpha=-1)

    def run(
        self, fill: Callable[[int, Tensor], None], at_once: int, members: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what reaches anchors, unrounded, and members, when `fill` visits all blocks."""
        q = self.synthesis.q.to(self.x.dtype)
        of_anchors, of_members = products_of_weights(q, self.x, fill, at_once)
        del self.prepared
        return of_anchors, self._members(of_members).to(members.dtype)

    def _members(self, of_scores: Tensor) -> Tensor:
        """Return the gradient of the members as they came, given W^T q of the scores' W."""
        one, of_memory = self.synthesis, self.rows  # of a member as a row of the vectors' sums
        rows = of_scores.sub_(self.total[:, None] * self.x)
        if one.memory is None:
            rows += of_memory
        else:
            for systems in one.memory.systems(last=True):
                (solution,) = systems.solve(of_memory[None], None)
                rows[systems.part.begin : systems.part.end] += solution
                given = systems, self.x, one.rows, solution, one.sigma
                add_gradient_of_members(*given, rows)
                del systems, solution, given
        if one.kam and one.memory is None:
            M, at_once = rows.shape[0], rows_at_once(self.x, self.x, self.x.shape[0])
            for first in range(0, M, at_once):
                own = slice(first, min(first + at_once, M))
                rows[own] += self._through_kernel(own).to(rows.dtype)
        order = one.clusters.order
        return rows if order is None else torch.empty_like(rows).index_copy_(0, order, rows)

    def _through_kernel(self, own: slice) -> Tensor:  # [R, D]
        """Return the gradient of some members by way of K: -K_ij (x_i - x_j) (dx_i - dx_j)."""
        one, x = self.synthesis, self.x.double()
        factor = self.of_kernel[own] + self.of_kernel.mT[own]
        factor *= one.kernel_rows(own.start, own.stop)
        factor.diagonal(own.start).fill_(0)
        # Differences with x_i, which cancel where rows are alike, are summed apart from it.
        return (factor @ x - factor.sum(1, keepdim=True) * x[own]).mul_(one.scale)


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
        _vectors(one, block, vectors[block.first : block.first + block.q.shape[0]])
    return vectors, valid, no_scores(anchors)


def _vectors(one: Synthesis, block: Block, out: Tensor) -> Tensor:
    vectors_of(block.clusters, block.weights, one.members, block.valid, out)
    return out


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

    at_once = one.at_once(max(2 * members.shape[0], grad[0].numel()))
    of_anchors, of_members = backward.run(fill, at_once, members)
    return of_anchors.to(anchors.dtype), of_members


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
    (N, D), K = anchors.shape, one.clusters.number
    of_anchors = torch.empty((N, D), dtype=wide_dtype(anchors), device=anchors.device)
    backward = Backward(one)

    def fill(first: int, weights: Tensor) -> None:
        block = one.block(first, weights.shape[0])
        rows = slice(first, first + weights.shape[0])
        vectors = _vectors(one, block, of_anchors.new_empty((weights.shape[0], K, D)))
        own = grad[rows].masked_fill(~block.valid, 0)
        of_anchors[rows], of_vectors = _through_cosine(own, block.q, vectors)
        backward.scores(block, of_vectors, weights)

    through, of_members = backward.run(fill, one.at_once(max(2 * members.shape[0], K * D)), members)
    return (of_anchors + through).to(anchors.dtype), of_members
