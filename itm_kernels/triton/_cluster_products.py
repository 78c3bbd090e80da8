"""Products of weights in parts with the rows of every cluster, for one clustering of all anchors.

One pass writes the parts of a block of weights; a cluster's columns then start at a multiple of
eight, so that every load moves 16 bytes. The products only load operands and multiply them: with
weights split between two products of a step, the compiler moves the sums through shared memory
twice per step (sm_90, Triton 3.6), at a thirtieth of the tensor cores' rate.

Floor of N = M = 4096, D = 1024 on an H200: 34 GFLOP per product of parts, 45 us at the library's
rate, of three (fp16) or six (bf16) parts; the parts of the weights are 67 or 101 MB, 28 or 42 us.
"""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._clusters import ALIGNED, Clusters, Spans, tiles_before
from itm_kernels.triton._launch import cdiv, jit, next_power_of_2
from itm_kernels.triton._operands import Tile, tile_of
from itm_kernels.triton._weight_parts import weight_parts

_ALIGNED = tl.constexpr(ALIGNED)
# From this number of rows on, tiles are those of many rows: 8 clusters fill all processors.
_MANY, _LARGE = 256, 4096


def _arguments(
    clusters: Clusters,
    weights: Tensor,  # [terms, R, width]
    rows: Tensor,  # [parts, M or R * K, WIDTH]
) -> dict[str, Any]:
    """Return the arguments that both products share."""
    K = clusters.number
    return {
        **{"weights": weights, "rows": rows, "starts": clusters.starts, "R": weights.shape[1]},
        **{"weight_stride": weights.stride(1), "weight_part": weights.stride(0)},
        **{"row_stride": rows.stride(1), "row_part": rows.stride(0), "WIDTH": rows.shape[2]},
        **{"K": K, "CLUSTERS": next_power_of_2(K)},
        **_products(rows.shape[0], weights.shape[0]),
    }


def product_tile(R: int, D: int, epilogue: str = "reduction") -> Tile:
    """Return the tile of the products of R rows of weights."""
    size = _LARGE if R >= _MANY else 1
    return tile_of("half", size, size, D, epilogue)


def sums_of_clusters(
    clusters: Clusters,
    weights: Tensor,  # [R, M]
    rows: Tensor,  # [parts, M, WIDTH]
    terms: int,
    factor: Tensor | None,  # [M] scale of every row
    unit: Tensor | None,  # [] of the weights
    valid: Tensor,  # [R, K]
    anchors: Tensor,  # [R, D]
    out: Tensor | None,  # [R, K, D] to write
) -> Tensor:
    """Write the sums, or return dot products with anchors and squared norms, per tile of D."""
    (R, D), K = anchors.shape, clusters.number
    # On sm_90, 128 x 256 has 48 spills if reduced with anchors, and 500 if rows are not aligned;
    # 128 x 128 then has 82.
    epilogue = "narrow" if D % 16 else "" if out is None else "reduction"
    tile = product_tile(R, D, epilogue)
    depths, tiles = cdiv(D, tile.columns), cdiv(R, tile.rows)
    of = "cosines" if out is None else "vectors"
    if out is None:
        out = torch.empty((2, depths, R, K), dtype=torch.float32, device=rows.device)
    parts = weight_parts(clusters, weights, rows, terms, factor, unit)
    cluster_sums_kernel[(K * tiles * depths,)](
        **_arguments(clusters, parts, rows), valid=valid, anchors=anchors, out=out,
        unit=weights if unit is None else unit, anchor_stride=anchors.stride(0), tiles=tiles, D=D,
        FACTORS=factor is not None, OF=of, **tile.options(),
    )  # fmt: skip
    return out


def add_gradient_of_rows(
    clusters: Clusters,
    weights: Tensor,  # [R, M]
    rows: Tensor,  # [parts, R * K, WIDTH] gradient of every vector
    terms: int,
    out: Tensor,  # [M, D] fp32, added to
    spans: Spans,  # tiles of the rows of `tile`
    tile: Tile,
) -> None:
    """Add weight * gradient of the members, over all vectors with the member."""
    parts, D = weight_parts(clusters, weights, rows, terms), out.shape[1]
    cluster_gradient_kernel[(spans.first.shape[1] * cdiv(D, tile.columns),)](
        **_arguments(clusters, parts, rows), **spans.arguments(), out=out, D=D, **tile.options()
    )


def _products(parts: int, terms: int) -> dict[str, int]:
    """Return which parts of the weights and of the rows are multiplied: two bits per product.

    Products of the low parts of both are below fp32's resolution.
    """
    pairs = [(term, part) for part in reversed(range(parts)) for term in range(terms - part)]
    of_weights, of_rows = (
        sum(pair[side] << (2 * k) for k, pair in enumerate(pairs)) for side in range(2)
    )
    return {"PRODUCTS": len(pairs), "OF_WEIGHTS": of_weights, "OF_ROWS": of_rows}


