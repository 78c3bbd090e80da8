"""Weighted sums of member rows, per anchor and cluster.

Weights and sums are fp32. Tensor cores multiply rows and weights split into parts: of fp16 where
weights are at most 1, of bf16 otherwise. A kernel stores the sums, or only their dot products with
the anchor and their squared norms.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._cluster_products import sums_of_clusters
from itm_kernels.triton._clusters import Clusters, anchor_and_cluster, grid_of
from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._operands import (
    INTERPRETED,
    Operands,
    Tile,
    kind_and_parts,
    prepare,
    tile_of,
    to_tf32,
    wide_dtype,
)
from itm_kernels.triton._products import weight_scale
from itm_kernels.triton._score_tiles import wide_type

_INTERPRETED = tl.constexpr(INTERPRETED)


class RowOperand(NamedTuple):
    """Rows prepared for products with fp32 weights."""

    rows: Tensor  # [parts, M, D]
    terms: int  # number of parts of a weight; 0: weights are not split
    precision: str
    tile: Tile
    factor: Tensor | None = None  # [M] scale of every fp16 row
    unit: Tensor | None = None  # [] scale that keeps weight x factor below 2^15

    def scaling(self, stand_in: Tensor) -> dict[str, Any]:
        """Return the scales of weights as a kernel's arguments."""
        if self.factor is None or self.unit is None:
            return {"factor": stand_in, "unit": stand_in, "FACTORS": False}
        return {"factor": self.factor, "unit": self.unit, "FACTORS": True}

    def arguments(self) -> dict[str, Any]:
        """Return the rows as a kernel's arguments."""
        parts, _, D = self.rows.shape
        return {
            **{"rows": self.rows, "row_stride": self.rows.stride(1)},
            **{"row_part": self.rows.stride(0), "PARTS": parts, "TERMS": self.terms},
            **{"PRECISION": self.precision, "WIDTH": D, **self.tile.options()},
        }


def row_operand(x: Tensor, cancelling: bool = False) -> RowOperand:
    """Prepare rows: bf16 rows need no split, and a weight is split into three bf16 parts."""
    if x.dtype == torch.float16:
        x = x.float()  # the smallest fp16 values are below those of a weight's parts
    kind, parts = kind_and_parts(x, cancelling)
    terms = parts if kind in ("half", "parts") else 0
    tile = tile_of("sum" if terms or kind == "tf32" else kind, 1, 1, x.shape[1])
    tile = tile._replace(warps=8)  # masked weights in 4 warps: 10 to 146 spills
    return RowOperand(prepare(x, kind, parts), terms, "tf32" if kind == "tf32" else "ieee", tile)


def scaled_row_operand(rows: Tensor, factor: Tensor, like: Tensor) -> RowOperand:
    """Prepare rows laid out by `_scaled_operands` for weights of at most 1, as a softmax has.

    Rows are one or two fp16 parts, and weights two: half as many products as with bf16 parts.
    Contributions below 2^-39 of the largest norm are lost.

    Args:
        rows: `[parts, M, D']`.
        factor: `[M]`.
        like: `[M, D]`, the original rows.
    """
    one = factor.new_ones(1)
    tile = tile_of("sum", 1, 1, like.shape[1])
    both = Operands(rows, rows, "parts", "ieee", tile, one, factor)
    unit = weight_scale(rows[0], both, one[0], one)
    return RowOperand(rows, 2, "ieee", tile._replace(warps=8), factor, unit)


def _wide_tile(members: RowOperand, clusters: Clusters, R: int) -> RowOperand:
    """Use a large tile for many rows, if the kernel needs no mask and stores no sums.

    With a mask of rows or of D it has 18 spills on sm_90, with pointers for a store 22.
    """
    width = members.rows.shape[2]
    if clusters.per_anchor or members.precision != "tf32":
        return members
    tile = tile_of("sum", R, R, width, "reduction")
    return members if width % tile.columns else members._replace(tile=tile)


@triton.jit
def split_dot(total, weights, rows, TERMS: tl.constexpr, PRECISION: tl.constexpr):
    """Return total + weights . rows, with weights split into TERMS parts of 16 bits, 0 for none.

    Parts are fp16 if the rows are fp16, bf16 otherwise.
    """
    if TERMS == 0:
        if PRECISION == "tf32" and not _INTERPRETED:  # the interpreter multiplies tf32 in fp32
            weights = to_tf32(weights)
        total = tl.dot(weights, rows, total, input_precision=PRECISION, out_dtype=total.dtype)
    else:
        PART: tl.constexpr = tl.float16 if rows.dtype == tl.float16 else tl.bfloat16
        rest = weights
        for _ in tl.static_range(TERMS):
            high = rest.to(PART)
            total = tl.dot(high.to(rows.dtype), rows, total)
            rest -= high.to(tl.float32)
    return total


