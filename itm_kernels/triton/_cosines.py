"""The cosine of every anchor with its synthetic vectors, and its gradient where these are constant.

cos_k = a v_k / (|a| |v_k|), of which a product leaves a v_k and |v_k|^2. The gradient of the anchor
is the sum over k of alpha_k v_k - (g_k cos_k / a^2) a, alpha_k = g_k / (|a| |v_k|): a product of
weights alpha_k khat with the rows that the vectors are sums of.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton import _scaled
from itm_kernels.triton._launch import kind_of, row_blocks, stored_dtype, wide_dtype
from itm_kernels.triton._lengths import divisor, power_above, root, squares_of
from itm_kernels.triton._products import (
    add_product,
    row_parts,
    store_parts,
    unit_of,
    weights_empty,
)
from itm_kernels.triton._sums import anchor_and_cluster, cosine_parts
from itm_kernels.triton._synthesis_blocks import Block, Synthesis, list_arguments

_ROWS, _CLUSTERS = 16, 16
_SMALLEST = tl.constexpr(1e-8)  # of a length, as torch.nn.functional.cosine_similarity


@triton.jit
def _below_one(largest):
    """Return the power of two that brings numbers up to an fp32 one below 1."""
    return power_above(largest, 3) * 0.125  # of infinity it is a number


@triton.jit(do_not_specialize=["first", "R"])
def _cosine_kernel(
    parts,  # [2, depths, R, K]
    anchors,  # [R, D]
    valid,  # [N, K]
    grad,  # [N, K]
    cosine,  # [N, K]; with GRADIENT alpha [R, K]
    largest_alpha,  # [N]
    along,  # [N] sum over k of g_k cos_k / a^2
    anchor_stride,
    first,
    R,
    K,
    D,
    depths,
    ROWS: tl.constexpr,
    CLUSTERS: tl.constexpr,
    CHUNK: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = r < R
    row = tl.minimum(r, R - 1).to(tl.int64)
    length = root(squares_of(anchors + row * anchor_stride, 1, D, tl.arange(0, CHUNK)))
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
        below = divisor(root(square), _SMALLEST)
        found = tl.where(known, dot / below / divisor(length, _SMALLEST)[:, None], 0.0)
        if GRADIENT:
            of_k = tl.load(grad + whole, mask=inside, other=0.0).to(DTYPE)
            of_k = tl.where(known, of_k, 0.0)
            alpha = of_k / below / divisor(length, _SMALLEST)[:, None]
            total += tl.sum(of_k * found, 1)
            # NaN shows in the product, whatever the power.
            largest = tl.maximum(largest, tl.max(tl.where(alpha == alpha, tl.abs(alpha), 0.0), 1))
            tl.store(cosine + at, alpha, mask=inside)
        else:
            tl.store(cosine + whole, found, mask=inside)
    if GRADIENT:
        # Where the length is 0, over infinity.
        total /= divisor(length, _SMALLEST) * tl.where(length == 0, 1.0, length)
        tl.store(along + first + r, total, mask=here)
        tl.store(largest_alpha + first + r, largest, mask=here)


@triton.jit(do_not_specialize=["P", "tiles", "M"])
def _weights_kernel(
    khat,  # [R, M]
    alpha,  # [R, K]
    largest,  # [R] of a row's alpha
    factor,  # [M] of the rows as they are laid out
    unit,  # []
    weights,  # [PARTS, R, M]
    starts,
    assignment,  # [R, M]
    weights_part,
    weights_stride,
    P,
    tiles,
    K,
    M,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
    PER_ANCHOR: tl.constexpr,
    FACTORS: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Write alpha khat of every column of a list, and 0 for columns after the last cluster's."""
    group = tl.program_id(0) // tiles
    p = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)
    n, k = anchor_and_cluster(p, P, K, group, PER_ANCHOR)
    begin, end = tl.load(starts + group), tl.load(starts + group + 1)
    last = end
    if not PER_ANCHOR:
        last = tl.where(group == K - 1, M, end)
    scale = tl.load(alpha + n * K + k)
    if UNIT:
        scale = scale * _below_one(tl.load(largest + n)) * tl.load(unit)
    for first in range(begin, last, COLUMNS):
        m = first + tl.arange(0, COLUMNS)
        at = n[:, None] * M + m[None, :]
        inside = (m < last)[None, :] & (p < P)[:, None]
        own = (m < end)[None, :] & (p < P)[:, None]
        to = inside
        if PER_ANCHOR:
            own &= tl.load(assignment + at, mask=own, other=-1) == k[:, None]
            to = own
        value = tl.load(khat + at, mask=own, other=0.0) * scale[:, None]
        if FACTORS:
            value *= tl.load(factor + m, mask=m < end, other=0.0)[None, :]
        value = tl.where(own, value, 0.0)
        out = weights + n[:, None] * weights_stride + m[None, :]
        store_parts(out, tl.cast(weights_part, tl.int64), value, to, PARTS)


