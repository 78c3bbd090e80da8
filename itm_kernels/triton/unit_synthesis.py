"""Cosines with constant synthetic vectors, from unnormalized rows and one shared clustering.

The part of `rbf_synthesis_logits` that a loss needs. Rows are normalized inside the kernels, so
half-precision rows are multiplied unconverted and no unit rows are stored. The forward pass saves
the inputs of the anchors' gradient: dot products and squared norms of the vectors `[N, K]`, and the
rows W that they sum up, solved for once. The backward pass forms no vectors: it recomputes scores
and their softmax, and multiplies weights alpha khat with W (`_synthesis_logits`).
"""

import torch
from torch import Tensor

from itm_kernels.triton._anchor_gradient import store_gradient, store_weights
from itm_kernels.triton._member_sums import cosine_terms, scaled_row_operand
from itm_kernels.triton._norms import SMALLEST
from itm_kernels.triton._operands import kind_of, stored_dtype, wide_dtype
from itm_kernels.triton._products import add_product, weight_scale
from itm_kernels.triton._scaled_operands import scaled_rows
from itm_kernels.triton._synthesis_blocks import Synthesis
from itm_kernels.triton._synthesis_logits import alpha_of, cosine_of

_PADDED = 16  # D is padded for the library's products; the operator's fake kernel repeats it


def _laid_out(rows: Tensor) -> tuple[Tensor, Tensor]:  # [M, D] -> [parts, M, D'], [M] or [0]
    """Lay rows out as two fp16 parts with a scale per row, whatever the setting of tf32."""
    kind = "fp64" if rows.dtype == torch.float64 else "parts"
    return scaled_rows(rows, kind, False, padded=_PADDED)


def _nothing(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return empty tensors in the layout of `_laid_out`."""
    D = rows.shape[1]
    if rows.dtype == torch.float64:
        return rows.new_empty((1, 0, D)), rows.new_empty(0)
    return rows.new_empty((2, 0, D + -D % _PADDED), dtype=torch.float16), rows.new_empty(0)


def unit_synthesis_forward(
    anchors: Tensor,  # [N, D]
    members: Tensor,  # [M, D]
    assignment: Tensor,  # [M]
    anchor_ids: Tensor,  # [N]
    member_ids: Tensor,  # [M]
    num_clusters: int,
    sigma: float,
    weights: str,
    ridge: float,
    gradients: bool,
) -> tuple[Tensor, ...]:
    """Return cosines, which of them exist, both `[N, K]`, and what backward needs.

    Saved for backward: the vectors' dot products and squared norms, the rows W, and their scales.
    """
    known = anchor_ids, member_ids, num_clusters, sigma, weights, ridge
    one = Synthesis(anchors, members, assignment, *known, cosine=True)
    N, K = one.q.shape[0], num_clusters
    cosine = torch.empty((N, K), dtype=wide_dtype(one.q), device=one.q.device)
    valid = torch.empty((N, K), dtype=torch.bool, device=one.q.device)
    sums = cosine.new_empty((2, N if gradients else 0, K))
    kept = _laid_out(one.rows) if gradients else _nothing(one.rows)
    shared = gradients and kind_of(one.rows) == "parts"
    parts_of_rows = scaled_row_operand(*kept, one.rows) if shared else one.members
    del one.rows
    for block in one.blocks(one.at_once(), valid):
        parts = cosine_terms(block.clusters, block.weights, parts_of_rows, block.valid, block.q)
        keep = sums if gradients else None
        cosine_of(parts, block.q, valid, cosine, block.first, keep, SMALLEST.value)
        del block
    return cosine, valid, sums, *kept


def unit_synthesis_backward(
    grad: Tensor,  # [N, K]
    valid: Tensor,  # [N, K]
    sums: Tensor,  # [2, N, K]
    rows: Tensor,  # [parts, M, D']
    factor: Tensor,  # [M] or [0]
    anchors: Tensor,  # [N, D]
    members: Tensor,  # [M, D]
    assignment: Tensor,
    anchor_ids: Tensor,
    member_ids: Tensor,
    num_clusters: int,
    sigma: float,
    weights: str,
    ridge: float,
) -> Tensor:  # [N, D]
    """Return the gradient of the anchors."""
    # W is already solved for, so the scores are those of attention weights.
    known = anchor_ids, member_ids, num_clusters, sigma, "attention", ridge
    one = Synthesis(anchors, members, assignment, *known, cosine=True)
    del one.rows
    (N, D), M = anchors.shape, members.shape[0]
    largest, along = (sums.new_empty(N) for _ in range(2))
    least = SMALLEST.value
    alpha = alpha_of(sums[:, None], one.q, valid, grad.contiguous(), largest, along, least=least)
    unit = None
    if factor.numel():
        ones = factor.new_ones(1)
        laid_out = one.both._replace(x=rows, y=rows, x_factor=ones, y_factor=factor)
        unit = weight_scale(anchors, laid_out, ones[0], ones)
    out = torch.empty((N, D), dtype=stored_dtype(anchors.dtype), device=grad.device)
    # A block holds its softmax and as many bytes of weights.
    at_once = one.at_once(2 * M)
    for first in range(0, N, at_once):
        own = slice(first, min(first + at_once, N))
        block = one.block(first, own.stop - first)
        R, columns = block.weights.shape[0], M + -M % 16
        of_block = rows.new_empty((rows.shape[0], R, columns))[..., :M]
        store_weights(block, alpha[own], largest[own], factor, unit, of_block)
        del block
        product = add_product(None, of_block, rows[..., :D], out=sums.new_empty((R, D)))
        del of_block
        store_gradient(one.q[own], product, largest[own], along[own], unit, out[own])
        del product
    return out.to(anchors.dtype)
