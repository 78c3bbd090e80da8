"""Hardest negatives of fp32 rows: candidates from one fp16 product, then scores in fp32.

With x = h + l, where h are the fp16 rows (`_scaled_operands`), a score differs from h . h' by at
most
    |l| (|h'| + |l'|) + |h| |l'|     for the rounding of rows,
    + 1.5 D 2^-22 |h| |h'|           for sums in fp32, of the tensor cores and of the rescoring.
A tile stores an anchor's best candidate and the key of its second best. If a tile's best could
still be the maximum, its score is computed again in fp32 (`_rescoring`). If the maximum could be a
second best, or if scores are not finite, the anchor is undecided. Undecided anchors are listed, and
their scores are products of two parts, as accurate as fp32: programs beyond the end of the list
return at once. The host never waits, and rows that have all become equal cost three products a
side.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton import _scaled_operands
from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._operands import INTERPRETED, Operands, contiguous_rows
from itm_kernels.triton._positives import id_arguments
from itm_kernels.triton._rescoring import (
    rescore_kernel,
    undecided_maxima_kernel,
    undecided_tiles_kernel,
)
from itm_kernels.triton._score_tiles import (
    no_key,
    ordered_key,
    program_tile,
    same_id,
    scale_scores,
    score_tile,
)
from itm_kernels.triton._tile_maxima import store_tile_maximum
from itm_kernels.triton._tile_table import architecture

# From this number of rows on, the saved products outweigh seven launches.
LEAST_ROWS = 2048
_ROWS = 16  # per block, whose largest norms are stored
_ANCHORS = 64 if INTERPRETED else 8


@jit
def _norms_kernel(
    parts,  # [2, N, WIDTH] fp16
    factor,  # [N]
    high_norm,  # [N] |h|
    low_norm,  # [N] |l|
    largest_norm,  # [2, blocks of rows] the largest of both
    count,  # [] of undecided anchors
    N,
    width,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Compute upper bounds of norms, rounding included."""
    block = tl.program_id(0)
    n = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(n, N - 1)
    high = tl.zeros((ROWS, DEPTH), tl.float32)
    low = tl.zeros((ROWS, DEPTH), tl.float32)
    for first in range(0, width, DEPTH):
        d = (first + tl.arange(0, DEPTH))[None, :]
        at = parts + rows[:, None] * width + d
        value = tl.load(at, mask=d < width, other=0.0).to(tl.float32)
        high += value * value
        at += tl.cast(N, tl.int64) * width
        value = tl.load(at, mask=d < width, other=0.0).to(tl.float32)
        low += value * value
    one = tl.load(factor + rows)
    terms = tl.cast(width, tl.float32)
    above = (1 + (terms + 16) * 1.2e-7) * one
    length = tl.sqrt(tl.sum(high, 1)) * above
    # The third part: at most 2^-22 of the row, or half the smallest fp16 value per element.
    rest = tl.sqrt(tl.sum(low, 1)) * above + length * 4.8e-7 + tl.sqrt(terms) * 3e-8 * one
    tl.store(high_norm + n, length, mask=n < N)
    tl.store(low_norm + n, rest, mask=n < N)
    # A maximum may drop NaN but not infinity: such a row leaves all anchors undecided.
    length = tl.where(length < float("inf"), length, float("inf"))
    rest = tl.where(rest < float("inf"), rest, float("inf"))
    tl.store(largest_norm + block, tl.max(length, 0))
    tl.store(largest_norm + tl.num_programs(0) + block, tl.max(rest, 0))
    if block == 0:
        tl.store(count, 0)


@triton.jit
def _store_two_maxima(keys, candidates, key, index, second, tile, anchors, a, AXIS: tl.constexpr):
    """Store the best candidate of a tile along an axis, and the key of the second best."""
    best = store_tile_maximum(keys, candidates, key, index, tile, anchors, a, AXIS)
    rest = tl.where(candidates == tl.expand_dims(best, AXIS), no_key(keys.dtype), keys)
    tl.store(second + tile.to(tl.int64) * anchors + a, tl.max(rest, AXIS), mask=a < anchors)


@jit
def _screen_kernel(
    operands,  # `ScoreOperands`
    x_ids,
    y_ids,
    row_key,
    row_index,
    row_second,
    column_key,
    column_index,
    column_second,
    N,
    M,
    HAS_IDS: tl.constexpr,
):
    ROWS: tl.constexpr = operands.ROWS
    COLUMNS: tl.constexpr = operands.COLUMNS
    n, m, row_tile, column_tile = program_tile(tl.program_id(0), ROWS, COLUMNS, N, M)
    rows, columns = tl.minimum(n, N - 1), tl.minimum(m, M - 1)
    scores = score_tile(operands, rows, columns)
    scores = scale_scores(operands, scores, rows, columns)
    off = same_id(rows, columns, x_ids, y_ids, HAS_IDS)
    off |= (n >= N)[:, None] | (m >= M)[None, :]
    keys = tl.where(off, no_key(scores.dtype), ordered_key(scores))
    _store_two_maxima(keys, columns[None, :], row_key, row_index, row_second, column_tile, N, n, 1)
    _store_two_maxima(
        keys, rows[:, None], column_key, column_index, column_second, row_tile, M, m, 0
    )


