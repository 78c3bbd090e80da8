"""Distances of close pairs, recomputed from differences of rows.

A distance far below the norms of its rows is the difference of almost equal numbers, and products
leave it few digits. The kernel of products marks its tiles that hold such pairs; of these tiles,
this kernel replaces the close pairs and leaves the others as they are. A step computes one pair of
every row of a tile. Where most pairs are close, as in an untrained model, a tile is computed whole.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._norms import square_root
from itm_kernels.triton._score_tiles import difference_tile, wide_type

# Below an eighth of |x|^2 + |y|^2 three bits of the products are lost: 4e-6 of the distance.
_CLOSE = tl.constexpr(1 / 8)
# Products of two rows below 2^-24 have less than 22 bits (`_scaled_operands`).
_TINY = tl.constexpr(2.0**-46)
_SIDE = 64
_MOST = tl.constexpr(16)  # pairs of a row; as many steps take as long as a whole tile


@triton.jit
def are_close(raw, compared, rows, columns):
    """Mark the pairs `[R, C]` whose distances products do not resolve."""
    square = compared * compared if raw.METRIC == "l2" else compared
    lengths = tl.load(raw.x_term + rows)[:, None] + tl.load(raw.y_term + columns)[None, :]
    return (square < lengths * _CLOSE) | (lengths < _TINY)


@jit
def _close_distances_kernel(
    raw,  # `_metrics.RawRows` of B * N and B * M rows
    has_close,  # [B, row tiles, column tiles] of the kernel of products
    out,  # [B, N, M]
    N,
    M,
    TILE_ROWS: tl.constexpr,  # of the kernel of products
    TILE_COLUMNS: tl.constexpr,
    SIDE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    across, down = tl.cdiv(M, SIDE), tl.cdiv(N, SIDE)
    row_tile, column_tile = tl.program_id(0) // across % down, tl.program_id(0) % across
    batch = (tl.program_id(0) // across // down).to(tl.int64)
    flag = batch * tl.cdiv(N, TILE_ROWS) + row_tile * SIDE // TILE_ROWS
    flag = flag * tl.cdiv(M, TILE_COLUMNS) + column_tile * SIDE // TILE_COLUMNS
    if tl.load(has_close + flag) > 0:
        n, m = row_tile * SIDE + tl.arange(0, SIDE), column_tile * SIDE + tl.arange(0, SIDE)
        rows, columns = batch * N + tl.minimum(n, N - 1), batch * M + tl.minimum(m, M - 1)
        there = (n < N)[:, None] & (m < M)[None, :]
        DTYPE: tl.constexpr = wide_type(raw.raw_x.dtype)
        at = out + (batch * N + n) * M
        compared = tl.load(at[:, None] + m[None, :], there, 0.0).to(DTYPE)
        close = are_close(raw, compared, rows, columns) & there
        steps = tl.max(tl.sum(close.to(tl.int32), 1), 0)
        if steps > _MOST:
            exact = difference_tile(
                raw.raw_x, raw.raw_y, raw.raw_x_stride, raw.raw_y_stride, raw.raw_width, rows,
                columns, 2, True,
            )  # fmt: skip
            if raw.METRIC == "l2":
                exact = square_root(exact)
            tl.store(at[:, None] + m[None, :], exact, close)
        else:
            depth = tl.arange(0, DEPTH)[None, :]
            x_at = raw.raw_x + rows[:, None].to(tl.int64) * raw.raw_x_stride + depth
            for _ in range(0, steps):
                column = tl.min(tl.where(close, m[None, :], M), 1)
                close = close & (m[None, :] != column[:, None])
                found = (column < M)[:, None]
                other = (batch * M + tl.minimum(column, M - 1)).to(tl.int64)
                y_at = raw.raw_y + other[:, None] * raw.raw_y_stride + depth
                sums = tl.zeros((SIDE, DEPTH), DTYPE)
                for first in range(0, raw.raw_width, DEPTH):
                    inside = found & (depth < raw.raw_width - first)
                    x_chunk = tl.load(x_at + first, inside, 0.0).to(DTYPE)
                    difference = x_chunk - tl.load(y_at + first, inside, 0.0).to(DTYPE)
                    sums += difference * difference
                distance = tl.sum(sums, 1)
                if raw.METRIC == "l2":
                    distance = square_root(distance)
                tl.store(at + column, distance, column < M)


def replace_close_distances(
    raw: tuple[Any, ...],  # `_metrics.RawRows`
    has_close: Tensor,  # [B, row tiles, column tiles]
    out: Tensor,  # [.., N, M], updated
    batches: int,
    tile: tuple[int, int],  # of the kernel that wrote them
) -> None:
    """Replace the distances of close pairs by those of differences."""
    N, M = out.shape[-2:]
    grid = (batches * cdiv(N, _SIDE) * cdiv(M, _SIDE),)
    _close_distances_kernel[grid](
        raw, has_close, out, N, M, TILE_ROWS=tile[0], TILE_COLUMNS=tile[1], SIDE=_SIDE, DEPTH=64,
        num_warps=8, num_stages=1,
    )  # fmt: skip
