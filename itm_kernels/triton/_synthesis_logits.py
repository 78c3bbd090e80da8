"""Cosines of every anchor with its synthetic vectors, and their gradient for constant vectors.

cos_k = a v_k / (|a| |v_k|), where `_member_sums` leaves a v_k and |v_k|^2 without storing v_k. The
gradient of the anchor is the sum over k of alpha_k v_k - (g_k cos_k / a^2) a, with
alpha_k = g_k / (|a| |v_k|): a product of weights alpha_k khat with the rows that v_k sums up.
"""

import torch
import triton.language as tl
from torch import Tensor

from itm_kernels.triton import _scaled_operands
from itm_kernels.triton._anchor_gradient import store_gradient, store_weights
from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._member_sums import cosine_terms
from itm_kernels.triton._norms import norm_divisor, square_root, squared_norms
from itm_kernels.triton._operands import kind_and_parts, stored_dtype, wide_dtype
from itm_kernels.triton._products import add_product, row_parts, weight_scale, weights_empty
from itm_kernels.triton._synthesis_blocks import Synthesis

_ROWS, _CLUSTERS = 16, 16
COSINE_EPS = tl.constexpr(1e-8)  # least norm, as in torch.nn.functional.cosine_similarity


@jit(do_not_specialize=["first", "R"])
def _cosine_kernel(
    parts,  # [2, depths, R, K]
    anchors,  # [R, D]
    valid,  # [N, K]
    grad,  # [N, K]
    cosine,  # [N, K]; with GRADIENT alpha [R, K]
    largest_alpha,  # [N]
    along,  # [N] sum over k of g_k cos_k / a^2
    sums,  # [2, N, K] dot products and squared norms, with KEEP
    anchor_stride,
    first,
    R,
    K,
    D,
    depths,
    of_sums,  # stride between dot products and squared norms, int64
    ROWS: tl.constexpr,
    CLUSTERS: tl.constexpr,
    CHUNK: tl.constexpr,
    GRADIENT: tl.constexpr,
    KEEP: tl.constexpr,
    LEAST: tl.constexpr,  # divisor of an anchor with a smaller norm
):
    """Add up the tiles of D; write the cosines, or with GRADIENT the weights alpha."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = r < R
    row = tl.minimum(r, R - 1).to(tl.int64)
    norm = square_root(squared_norms(anchors + row * anchor_stride, 1, D, tl.arange(0, CHUNK)))
    DTYPE: tl.constexpr = parts.dtype.element_ty
    total, largest = tl.zeros((ROWS,), DTYPE), tl.zeros((ROWS,), DTYPE)
    for first_k in range(0, K, CLUSTERS):
        k = first_k + tl.arange(0, CLUSTERS)
        inside = here[:, None] & (k < K)[None, :]
        at = row[:, None] * K + k[None, :]
        dot, square = tl.zeros((ROWS, CLUSTERS), DTYPE), tl.zeros((ROWS, CLUSTERS), DTYPE)
        size = tl.cast(R, tl.int64) * K
        for depth in range(0, depths):
            dot += tl.load(parts + depth * size + at, mask=inside, other=0.0)
            square += tl.load(parts + (depths + depth) * size + at, mask=inside, other=0.0)
        whole = at + tl.cast(first, tl.int64) * K
        known = tl.load(valid + whole, mask=inside, other=0) != 0
        below = norm_divisor(square_root(square), COSINE_EPS)
        found = tl.where(known, dot / below / norm_divisor(norm, LEAST)[:, None], 0.0)
        if GRADIENT:
            of_k = tl.load(grad + whole, mask=inside, other=0.0).to(DTYPE)
            of_k = tl.where(known, of_k, 0.0)
            alpha = of_k / below / norm_divisor(norm, LEAST)[:, None]
            total += tl.sum(of_k * found, 1)
            # NaN propagates through the product, so that the scale can exclude it.
            largest = tl.maximum(largest, tl.max(tl.where(alpha == alpha, tl.abs(alpha), 0.0), 1))
            tl.store(cosine + at, alpha, mask=inside)
        else:
            tl.store(cosine + whole, found, mask=inside)
        if KEEP:
            tl.store(sums + whole, dot, mask=inside)
            tl.store(sums + tl.cast(of_sums, tl.int64) + whole, square, mask=inside)
    if GRADIENT:
        # An anchor of norm 0 is divided by infinity.
        total /= norm_divisor(norm, LEAST) * tl.where(norm == 0, 1.0, norm)
        tl.store(along + first + r, total, mask=here)
        tl.store(largest_alpha + first + r, largest, mask=here)


def cosine_of(
    parts: Tensor,  # [2, depths, R, K]
    anchors: Tensor,  # [R, D]
    valid: Tensor,  # [N, K]
    out: Tensor,  # [N, K]
    first: int = 0,
    sums: Tensor | None = None,  # [2, N, K]
    least: float = COSINE_EPS.value,
) -> None:
    """Write the cosines of a range of anchors, and the sums that their gradient needs."""
    _launch(
        parts, anchors, valid, out, out, out, out, first=first, sums=sums, least=least,
        gradient=False,
    )  # fmt: skip


def alpha_of(
    parts: Tensor,  # [2, depths, R, K]
    anchors: Tensor,  # [R, D]
    valid: Tensor,  # [N, K]
    grad: Tensor,  # [N, K]
    largest: Tensor,  # [N] to write: maximum of |alpha|
    along: Tensor,  # [N] to write
    first: int = 0,
    least: float = COSINE_EPS.value,
) -> Tensor:  # [R, K]
    """Return the weights of the vectors in the gradient of a range of anchors."""
    alpha = torch.empty(parts.shape[2:], dtype=largest.dtype, device=grad.device)
    _launch(
        parts, anchors, valid, grad, alpha, largest, along, first=first, sums=None, least=least,
        gradient=True,
    )  # fmt: skip
    return alpha


def _launch(
    parts: Tensor,
    anchors: Tensor,
    valid: Tensor,
    *tensors: Tensor,  # grad, out, largest, along
    first: int,
    sums: Tensor | None,
    least: float,
    gradient: bool,
) -> None:
    (R, D), K = anchors.shape, valid.shape[1]
    _cosine_kernel[(cdiv(R, _ROWS),)](
        parts, anchors, valid, *tensors, parts if sums is None else sums, anchors.stride(0), first,
        R, K, D, parts.shape[1], valid.numel(), ROWS=_ROWS, CLUSTERS=_CLUSTERS, CHUNK=64,
        GRADIENT=gradient, KEEP=sums is not None, LEAST=least, num_warps=4,
    )  # fmt: skip


def cosines(one: Synthesis) -> tuple[Tensor, Tensor]:  # [N, K], [N, K]
    """Return the cosine of every anchor with its vectors, 0 without members, and which have any."""
    N, K = one.q.shape[0], one.clusters.number
    cosine = torch.empty((N, K), dtype=wide_dtype(one.q), device=one.q.device)
    valid = torch.empty((N, K), dtype=torch.bool, device=one.q.device)
    for block in one.blocks(one.at_once(), valid):
        parts = cosine_terms(block.clusters, block.weights, one.members, block.valid, block.q)
        cosine_of(parts, block.q, valid, cosine, block.first)
    return cosine, valid


def gradient_of_anchors(one: Synthesis, grad: Tensor, dtype: torch.dtype) -> Tensor:  # [N, D]
    """Return the gradient of the anchors of the cosines; the vectors are constant."""
    (N, D), (M, _), K = one.q.shape, one.x.shape, one.clusters.number
    wide = wide_dtype(one.q)
    like = one.rows
    if one.kam and one.clusters.per_anchor:
        like = like.double()  # weights in the thousands that cancel
    kind, _ = kind_and_parts(like, cancelling=one.kam)
    rows, factor = _scaled_operands.scaled_rows(like, kind, False)
    ones = torch.ones(1, dtype=torch.float32, device=grad.device)
    laid_out = one.both._replace(y=rows, x_factor=ones, y_factor=factor)
    in_parts = like.dtype != torch.float64
    unit = weight_scale(like, laid_out, ones[0], ones) if in_parts else None
    product = torch.empty((N, D), dtype=wide_dtype(like), device=grad.device)
    valid = torch.empty((N, K), dtype=torch.bool, device=grad.device)
    largest, along = (torch.empty(N, dtype=wide, device=grad.device) for _ in range(2))
    grad = grad.contiguous()
    for block in one.blocks(one.at_once(), valid):
        R, own = block.q.shape[0], slice(block.first, block.first + block.q.shape[0])
        parts = cosine_terms(block.clusters, block.weights, one.members, block.valid, block.q)
        alpha = alpha_of(parts, block.q, valid, grad, largest, along, block.first)
        weights = weights_empty(R, M, like, kind=kind)
        if block.clusters.per_anchor:
            weights.zero_()
        store_weights(block, alpha, largest[own], factor, unit, weights)
        add_product(None, weights, row_parts(laid_out, D)[1], out=product[own])
        del block, weights
    out = torch.empty((N, D), dtype=stored_dtype(dtype), device=grad.device)
    store_gradient(one.q, product, largest, along, unit, out)
    return out.to(dtype)