# Specialized for M = 1, sm_100 spills; DIVISOR gives loads the alignment of M instead.
@jit(do_not_specialize=["M", "P", "tiles", "R"])
def _sums_kernel(
    weights,  # [R, M]
    rows,  # [PARTS, M, D]
    starts,
    assignment,  # [R, M] int32
    valid,  # [R, K]
    anchors,  # [R, D]
    out,  # [R, K, D]; for cosines [2, depth tiles, R, K]
    factor,  # [M]
    unit,  # []
    anchor_stride,
    row_stride,
    row_part,
    P,  # rows per list
    tiles,  # tiles of these rows
    R,
    K,
    M,
    D,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    TERMS: tl.constexpr,
    PRECISION: tl.constexpr,
    PER_ANCHOR: tl.constexpr,
    FACTORS: tl.constexpr,
    OF: tl.constexpr,
    DIVISOR: tl.constexpr,  # a power of two that divides M
):
    """Sum the weighted members of every cluster; store the sums, or dot products and squares."""
    M = M // DIVISOR * DIVISOR
    # Programs that read the same weights are adjacent, so that HBM is read once.
    depths = tl.cdiv(D, COLUMNS)
    rows_tile, column_tile = tl.program_id(0) // depths, tl.program_id(0) % depths
    group = rows_tile // tiles
    p = (rows_tile % tiles) * ROWS + tl.arange(0, ROWS)
    n, k = anchor_and_cluster(p, P, K, group, PER_ANCHOR)
    d = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    DTYPE: tl.constexpr = wide_type(rows.dtype)
    begin, end = tl.load(starts + group), tl.load(starts + group + 1)
    total = tl.full((ROWS, COLUMNS), 0, DTYPE)
    # Pointers are computed before the loop: 64-bit offsets per element inside it cost hundreds of
    # spills.
    depth = tl.arange(0, DEPTH)
    at = n[:, None] * M + depth[None, :]
    row_at = rows + depth[:, None].to(tl.int64) * row_stride + d[None, :]
    for part in tl.static_range(PARTS - 1, -1, -1):
        for first in range(begin, end, DEPTH):
            inside = depth < end - first
            weight = tl.load(weights + at + first, mask=inside[None, :], other=0.0).to(DTYPE)
            if PER_ANCHOR:
                own = tl.load(assignment + at + first, mask=inside[None, :], other=-1)
                weight = tl.where(own == k[:, None], weight, 0.0)
            if FACTORS:
                of_row = tl.load(factor + first + depth, mask=inside, other=0.0) * tl.load(unit)
                weight *= of_row[None, :]
            here = inside[:, None]
            if WIDTH % COLUMNS != 0:
                here &= (d < WIDTH)[None, :]
            skip = part * row_part + tl.cast(first, tl.int64) * row_stride
            row = tl.load(row_at + skip, mask=here, other=0.0)
            # Products of the low parts of both are below fp32's resolution.
            terms: tl.constexpr = 0 if TERMS == 0 else TERMS - part
            total = split_dot(total, weight, row, terms, PRECISION)
    at = n * K + k
    some = p < P
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
        anchor = tl.load(place, mask=(d < D)[None, :], other=0.0).to(DTYPE)
        tl.store(out + at, tl.sum(total * anchor, 1), mask=some)
        at += tl.cast(depths, tl.int64) * R * K
        tl.store(out + at, tl.sum(total * total, 1), mask=some)


def store_vectors(
    clusters: Clusters,
    weights: Tensor,  # [R, M]
    members: RowOperand,
    valid: Tensor,  # [R, K]
    out: Tensor,  # [R, K, D] to write
) -> None:
    """Write the sum of weight * member over the members of every cluster."""
    (R, _, D), M = out.shape, weights.shape[1]
    if members.terms and not clusters.per_anchor:
        given = members.rows, members.terms, members.factor, members.unit, valid
        sums_of_clusters(clusters, weights, *given, out[:, 0], out)
        return
    grid = grid_of(clusters, R, members.tile.rows)
    _sums_kernel[(grid.programs * cdiv(D, members.tile.columns),)](
        weights=weights, valid=valid, anchors=out, out=out, anchor_stride=0,
        **clusters.arguments(), **members.arguments(), **grid.arguments(), R=R, D=D,
        OF="vectors", DIVISOR=math.gcd(16, M), **members.scaling(weights),
    )  # fmt: skip


def cosine_terms(
    clusters: Clusters,
    weights: Tensor,  # [R, M]
    members: RowOperand,
    valid: Tensor,  # [R, K]
    anchors: Tensor,  # [R, D], contiguous rows
) -> Tensor:  # [2, tiles of D, R, K]
    """Return dot products of the sums with the anchors and squared norms, per tile of D.

    The sums themselves are not stored.
    """
    (R, D), K, M = anchors.shape, clusters.number, weights.shape[1]
    if members.terms and not clusters.per_anchor:
        given = members.rows, members.terms, members.factor, members.unit, valid
        return sums_of_clusters(clusters, weights, *given, anchors, None)
    members = _wide_tile(members, clusters, R)
    grid = grid_of(clusters, R, members.tile.rows)
    depths = cdiv(D, members.tile.columns)
    out = torch.empty((2, depths, R, K), dtype=wide_dtype(anchors), device=anchors.device)
    _sums_kernel[(grid.programs * depths,)](
        weights=weights, valid=valid, anchors=anchors, out=out,
        anchor_stride=anchors.stride(0), **clusters.arguments(), **members.arguments(),
        **grid.arguments(), R=R, D=D, OF="cosines", DIVISOR=math.gcd(16, M),
        **members.scaling(weights),
    )  # fmt: skip
    return out
