"""Which candidate of a screen is the hardest negative: fp32 decides, or three products do.

A screen (`_screening`) leaves for every tile and anchor the best score, its index and the second; a
score is off by no more than what the lengths of rows say.
"""

import triton
import triton.language as tl

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
def value_of(key):
    """Return the fp32 value of an ordered key."""
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def _tiles_of(
    key, index, second, other_most, kept, lost, first, tiles, blocks, A, at, terms,
    BLOCKS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Return some tiles `[T]`, and for anchors `[A]` their bests, seconds and errors `[T, A]`."""
    none: tl.constexpr = no_key(tl.int32)
    tile = first + tl.arange(0, TILES)
    block = tile[:, None] * BLOCKS + tl.arange(0, BLOCKS)[None, :]
    of_kept = tl.max(tl.load(other_most + block, mask=block < blocks, other=0.0), 1)
    of_lost = tl.max(tl.load(other_most + blocks + block, mask=block < blocks, other=0.0), 1)
    other_kept, other_lost = of_kept[:, None], of_lost[:, None]
    own_kept, own_lost = tl.load(kept + at)[None, :], tl.load(lost + at)[None, :]
    sums = terms * 3.6e-7 * own_kept * other_kept
    error = own_lost * (other_kept + other_lost) + own_kept * other_lost + sums
    error = error * 1.001 + 1e-36
    inside = (tile < tiles)[:, None]
    places = tile[:, None].to(tl.int64) * A + at[None, :]
    keys = tl.load(key + places, mask=inside, other=none)
    indices = tl.load(index + places, mask=inside, other=0)
    seconds = tl.load(second + places, mask=inside, other=none)
    return tile, keys, indices, seconds, error


@triton.jit
def _rescore(
    anchor_rows,
    other_rows,
    anchor_stride,
    other_stride,
    kept,
    lost,
    other_most,
    key,
    index,
    second,
    found_key,  # [A]
    found_index,  # [A]
    listed,  # [A]
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
    unsure = tl.zeros((ANCHORS,), tl.int32)
    for first in range(0, tiles, TILES):
        tile, keys, indices, seconds, error = _tiles_of(
            key, index, second, other_most, kept, lost, first, tiles, blocks, A, at, terms,
            BLOCKS, TILES,
        )  # fmt: skip
        value = value_of(keys)
        finite = tl.abs(value) + error < float("inf")
        there = keys != none
        unsure |= tl.max((there & ~finite).to(tl.int32), 0)
        low = tl.where(there & finite, value - error, float("-inf"))
        least = tl.maximum(least, tl.max(low, 0))
    best = tl.full((ANCHORS,), none, tl.int32)
    found = tl.full((ANCHORS,), -1, tl.int32)
    for first in range(0, tiles, TILES):
        tile, keys, indices, seconds, error = _tiles_of(
            key, index, second, other_most, kept, lost, first, tiles, blocks, A, at, terms,
            BLOCKS, TILES,
        )  # fmt: skip
        close = (seconds != none) & (value_of(seconds) + error >= least[None, :])
        unsure |= tl.max(close.to(tl.int32), 0)
        could = (keys != none) & (value_of(keys) + error >= least[None, :])
        could = could & (unsure == 0)[None, :]
        last = tl.full((ANCHORS,), -1, tl.int32)
        for _ in range(0, tl.max(tl.sum(could.to(tl.int32), 0), 0)):
            numbers = tl.broadcast_to(tile[:, None], could.shape)
            left = tl.where(could & (numbers > last[None, :]), numbers, _NO_TILE)
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
    unsure = tl.where(a < A, unsure, 0)
    if tl.max(unsure, 0) > 0:
        begin = tl.atomic_add(count, tl.sum(unsure, 0))
        tl.store(listed + begin + tl.cumsum(unsure, 0) - 1, a, mask=unsure > 0)


@triton.jit
def rescore_kernel(
    x,
    y,
    x_stride,
    y_stride,
    x_kept,
    x_lost,
    x_most,
    y_kept,
    y_lost,
    y_most,
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
    row_listed,
    column_listed,
    counts,  # [2]
    N,
    M,
    D,
    row_tiles,  # of texts
    column_tiles,  # of images
    x_blocks,
    y_blocks,
    width,
    ANCHORS: tl.constexpr,
    TILES: tl.constexpr,
    ROW_BLOCKS: tl.constexpr,  # of texts in a tile
    COLUMN_BLOCKS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Decide in fp32 between the tiles' bests, and list the anchors that those do not settle."""
    if tl.program_id(1) == 0:
        if tl.program_id(0) * ANCHORS < N:
            _rescore(
                x, y, x_stride, y_stride, x_kept, x_lost, y_most, row_key, row_index, row_second,
                row_found_key, row_found, row_listed, counts, N, D, row_tiles, y_blocks, width,
                ANCHORS, TILES, ROW_BLOCKS, DEPTH,
            )  # fmt: skip
    else:
        if tl.program_id(0) * ANCHORS < M:
            _rescore(
                y, x, y_stride, x_stride, y_kept, y_lost, x_most, column_key, column_index,
                column_second, column_found_key, column_found, column_listed, counts + 1, M, D,
                column_tiles, x_blocks, width, ANCHORS, TILES, COLUMN_BLOCKS, DEPTH,
            )  # fmt: skip


@triton.jit
def undecided_tiles_kernel(
    operands,  # `ScoreOperands`
    x_ids,
    y_ids,
    listed,  # [N] rows of x, of which `count` are there
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
        rows = tl.load(listed + tl.minimum(n, there - 1))
        columns = tl.minimum(m, M - 1)
        scores = score_tile(operands, rows, columns)
        # The smaller factor first: with the other, a score may leave the range and come back.
        of_row = tl.load(operands.x_factor + rows)[:, None]
        of_column = tl.load(operands.y_factor + columns)[None, :]
        scores = scores * tl.minimum(of_row, of_column) * tl.maximum(of_row, of_column)
        off = same_id(rows, columns, x_ids, y_ids, HAS_IDS) | (m >= M)[None, :]
        keys = tl.where(off, no_key(scores.dtype), ordered_key(scores))
        best, winner = maximum_with_index(keys, columns[None, :], 1)
        at = column_tile.to(tl.int64) * N + n
        tl.store(key + at, best, mask=n < there)
        tl.store(index + at, winner, mask=n < there)


@triton.jit
def _undecided_maxima(
    key, index, listed, count, found_key, found, tiles, A, ANCHORS: tl.constexpr
):  # fmt: skip
    there = tl.load(count)
    if tl.program_id(0) * ANCHORS < there:
        p = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS)
        at = tl.minimum(p, there - 1)
        winner = maximum_over_tiles(key, index, tiles, A, at, 16)
        a = tl.load(listed + at)
        tl.store(found + a, winner, mask=p < there)
        tl.store(found_key + a, tl.where(winner < 0, no_key(tl.int32), 0), mask=p < there)


@triton.jit
def undecided_maxima_kernel(
    row_key,
    row_index,
    column_key,
    column_index,
    row_listed,
    column_listed,
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
            row_key, row_index, row_listed, counts, row_found_key, row_found, row_tiles, N, ANCHORS
        )
    else:
        _undecided_maxima(
            column_key, column_index, column_listed, counts + 1, column_found_key, column_found,
            column_tiles, M, ANCHORS,
        )  # fmt: skip