@jit(do_not_specialize=["R", "M", "tiles"])
def cluster_sums_kernel(
    weights,  # [TERMS, R, width]
    rows,  # [parts, M, WIDTH]
    starts,  # [1, K + 1]
    valid,  # [R, K]
    anchors,  # [R, D]
    out,  # [R, K, D]; for cosines [2, depth tiles, R, K]
    unit,  # []
    weight_stride,
    weight_part,
    anchor_stride,
    row_stride,
    row_part,
    tiles,  # tiles of R
    R,
    K,
    D,
    WIDTH: tl.constexpr,
    CLUSTERS: tl.constexpr,
    PRODUCTS: tl.constexpr,
    OF_WEIGHTS: tl.constexpr,
    OF_ROWS: tl.constexpr,
    FACTORS: tl.constexpr,
    OF: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Sum the weighted members of a cluster; store the sums, or dot products and squares."""
    # Programs that read the same weights are adjacent, so that HBM is read once.
    depths = tl.cdiv(D, COLUMNS)
    place, column_tile = tl.program_id(0) // depths, tl.program_id(0) % depths
    k = place // tiles
    r = (place % tiles) * ROWS + tl.arange(0, ROWS)
    n = tl.minimum(r, R - 1).to(tl.int64)
    d = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.load(starts + k)
    size = tl.load(starts + k + 1) - begin
    before = tl.sum(tiles_before(starts, k, CLUSTERS, _ALIGNED), 0) * _ALIGNED
    depth = tl.arange(0, DEPTH)
    weight_at = weights + before + n[:, None] * weight_stride + depth[None, :]
    row_at = rows + (begin + depth).to(tl.int64)[:, None] * row_stride + d[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    chunks = tl.cdiv(size, DEPTH)
    for step in range(0, PRODUCTS * chunks):
        product = step // chunks
        c = (step - product * chunks) * DEPTH
        term = ((OF_WEIGHTS >> (2 * product)) & 3).to(tl.int64)
        part = ((OF_ROWS >> (2 * product)) & 3).to(tl.int64)
        # Whole groups of columns: the compiler assumes nothing about the size of a cluster.
        groups = (c + depth) // _ALIGNED * _ALIGNED < size
        here = (c + depth < size)[:, None]
        if WIDTH % COLUMNS != 0:
            here &= (d < WIDTH)[None, :]
        weight = tl.load(weight_at + (term * weight_part + c), mask=groups[None, :], other=0.0)
        skip = part * row_part + tl.cast(c, tl.int64) * row_stride
        total = tl.dot(weight, tl.load(row_at + skip, mask=here, other=0.0), total)
    at = n * K + k
    some = r < R
    if FACTORS:
        total *= 1 / tl.load(unit)
    # A cluster without members yields 0, even if 0 was multiplied with NaN or Inf.
    total = tl.where((tl.load(valid + at) != 0)[:, None], total, 0.0)
    if OF == "vectors":
        inside = some[:, None] & (d < D)[None, :]
        tl.store(out + at[:, None] * D + d[None, :], total, mask=inside)
    else:
        at += column_tile.to(tl.int64) * R * K
        place = anchors + n[:, None] * anchor_stride + d[None, :]
        anchor = tl.load(place, mask=(d < D)[None, :], other=0.0).to(tl.float32)
        tl.store(out + at, tl.sum(total * anchor, 1), mask=some)
        at += tl.cast(depths, tl.int64) * R * K
        tl.store(out + at, tl.sum(total * total, 1), mask=some)


@jit(do_not_specialize=["R"])
def cluster_gradient_kernel(
    weights,  # [TERMS, R, width]
    rows,  # [parts, R * K, WIDTH] gradient of every vector
    starts,  # [1, K + 1]
    out,  # [M, D], added to
    span_cluster,
    span_begin,
    span_first,
    span_end,
    weight_stride,
    weight_part,
    row_stride,
    row_part,
    R,
    K,
    D,
    WIDTH: tl.constexpr,
    CLUSTERS: tl.constexpr,
    PRODUCTS: tl.constexpr,
    OF_WEIGHTS: tl.constexpr,
    OF_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Add the gradient of the members: weight * gradient, over all vectors with the member."""
    depths = tl.cdiv(D, COLUMNS)
    tile, column_tile = tl.program_id(0) // depths, tl.program_id(0) % depths
    first, end = tl.load(span_first + tile), tl.load(span_end + tile)
    if first < end:
        k, begin = tl.load(span_cluster + tile), tl.load(span_begin + tile)
        c = (first - begin) // _ALIGNED * _ALIGNED + tl.arange(0, ROWS)
        d = column_tile * COLUMNS + tl.arange(0, COLUMNS)
        before = tl.sum(tiles_before(starts, k, CLUSTERS, _ALIGNED), 0) * _ALIGNED
        n = tl.arange(0, DEPTH)
        groups = (c // _ALIGNED * _ALIGNED < end - begin)[:, None]
        weight_at = weights + before + n.to(tl.int64)[None, :] * weight_stride + c[:, None]
        row_at = rows + (n.to(tl.int64) * K + k)[:, None] * row_stride + d[None, :]
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        chunks = tl.cdiv(R, DEPTH)
        for step in range(0, PRODUCTS * chunks):
            product = step // chunks
            skip = (step - product * chunks) * DEPTH
            term = ((OF_WEIGHTS >> (2 * product)) & 3).to(tl.int64)
            part = ((OF_ROWS >> (2 * product)) & 3).to(tl.int64)
            there = n < R - skip
            here = there[:, None]
            if WIDTH % COLUMNS != 0:
                here &= (d < WIDTH)[None, :]
            from_weight = term * weight_part + tl.cast(skip, tl.int64) * weight_stride
            from_row = part * row_part + tl.cast(skip, tl.int64) * K * row_stride
            weight = tl.load(weight_at + from_weight, mask=groups & there[None, :], other=0.0)
            total = tl.dot(weight, tl.load(row_at + from_row, mask=here, other=0.0), total)
        m = first + tl.arange(0, ROWS)
        at = out + m[:, None].to(tl.int64) * D + d[None, :]
        inside = (m < end)[:, None] & (d < D)[None, :]
        tl.store(at, tl.load(at, mask=inside, other=0.0) + total, mask=inside)