class _Anchors:
    """The rows of one side as anchors: bounds of their norms, tile maxima, and the result."""

    def __init__(self, rows: Tensor, factor: Tensor, tiles: int, count: Tensor) -> None:
        N, width = rows.shape[1:]
        blocks = cdiv(N, _ROWS)
        self.high_norm, self.low_norm = factor.new_empty((2, N))
        self.largest_norm = factor.new_empty((2, blocks))
        _norms_kernel[(blocks,)](
            rows, factor, self.high_norm, self.low_norm, self.largest_norm, count, N, width,
            ROWS=_ROWS, DEPTH=128,
        )  # fmt: skip
        self.key, self.index, self.second = count.new_empty((3, tiles, N))
        self.found_key, self.found = count.new_empty((2, 1, N))
        self.undecided, self.count = count.new_empty(N), count

    def arguments(self, prefix: str, *names: str) -> dict[str, Any]:
        """Return some of the tensors as a kernel's arguments."""
        return {f"{prefix}_{name}": getattr(self, name) for name in names}


def should_screen(x: Tensor, y: Tensor, kind: str) -> bool:
    """Return whether screening pays off for these rows; it has not been tried on AMD."""
    on_amd = isinstance(architecture(), str)
    return kind == "parts" and not on_amd and min(x.shape[0], y.shape[0]) >= LEAST_ROWS


def screened_hardest(
    x: Tensor,  # [N, D]
    y: Tensor,  # [M, D]
    x_ids: Tensor | None,
    y_ids: Tensor | None,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:  # key and index [1, N], [1, M]
    """Find the hardest row of y for every row of x, and vice versa, to fp32 accuracy."""
    # Two maxima and an index for both axes: 259 spills in tiles of 128 x 256 on sm_90.
    both = _scaled_operands.scaled_operands(x, y, cosine=False, weighted=False)
    (N, M), tile, D = both.shape, both.tile, x.shape[1]
    assert both.x_factor is not None
    assert both.y_factor is not None
    counts = torch.empty(2, dtype=torch.int32, device=x.device)
    row = _Anchors(both.x, both.x_factor, cdiv(M, tile.columns), counts[0])
    # Undecided columns are rows of a tile: the larger number of tiles of the two.
    most = max(cdiv(N, tile.rows), cdiv(N, tile.columns))
    column = _Anchors(both.y, both.y_factor, most, counts[1])
    maxima = ("key", "index", "second")
    half = both._replace(x=both.x[:1], y=both.y[:1])
    _screen_kernel[tile.programs(N, M)](
        **half.arguments(), **id_arguments(both, x_ids, y_ids), N=N, M=M,
        **row.arguments("row", *maxima), **column.arguments("column", *maxima),
    )  # fmt: skip
    x, y = contiguous_rows(x), contiguous_rows(y)
    result = {
        **{"row_found_key": row.found_key, "row_found": row.found},
        **{"column_found_key": column.found_key, "column_found": column.found},
        **{"row_undecided": row.undecided, "column_undecided": column.undecided},
        **{"counts": counts, "N": N, "M": M},
    }
    norms = ("high_norm", "low_norm", "largest_norm")
    rescore_kernel[(cdiv(max(N, M), _ANCHORS), 2)](
        x=x, y=y, x_stride=x.stride(0), y_stride=y.stride(0),
        **row.arguments("x", *norms), **column.arguments("y", *norms),
        **row.arguments("row", *maxima), **column.arguments("column", *maxima), **result, D=D,
        row_tiles=cdiv(M, tile.columns), column_tiles=cdiv(N, tile.rows),
        x_blocks=row.largest_norm.shape[1], y_blocks=column.largest_norm.shape[1],
        width=both.x.shape[2], ANCHORS=_ANCHORS, TILES=32, ROW_BLOCKS=tile.columns // _ROWS,
        COLUMN_BLOCKS=tile.rows // _ROWS, DEPTH=128, num_warps=8,
    )  # fmt: skip
    turned = Operands(both.y, both.x, both.kind, both.precision, tile, both.y_factor, both.x_factor)
    for side, operands, ids in ((row, both, (x_ids, y_ids)), (column, turned, (y_ids, x_ids))):
        A, B = operands.shape
        undecided_tiles_kernel[tile.programs(A, B)](
            **operands.arguments(), **id_arguments(operands, *ids), N=A, M=B,
            undecided=side.undecided, count=side.count, key=side.key, index=side.index,
        )  # fmt: skip
    undecided_maxima_kernel[(cdiv(max(N, M), 16), 2)](
        **row.arguments("row", "key", "index"), **column.arguments("column", "key", "index"),
        **result, row_tiles=cdiv(M, tile.columns), column_tiles=cdiv(N, tile.columns),
        ANCHORS=16,
    )  # fmt: skip
    return (row.found_key, row.found), (column.found_key, column.found)
