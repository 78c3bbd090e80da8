"""Rescoring of screened candidates: the hardest negative in fp32, or from three products.

Screening (`_screening`) stores, for every tile and anchor, the best score, its index and the second
best score. The norms of the rows bound the error of a score.
"""

import triton
import triton.language as tl

from itm_kernels.triton._launch import jit
from itm_kernels.triton._score_tiles import (
    maximum_with_index,
    no_key,
    ordered_key,
    paired_scores,
    program_tile,
    same_id,
    score_tile,
)
from itm_kernels.triton._tile_maxima import maximum_over_tiles

_NO_TILE = tl.constexpr(2**31 - 1)


@triton.jit
def value_of_key(key):
    """Return the fp32 value of an ordered key."""
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def _tile_bounds(
    key, index, second, other_largest, high_norm, low_norm, first, tiles, blocks, A, at, terms,
    BLOCKS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Return some tiles `[T]`, and their two best scores and error bounds `[T, A]` per anchor."""
    none: tl.constexpr = no_key(tl.int32)
    tile = first + tl.arange(0, TILES)
    block = tile[:, None] * BLOCKS + tl.arange(0, BLOCKS)[None, :]
    of_high = tl.max(tl.load(other_largest + block, mask=block < blocks, other=0.0), 1)
    of_low = tl.max(tl.load(other_largest + blocks + block, mask=block < blocks, other=0.0), 1)
    other_high, other_low = of_high[:, None], of_low[:, None]
    own_high, own_low = tl.load(high_norm + at)[None, :], tl.load(low_norm + at)[None, :]
    sums = terms * 3.6e-7 * own_high * other_high
    error = own_low * (other_high + other_low) + own_high * other_low + sums
    error = error * 1.001 + 1e-36
    inside = (tile < tiles)[:, None]
    offset = tile[:, None].to(tl.int64) * A + at[None, :]
    keys = tl.load(key + offset, mask=inside, other=none)
    indices = tl.load(index + offset, mask=inside, other=0)
    seconds = tl.load(second + offset, mask=inside, other=none)
    return tile, keys, indices, seconds, error


@triton.jit
def _rescore(
    anchor_rows,
    other_rows,
    anchor_stride,
    other_stride,
    high_norm,
    low_norm,
    other_largest,
    key,
    index,
    second,
    found_key,  # [A]
    found_index,  # [A]
    undecided,  # [A]
    count,  # []
    A,
    D,
    tiles,
    blocks,
    width,
    ANCHORS: tl.constexpr,
    TILES: tl.constexpr,
    BLOCKS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    none: tl.constexpr = no_key(tl.int32)
    a = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS)
    at = tl.minimum(a, A - 1)
    terms = tl.cast(width, tl.float32)
    least = tl.full((ANCHORS,), float("-inf"), tl.float32)
    unclear = tl.zeros((ANCHORS,), tl.int32)
    for first in range(0, tiles, TILES):
        tile, keys, indices, seconds, error = _tile_bounds(
            key, index, second, other_largest, high_norm, low_norm, first, tiles, blocks, A, at,
            terms, BLOCKS, TILES,
        )  # fmt: skip
        value = value_of_key(keys)
        finite = tl.abs(value) + error < float("inf")
        there = keys != none
        unclear |= tl.max((there & ~finite).to(tl.int32), 0)
        low = tl.where(there & finite, value - error, float("-inf"))
        least = tl.maximum(least, tl.max(low, 0))
    best = tl.full((ANCHORS,), none, tl.int32)
    found = tl.full((ANCHORS,), -1, tl.int32)
    for first in range(0, tiles, TILES):
        tile, keys, indices, seconds, error = _tile_bounds(
            key, index, second, other_largest, high_norm, low_norm, first, tiles, blocks, A, at,
            terms, BLOCKS, TILES,
        )  # fmt: skip
        close = (seconds != none) & (value_of_key(seconds) + error >= least[None, :])
        unclear |= tl.max(close.to(tl.int32), 0)
        possible = (keys != none) & (value_of_key(keys) + error >= least[None, :])
        possible = possible & (unclear == 0)[None, :]
        last = tl.full((ANCHORS,), -1, tl.int32)
        for _ in range(0, tl.max(tl.sum(possible.to(tl.int32), 0), 0)):
            at_tile = tl.broadcast_to(tile[:, None], possible.shape)
            left = tl.where(possible & (at_tile > last[None, :]), at_tile, _NO_TILE)
            last = tl.min(left, 0)
            candidate = tl.sum(tl.where(left == last[None, :], indices, 0), 0)
            here = last != _NO_TILE
            candidate = tl.where(here, candidate, 0)
            scores = paired_scores(
                anchor_rows, other_rows, anchor_stride, other_stride, D, at, candidate, DEPTH
            )
            exact = ordered_key(scores)
            better = here & (exact > best)
            found = tl.where(better, candidate, found)
            best = tl.where(better, exact, best)
    tl.store(found_key + a, best, mask=a < A)
    tl.store(found_index + a, found, mask=a < A)
    unclear = tl.where(a < A, unclear, 0)
    if tl.max(unclear, 0) > 0:
        begin = tl.atomic_add(count, tl.sum(unclear, 0))
        tl.store(undecided + begin + tl.cumsum(unclear, 0) - 1, a, mask=unclear > 0)


@jit
def rescore_kernel(
    x,
    y,
    x_stride,
    y_stride,
    x_high_norm,
    x_low_norm,
    x_largest_norm,
    y_high_norm,
    y_low_norm,
    y_largest_norm,
    row_key,
    row_index,
    row_second,
    column_key,
    column_index,
    column_second,
    row_found_key,
    row_found,
    column_found_key,
    column_found,
    row_undecided,
    column_undecided,
    counts,  # [2]
    N,
    M,
    D,
    row_tiles,  # of columns, for rows
    column_tiles,  # of rows, for columns
    x_blocks,
    y_blocks,
    width,
    ANCHORS: tl.constexpr,
    TILES: tl.constexpr,
    ROW_BLOCKS: tl.constexpr,  # of rows whose norms are bounded together, per tile
    COLUMN_BLOCKS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Rescore the tiles' best candidates in fp32, and list the anchors that remain undecided."""
    if tl.program_id(1) == 0:
        if tl.program_id(0) * ANCHORS < N:
            _rescore(
                x, y, x_stride, y_stride, x_high_norm, x_low_norm, y_largest_norm, row_key,
                row_index, row_second, row_found_key, row_found, row_undecided, counts, N, D,
                row_tiles, y_blocks, width, ANCHORS, TILES, ROW_BLOCKS, DEPTH,
            )  # fmt: skip
    else:
        if tl.program_id(0) * ANCHORS < M:
            _rescore(
                y, x, y_stride, x_stride, y_high_norm, y_low_norm, x_largest_norm, column_key,
                column_index, column_second, column_found_key, column_found, column_undecided,
                counts + 1, M, D, column_tiles, x_blocks, width, ANCHORS, TILES, COLUMN_BLOCKS,
                DEPTH,
            )  # fmt: skip


@jit
def undecided_tiles_kernel(
    operands,  # `ScoreOperands`
    x_ids,
    y_ids,
    undecided,  # [N] rows of x, of which the first `count` are valid
    count,
    key,  # [column tiles, N]
    index,
    N,
    M,
    HAS_IDS: tl.constexpr,
):
    ROWS: tl.constexpr = operands.ROWS
    COLUMNS: tl.constexpr = operands.COLUMNS
    n, m, row_tile, column_tile = program_tile(tl.program_id(0), ROWS, COLUMNS, N, M)
    there = tl.load(count)
    if row_tile * ROWS < there:
        rows = tl.load(undecided + tl.minimum(n, there - 1))
        columns = tl.minimum(m, M - 1)
        scores = score_tile(operands, rows, columns)
        # The smaller factor first: with the larger one a score could overflow in between.
        of_row = tl.load(operands.x_factor + rows)[:, None]
        of_column = tl.load(operands.y_factor + columns)[None, :]
        scores = scores * tl.minimum(of_row, of_column) * tl.maximum(of_row, of_column)
        off = same_id(rows, columns, x_ids, y_ids, HAS_IDS) | (m >= M)[None, :]
        keys = tl.where(off, no_key(scores.dtype), ordered_key(scores))
        best, candidate = maximum_with_index(keys, columns[None, :], 1)
        at = column_tile.to(tl.int64) * N + n
        tl.store(key + at, best, mask=n < there)
        tl.store(index + at, candidate, mask=n < there)


@triton.jit
def _undecided_maxima(
    key, index, undecided, count, found_key, found, tiles, A, ANCHORS: tl.constexpr
):  # fmt: skip
    there = tl.load(count)
    if tl.program_id(0) * ANCHORS < there:
        p = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS)
        at = tl.minimum(p, there - 1)
        candidate = maximum_over_tiles(key, index, tiles, A, at, 16)
        a = tl.load(undecided + at)
        tl.store(found + a, candidate, mask=p < there)
        tl.store(found_key + a, tl.where(candidate < 0, no_key(tl.int32), 0), mask=p < there)


@jit
def undecided_maxima_kernel(
    row_key,
    row_index,
    column_key,
    column_index,
    row_undecided,
    column_undecided,
    counts,
    row_found_key,
    row_found,
    column_found_key,
    column_found,
    N,
    M,
    row_tiles,
    column_tiles,
    ANCHORS: tl.constexpr,
):
    if tl.program_id(1) == 0:
        _undecided_maxima(
            row_key,
            row_index,
            row_undecided,
            counts,
            row_found_key,
            row_found,
            row_tiles,
            N,
            ANCHORS,
        )
    else:
        _undecided_maxima(
            column_key, column_index, column_undecided, counts + 1, column_found_key, column_found,
            column_tiles, M, ANCHORS,
        )  # fmt: skip
