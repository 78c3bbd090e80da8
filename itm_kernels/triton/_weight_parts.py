"""Weights in parts, in columns that start at a multiple of eight for every cluster."""

import torch
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._clusters import ALIGNED, Clusters
from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._operands import INTERPRETED
from itm_kernels.triton._products import rounded

_ALIGNED = tl.constexpr(ALIGNED)
_ROWS, _COLUMNS = (64, 512) if INTERPRETED else (8, 256)


def weight_parts(
    clusters: Clusters,
    weights: Tensor,  # [R, M]
    rows: Tensor,  # [parts, M, D], the rows that are multiplied
    terms: int,
    factor: Tensor | None = None,  # [M] scale of every column
    unit: Tensor | None = None,  # []
) -> Tensor:  # [terms, R, width]
    """Split weights into parts of the type of the rows; columns after a cluster's last are 0."""
    (R, M), scaled = weights.shape, factor is not None
    spans = clusters.groups
    assert spans is not None
    tiles = spans.first.shape[1]
    width = cdiv(tiles * ALIGNED, 16) * 16
    parts = torch.empty((terms, R, width), dtype=rows.dtype, device=rows.device)
    programs = cdiv(R, _ROWS) * cdiv(width, _COLUMNS)
    _parts_kernel[(programs,)](
        weights, parts, factor if scaled else weights, unit if scaled else weights, spans.first,
        spans.end, parts.stride(0), R, M, tiles, width, TERMS=terms, FACTORS=scaled, ROWS=_ROWS,
        COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
    return parts


@jit(do_not_specialize=["R", "M", "tiles"])
def _parts_kernel(
    weights,  # [R, M]
    parts,  # [TERMS, R, width]
    factor,  # [M]
    unit,  # []
    span_first,  # [tiles] first column of eight
    span_end,  # [tiles] end of its cluster
    part,
    R,
    M,
    tiles,
    width,
    TERMS: tl.constexpr,
    FACTORS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write a tile of weights in parts, in columns that start at a multiple of eight."""
    PART: tl.constexpr = tl.float16 if parts.dtype.element_ty == tl.float16 else tl.bfloat16
    across = tl.cdiv(width, COLUMNS)
    n = (tl.program_id(0) // across) * ROWS + tl.arange(0, ROWS)
    c = (tl.program_id(0) % across) * COLUMNS + tl.arange(0, COLUMNS)
    tile = c // _ALIGNED
    m = tl.load(span_first + tile, mask=tile < tiles, other=0) + c % _ALIGNED
    there = m < tl.load(span_end + tile, mask=tile < tiles, other=0)
    inside = (n < R)[:, None] & there[None, :]
    row = n[:, None].to(tl.int64)
    rest = tl.load(weights + row * M + m[None, :], mask=inside, other=0.0).to(tl.float32)
    if FACTORS:
        scale = tl.load(factor + m, mask=there, other=0.0) * tl.load(unit)
        rest *= scale[None, :]
    stored = (n < R)[:, None] & (c < width)[None, :]
    for term in tl.static_range(TERMS):
        high = rounded(rest, PART)
        to = parts + tl.cast(term, tl.int64) * part + row * width + c[None, :]
        tl.store(to, high.to(parts.dtype.element_ty), mask=stored)
        rest -= high.to(tl.float32)
