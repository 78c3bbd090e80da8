"""k-means in two launches an iteration.

A program has some rows: a tile of scores leaves their nearest centroids, and a product with one-hot
rows their sums. The second launch adds up the sums of all programs.

With one set of members per anchor there are as many problems as anchors, and a tile holds the
centroids of several.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import INTERPRETED, operands, rows_of, to_tf32, wide_dtype
from itm_kernels.triton._lengths import squares_of
from itm_kernels.triton._table import architecture
from itm_kernels.triton._tiles import highest, no_key, ordered_key, score_tile, wide_type

_PROGRAMS = 512  # for one clustering few tiles of sums are many long ones
_CHAIN = 1024  # rows that a program adds up, while the sums of all programs are fewer than the rows
_MOST_COLUMNS = 64


@triton.jit
def _sum_rows(
    x,  # [PARTS, N, WIDE]
    assignment,  # [B, N]
    sums,  # [shares, B, K, D]
    counts,  # [shares, B, K]
    x_stride,
    x_part,
    begin,
    end,
    share,
    own_problem,  # [COLUMNS]
    own_cluster,  # [COLUMNS]
    inside,  # [COLUMNS]
    N,
    B,
    K,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write the sums of a share's rows in some clusters, and how many they are."""
    DTYPE: tl.constexpr = wide_type(x.dtype)
    at = ((share.to(tl.int64) * B + own_problem) * K + own_cluster).to(tl.int64)
    of_row = assignment + own_problem.to(tl.int64)[:, None] * N
    count = tl.zeros((COLUMNS,), tl.int32)
    for first_d in range(0, D, DEPTH):
        d = first_d + tl.arange(0, DEPTH)
        total = tl.zeros((COLUMNS, DEPTH), DTYPE)
        lost = tl.zeros((COLUMNS,), tl.int32)
        # One product per step, low parts to high: all of a chunk's in one step are spills.
        chunks = tl.cdiv(end - begin, ROWS)
        for step in range(0, PARTS * chunks):
            part = PARTS - 1 - step // chunks
            m = begin + step % chunks * ROWS + tl.arange(0, ROWS)
            nearest = tl.load(of_row + m[None, :], mask=(m < end)[None, :], other=-1)
            own = (nearest == own_cluster[:, None]) & inside[:, None]
            if (first_d == 0) & (part == 0):
                count += tl.sum(own.to(tl.int32), 1)
            row_at = x + tl.cast(part, tl.int64) * x_part + d[None, :]
            row_at += m[:, None].to(tl.int64) * x_stride
            row = tl.load(row_at, mask=(m < end)[:, None] & (d < D)[None, :], other=0.0)
            # A row that is not finite makes its cluster NaN; 0 x NaN would make all of them.
            finite = tl.abs(row.to(DTYPE)) < float("inf")
            lost_rows = tl.max((~finite).to(tl.int32), 1)
            lost = tl.maximum(lost, tl.max(own.to(tl.int32) * lost_rows[None, :], 1))
            row = tl.where(finite, row, tl.zeros_like(row))
            total = tl.dot(
                own.to(row.dtype), row, total, input_precision=PRECISION, out_dtype=DTYPE
            )
        total = tl.where((lost != 0)[:, None], float("nan"), total)
        tl.store(
            sums + at[:, None] * D + d[None, :], total, mask=inside[:, None] & (d < D)[None, :]
        )
    tl.store(counts + at, count, mask=inside)


