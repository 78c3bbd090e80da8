"""Weighted sums of the members' rows, per anchor and cluster.

Weights are in fp32, and so are the sums: rows and weights are parts on tensor cores, of fp16 where
weights are at most 1, of bf16 otherwise. The sums are stored, or leave only their product with the
anchor and their square.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._clusters import Clusters, grid_of
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
    """Rows that are multiplied with weights in fp32."""

    rows: Tensor  # [parts, M, D]
    terms: int  # parts that a weight is split into; 0: it is multiplied as it is
    precision: str
    tile: Tile
    factor: Tensor | None = None  # [M] of rows in fp16
    unit: Tensor | None = None  # [] that brings weight x factor below 2^15

    def scaling(self, stand_in: Tensor) -> dict[str, Any]:
        """Return what weights are multiplied by as a kernel's arguments."""
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
    """Prepare rows: bf16 is exact as it is, and a weight is three such numbers."""
    if x.dtype == torch.float16:
        x = x.float()  # its smallest numbers are below those of a weight's parts
    kind, parts = kind_and_parts(x, cancelling)
    terms = parts if kind in ("half", "parts") else 0
    tile = tile_of("sum" if terms or kind == "tf32" else kind, 1, 1, x.shape[1])
    tile = tile._replace(warps=8)  # weights of a mask in 4 warps are 10 to 146 spills
    return RowOperand(prepare(x, kind, parts), terms, "tf32" if kind == "tf32" else "ieee", tile)


def scaled_row_operand(rows: Tensor, factor: Tensor, like: Tensor) -> RowOperand:
    """Prepare rows laid out by `_scaled_operands` for weights of at most 1, as a softmax has.

    Rows are one or two parts of fp16, and weights two: half as many products as of bf16 parts.
    Weights lose what is below 2^-39 of the longest row.

    Args:
        rows: `[parts, M, D']`.
        factor: `[M]`.
        like: `[M, D]`, rows as they came.
    """
    one = factor.new_ones(1)
    tile = tile_of("sum", 1, 1, like.shape[1])
    both = Operands(rows, rows, "parts", "ieee", tile, one, factor)
    unit = weight_scale(rows[0], both, one[0], one)
    return RowOperand(rows, 2, "ieee", tile._replace(warps=8), factor, unit)


def _wide_tile(members: RowOperand, clusters: Clusters, R: int) -> RowOperand:
    """Take a large tile for many rows without masks, whose sums are not stored.

    A mask beside it, of rows or of D, is 18 spills on sm_90, pointers to store at are 22.
    """
    width = members.rows.shape[2]
    if clusters.per_anchor or not (members.terms or members.precision == "tf32"):
        return members
    tile = tile_of("sum", R, R, width, "reduction")
    return members if width % tile.columns else members._replace(tile=tile)


@triton.jit
def anchor_and_cluster(p, P, K, group, PER_ANCHOR: tl.constexpr):
    """Return the anchors and the clusters of rows `[p]` of a block's list, fewer than 2^31."""
    row = tl.minimum(p, P - 1)
    anchor = (row // K if PER_ANCHOR else row).to(tl.int64)
    cluster = row % K if PER_ANCHOR else group
    return anchor, cluster


@triton.jit
def split_dot(total, weights, rows, TERMS: tl.constexpr, PRECISION: tl.constexpr):
    """Return total + weights . rows; with terms, of weights split into so many numbers of 16 bits.

    They are fp16 beside rows of fp16, bf16 otherwise.
    """
    if TERMS == 0:
        if PRECISION == "tf32" and not _INTERPRETED:  # which multiplies tf32 in fp32
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


# With M = 1 folded in, sm_100 spills: M says by its divisor what loads may assume.
@triton.jit(do_not_specialize=["M", "P", "tiles", "R"])
def _sums_kernel(
    weights,  # [R, M]
    rows,  # [PARTS, M, D]
    starts,
    assignment,  # [R, M] int32
    valid,  # [R, K]
    anchors,  # [R, D]
    out,  # [R, K, D]; of cosines [2, depth tiles, R, K]
    factor,  # [M]
    unit,  # []
    anchor_stride,
    row_stride,
    row_part,
    P,  # rows of a list
    tiles,  # of its rows
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
    DIVISOR: tl.constexpr,  # of M, a power of two
):
    M = M // DIVISOR * DIVISOR
    # Tiles of one row of weights run side by side, so that these are read from memory once.
    depths = tl.cdiv(D, COLUMNS)
    rows_tile, column_tile = tl.program_id(0) // depths, tl.program_id(0) % depths
    group = rows_tile // tiles
    p = (rows_tile % tiles) * ROWS + tl.arange(0, ROWS)
    n, k = anchor_and_cluster(p, P, K, group, PER_ANCHOR)
    d = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    DTYPE: tl.constexpr = wide_type(rows.dtype)
    begin, end = tl.load(starts + group), tl.load(starts + group + 1)
    total = tl.full((ROWS, COLUMNS), 0, DTYPE)
    # Pointers before the loop: 64-bit offsets of every element in it are hundreds of spills.
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
            # Parts of weights that meet a low part of a row are not seen in fp32.
            terms: tl.constexpr = 0 if TERMS == 0 else TERMS - part
            total = split_dot(total, weight, row, terms, PRECISION)
    at = n * K + k
    some = p < P
    if FACTORS:
        total *= 1 / tl.load(unit)
    # Without a member nothing depends on the cluster, whatever 0 was multiplied with.
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
    """Sum weight * member over every cluster's members."""
    (R, _, D), M = out.shape, weights.shape[1]
    grid = grid_of(clusters, R, members.tile.rows)
    _sums_kernel[(grid.programs * triton.cdiv(D, members.tile.columns),)](
        weights=weights, valid=valid, anchors=out, out=out, anchor_stride=0,
        **clusters.arguments(), **members.arguments(), **grid.arguments(), R=R, D=D,
        OF="vectors", DIVISOR=math.gcd(16, M), **members.scaling(weights),
    )  # fmt: skip


def cosine_terms(
    clusters: Clusters,
    weights: Tensor,  # [R, M]
    members: RowOperand,
    valid: Tensor,  # [R, K]
    anchors: Tensor,  # [R, D], elements side by side
) -> Tensor:  # [2, tiles of D, R, K]
    """Return parts of the sums' products with the anchors, and of their squares: none is stored."""
    (R, D), K, M = anchors.shape, clusters.number, weights.shape[1]
    members = _wide_tile(members, clusters, R)
    grid = grid_of(clusters, R, members.tile.rows)
    depths = triton.cdiv(D, members.tile.columns)
    out = torch.empty((2, depths, R, K), dtype=wide_dtype(anchors), device=anchors.device)
    _sums_kernel[(grid.programs * depths,)](
        weights=weights, valid=valid, anchors=anchors, out=out,
        anchor_stride=anchors.stride(0), **clusters.arguments(), **members.arguments(),
        **grid.arguments(), R=R, D=D, OF="cosines", DIVISOR=math.gcd(16, M),
        **members.scaling(weights),
    )  # fmt: skip
    return out