@triton.jit
def _gradient_kernel(
    anchors,  # [N, D]
    pull,  # [N, D]
    largest,  # [N]
    along,  # [N]
    unit,  # []
    out,  # [N, D]
    stride,
    N,
    D,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(n, N - 1)
    back = tl.full((ROWS,), 1.0, pull.dtype.element_ty)
    if UNIT:
        back /= _below_one(tl.load(largest + rows))
    of_anchor = tl.load(along + rows)
    for first in range(0, D, COLUMNS):
        d = (first + tl.arange(0, COLUMNS))[None, :]
        inside = (n < N)[:, None] & (d < D)
        anchor = tl.load(anchors + rows[:, None] * stride + d, mask=inside, other=0.0)
        found = tl.load(pull + rows[:, None] * D + d, mask=inside, other=0.0)
        if UNIT:  # one after the other: together the powers are beyond fp32
            found = found / tl.load(unit) * back[:, None]
        found -= of_anchor[:, None] * anchor.to(found.dtype)
        tl.store(out + n[:, None] * D + d, found, mask=inside)


def _launch(
    block: Block,
    parts: Tensor,
    valid: Tensor,
    grad: Tensor,
    out: Tensor,
    largest: Tensor,
    along: Tensor,
    gradient: bool,
) -> None:
    (R, D), K = block.q.shape, valid.shape[1]
    _cosine_kernel[(triton.cdiv(R, _ROWS),)](
        parts, block.q, valid, grad, out, largest, along, block.q.stride(0), block.first, R, K, D,
        parts.shape[1], ROWS=_ROWS, CLUSTERS=_CLUSTERS, CHUNK=64, GRADIENT=gradient, num_warps=4,
    )  # fmt: skip


def cosines(one: Synthesis) -> tuple[Tensor, Tensor]:  # [N, K], [N, K]
    """Return the cosine of every anchor with its vectors, 0 where there is none, and where not."""
    N, K = one.q.shape[0], one.clusters.number
    cosine = torch.empty((N, K), dtype=wide_dtype(one.q), device=one.q.device)
    valid = torch.empty((N, K), dtype=torch.bool, device=one.q.device)
    for block in one.blocks(one.at_once(), valid):
        parts = cosine_parts(block.clusters, block.weights, one.members, block.valid, block.q)
        _launch(block, parts, valid, cosine, cosine, cosine, cosine, False)
    return cosine, valid


def gradient_of_anchors(one: Synthesis, grad: Tensor, dtype: torch.dtype) -> Tensor:  # [N, D]
    """Return the gradient of the cosine's anchors; the vectors are constants."""
    (N, D), (M, _), K = one.q.shape, one.x.shape, one.clusters.number
    wide = wide_dtype(one.q)
    like = one.rows
    if one.kam and one.clusters.per_anchor:
        like = like.double()  # weights of thousands that cancel
    rows, factor = _scaled.scaled_rows(like, kind_of(like), False)
    ones = torch.ones(1, dtype=torch.float32, device=grad.device)
    laid_out = one.both._replace(y=rows, x_factor=ones, y_factor=factor)
    in_parts = like.dtype != torch.float64
    unit = unit_of(like, laid_out, ones[0], ones) if in_parts else None
    pull = torch.empty((N, D), dtype=wide_dtype(like), device=grad.device)
    valid = torch.empty((N, K), dtype=torch.bool, device=grad.device)
    largest, along = (torch.empty(N, dtype=wide, device=grad.device) for _ in range(2))
    grad = grad.contiguous()
    for block in one.blocks(one.at_once(), valid):
        R, own = block.q.shape[0], slice(block.first, block.first + block.q.shape[0])
        parts = cosine_parts(block.clusters, block.weights, one.members, block.valid, block.q)
        alpha = largest.new_empty((R, K))
        _launch(block, parts, valid, grad, alpha, largest, along, True)
        weights = weights_empty(R, M, like)
        if block.clusters.per_anchor:
            weights.zero_()
        arguments: dict[str, Any] = list_arguments(block.clusters, R)
        _weights_kernel[arguments.pop("grid")](
            khat=block.weights, alpha=alpha, largest=largest[own], factor=factor,
            unit=ones if unit is None else unit, weights=weights,
            weights_part=weights.stride(0), weights_stride=weights.stride(1),
            PARTS=weights.shape[0], FACTORS=factor.numel() > 0, UNIT=unit is not None, **arguments,
        )  # fmt: skip
        add_product(None, weights, row_parts(laid_out, D)[1], out=pull[own])
        del block, weights
    out = torch.empty((N, D), dtype=stored_dtype(dtype), device=grad.device)
    options = row_blocks(D)
    _gradient_kernel[(triton.cdiv(N, options["ROWS"]),)](
        one.q, pull, largest, along, ones if unit is None else unit, out, one.q.stride(0), N, D,
        UNIT=unit is not None, **options,
    )  # fmt: skip
    return out.to(dtype)