@triton.jit(do_not_specialize=["N", "B", "tiles_of_share"])
def _nearest_kernel(
    x,
    y,
    centroids,  # [B * K, D]
    member,  # [B, N]
    assignment,  # [B, N] int32
    sums,  # [shares, B, K, D]
    counts,  # [shares, B, K] int32
    x_stride,
    y_stride,
    x_part,
    y_part,
    N,  # rows of x
    B,
    K,
    D,  # of the operands, with zeros from the rows' own on
    own_D,
    tiles_of_share,
    shares,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    WIDTH: tl.constexpr,  # columns of a problem: a power of two
    HAS_MEMBER: tl.constexpr,
    UPDATE: tl.constexpr,
):
    PROBLEMS: tl.constexpr = COLUMNS // WIDTH
    share = tl.program_id(0) % shares
    group = (tl.program_id(0) // shares) * PROBLEMS
    problem = group + tl.arange(0, PROBLEMS)
    column = tl.arange(0, COLUMNS)
    of_column = tl.minimum(group + column // WIDTH, B - 1)
    none: tl.constexpr = no_key(tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32)
    KEY: tl.constexpr = tl.int64 if x.dtype.element_ty == tl.float64 else tl.int32
    begin = share * tiles_of_share * ROWS
    end = tl.minimum(begin + tiles_of_share * ROWS, N)
    for first_row in range(begin, end, ROWS):
        n = first_row + tl.arange(0, ROWS)
        rows = tl.minimum(n, N - 1)
        best = tl.full((ROWS, PROBLEMS), none, KEY)
        nearest = tl.zeros((ROWS, PROBLEMS), tl.int32)
        for first in range(0, K, WIDTH):
            k = first + column % WIDTH
            columns = of_column.to(tl.int64) * K + tl.minimum(k, K - 1)
            square = squares_of(centroids + columns * own_D, 1, own_D, tl.arange(0, DEPTH))
            scores = score_tile(
                x, y, x_stride, y_stride, x_part, y_part, D, rows, columns,
                DEPTH, PARTS, PRECISION, ALIGN, EVEN,
            )  # fmt: skip
            # |x|^2 is the same for every centroid. NaN is nearest, as for torch's argmin.
            keys = ordered_key(scores - (square / 2)[None, :])
            keys = tl.where((k < K)[None, :], keys, none)
            keys = tl.reshape(keys, (ROWS, PROBLEMS, WIDTH))
            index = (first + tl.arange(0, WIDTH)).to(tl.int32)
            key, found = highest(keys, index[None, None, :], 2)
            nearest = tl.where(key > best, found, nearest)
            best = tl.maximum(key, best)
        at = problem[None, :].to(tl.int64) * N + n[:, None]
        inside = (n < N)[:, None] & (problem < B)[None, :]
        if HAS_MEMBER:
            nearest = tl.where(tl.load(member + at, mask=inside, other=0) != 0, nearest, -1)
        tl.store(assignment + at, nearest, mask=inside)
    if UPDATE:
        tl.debug_barrier()  # other threads read what these found
        for first in range(0, K, WIDTH):
            k = first + column % WIDTH
            there = (k < K) & (group + column // WIDTH < B)
            _sum_rows(
                x, assignment, sums, counts, x_stride, x_part, begin, end, share, of_column, k,
                there, N, B, K, own_D, ROWS, COLUMNS, DEPTH, PARTS, PRECISION,
            )  # fmt: skip


@triton.jit(do_not_specialize=["shares", "R"])
def _mean_kernel(
    sums,  # [shares, R, D]
    counts,  # [shares, R]
    centroids,  # [R, D], replaced
    y,  # [PARTS, R, WIDE] operands
    y_stride,
    y_part,
    shares,
    R,  # clusters of all problems
    D,
    PARTS: tl.constexpr,
    ROUND: tl.constexpr,
    SHARES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((SHARES, COLUMNS), tl.float64)
    number = tl.zeros((SHARES,), tl.int32)
    for first in range(0, shares, SHARES):
        share = (first + tl.arange(0, SHARES)).to(tl.int64)
        here = share < shares
        at = share * R + r
        number += tl.load(counts + at, mask=here, other=0)
        inside = here[:, None] & (d < D)[None, :]
        total += tl.load(sums + at[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float64)
    count = tl.sum(number, 0)
    # An empty cluster keeps its centroid.
    if count > 0:
        DTYPE: tl.constexpr = centroids.dtype.element_ty
        mean = (tl.sum(total, 0) / count).to(DTYPE)
        tl.store(centroids + r * D + d, mean, mask=d < D)
        if ROUND:
            mean = to_tf32(mean)
        for part in tl.static_range(PARTS):
            high = mean if ROUND else mean.to(tl.bfloat16)
            tl.store(y + part * y_part + r * y_stride + d, high, mask=d < D)
            mean -= high.to(DTYPE)


class _Sums(NamedTuple):
    """The sums of every program's rows."""

    sums: Tensor  # [shares, B, K, D]
    counts: Tensor  # [shares, B, K]


def tiles_of_share(M: int, tiles: int, sums: int, groups: int) -> int:
    """Return how many of the tiles of M rows a program takes, of which so many sums are made.

    Programs enough, chains short enough, and fewer numbers in their sums than in the rows.
    """
    shares = max(triton.cdiv(_PROGRAMS, groups), triton.cdiv(M, _CHAIN))
    return triton.cdiv(tiles, max(1, min(tiles, shares, M // (4 * sums))))


def kmeans(
    x: Tensor,  # [M, D]
    member: Tensor | None,  # [B, M]
    centroids: Tensor,  # [B, K, D]
    iterations: int,
) -> tuple[Tensor, Tensor]:  # [B, M], [B, K, D]
    """Return every member's nearest centroid, -1 for others, after so many updates of these."""
    (B, K, D), M = centroids.shape, x.shape[0]
    dtype = wide_dtype(x)
    centroids = centroids.to(dtype, copy=True, memory_format=torch.contiguous_format)
    flat = centroids.view(B * K, D)
    both = operands(rows_of(x.to(dtype)), flat, shape=(1, 1))
    assignment = torch.empty((B, M), dtype=torch.int32, device=x.device)
    width = min(triton.next_power_of_2(K), _MOST_COLUMNS)
    columns = 16 if B * width <= 16 else _MOST_COLUMNS  # 32 are 16 spills on sm_100
    # On fp32 units two stages are 10 spills on sm_90.
    stages = 1 if both.kind == "ieee" else 2
    warps = 4 if architecture() == 120 else 8  # 8 are 14 spills there, 4 are 11 on sm_86
    both = both._replace(tile=both.tile._replace(columns=columns, warps=warps, stages=stages))
    groups, tiles = triton.cdiv(B * width, columns), triton.cdiv(M, both.tile.rows)
    of_share = tiles_of_share(M, tiles, B * K, groups)
    shares = triton.cdiv(tiles, of_share)
    found = _Sums(
        torch.empty((shares, B, K, D) if iterations else 0, dtype=dtype, device=x.device),
        torch.empty((shares, B, K) if iterations else 0, dtype=torch.int32, device=x.device),
    )
    arguments = {
        **{**both.arguments(), "own_D": D, "centroids": flat, "assignment": assignment},
        **{"member": assignment if member is None else member.contiguous(), "N": M, "B": B, "K": K},
        **{"WIDTH": width, "HAS_MEMBER": member is not None, **found._asdict()},
        **{"shares": shares, "tiles_of_share": of_share},
    }
    rounded = both.kind == "tf32" and not INTERPRETED
    for step in range(iterations + 1):
        _nearest_kernel[(shares * groups,)](**arguments, UPDATE=step < iterations)
        if step < iterations:
            _mean_kernel[(B * K, triton.cdiv(D, 256))](
                *found, flat, both.y, both.y.stride(1), both.y.stride(0), shares, B * K, D,
                PARTS=3 if both.kind == "parts" else int(rounded), ROUND=rounded, SHARES=16,
                COLUMNS=256, num_warps=4,
            )  # fmt: skip
    return assignment.long(), centroids
