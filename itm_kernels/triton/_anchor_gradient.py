"""The gradient of a cosine's anchors with constant vectors: weights alpha khat, and the last step.

Between the two kernels the library multiplies weights with the rows that the vectors sum up.
Weights are two fp16 parts, and fp16 ends at 65504: weights are scaled by a power of two per row and
by one for all rows, which the last step divides out.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._clusters import anchor_and_cluster, in_cluster
from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._norms import power_of_two_scale
from itm_kernels.triton._operands import row_blocks
from itm_kernels.triton._products import precision_of, store_parts
from itm_kernels.triton._synthesis_blocks import Block, list_arguments


@triton.jit
def _below_one(largest):
    """Return the power of two that scales fp32 values up to `largest` to below 1."""
    return power_of_two_scale(largest, 3) * 0.125  # finite even if `largest` is infinite


@jit(do_not_specialize=["P", "tiles", "M"])
def _weights_kernel(
    khat,  # [R, M]
    alpha,  # [R, K]
    largest,  # [R] maximum of |alpha|
    factor,  # [M] scale of the rows as laid out
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
    PRECISION: tl.constexpr,
    PER_ANCHOR: tl.constexpr,
    FACTORS: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Write alpha khat for the columns of every list, and 0 beyond the last cluster."""
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
        own = in_cluster(at, m, end, p, P, k, assignment, PER_ANCHOR)
        to = own if PER_ANCHOR else inside
        value = tl.load(khat + at, mask=own, other=0.0) * scale[:, None]
        if FACTORS:
            value *= tl.load(factor + m, mask=m < end, other=0.0)[None, :]
        value = tl.where(own, value, 0.0)
        out = weights + n[:, None] * weights_stride + m[None, :]
        store_parts(out, tl.cast(weights_part, tl.int64), value, to, PARTS, PRECISION)


@jit
def _gradient_kernel(
    anchors,  # [N, D]
    product,  # [N, D] of weights with rows
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
    """Divide the scales out of a product, and subtract its component along the anchor."""
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(n, N - 1)
    back = tl.full((ROWS,), 1.0, product.dtype.element_ty)
    if UNIT:
        back /= _below_one(tl.load(largest + rows))
    of_anchor = tl.load(along + rows)
    for first in range(0, D, COLUMNS):
        d = (first + tl.arange(0, COLUMNS))[None, :]
        inside = (n < N)[:, None] & (d < D)
        anchor = tl.load(anchors + rows[:, None] * stride + d, mask=inside, other=0.0)
        found = tl.load(product + rows[:, None] * D + d, mask=inside, other=0.0)
        if UNIT:  # one after the other: their product can exceed fp32
            found = found / tl.load(unit) * back[:, None]
        found -= of_anchor[:, None] * anchor.to(found.dtype)
        tl.store(out + n[:, None] * D + d, found, mask=inside)


def store_weights(
    block: Block,
    alpha: Tensor,  # [R, K]
    largest: Tensor,  # [R]
    factor: Tensor,  # [M] scale of the rows as laid out
    unit: Tensor | None,  # []
    weights: Tensor,  # [parts, R, M] to write
) -> None:
    """Write the weights alpha khat of the rows that the vectors sum up."""
    arguments: dict[str, Any] = list_arguments(block.clusters, block.q.shape[0])
    _weights_kernel[arguments.pop("grid")](
        khat=block.weights, alpha=alpha, largest=largest, factor=factor,
        unit=alpha if unit is None else unit, weights=weights, weights_part=weights.stride(0),
        weights_stride=weights.stride(1), PARTS=weights.shape[0],
        PRECISION=precision_of(weights), FACTORS=factor.numel() > 0,
        UNIT=unit is not None, **arguments,
    )  # fmt: skip


def store_gradient(
    anchors: Tensor,  # [R, D]
    product: Tensor,  # [R, D] of weights with rows
    largest: Tensor,  # [R]
    along: Tensor,  # [R]
    unit: Tensor | None,  # []
    out: Tensor,  # [R, D]
) -> None:
    """Write the gradient of a range of anchors."""
    (R, D), options = anchors.shape, row_blocks(anchors.shape[1])
    _gradient_kernel[(cdiv(R, options["ROWS"]),)](
        anchors, product, largest, along, largest if unit is None else unit, out,
        anchors.stride(0), R, D, UNIT=unit is not None, **options,
    )  # fmt: skip
