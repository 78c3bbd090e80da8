"""The hardest negative of every row and column from one pass over the scores.

A tile leaves the (key, index) of its best negative per row and per column; a key is an integer
that orders as the score does. Who reduces the tiles multiplies the winners again, in the precision
of the input: tensor cores choose, they do not score.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton import _launch
from itm_kernels.triton._launch import operands
from itm_kernels.triton._tiles import (
    highest,
    no_key,
    ordered_key,
    place,
    same_id,
    score_tile,
)


class Best(NamedTuple):
    """For every tile and anchor, the best of the tile's candidates."""

    key: Tensor  # [tiles, anchors] int32, int64 for fp64
    winner: Tensor  # [tiles, anchors] int32

    def arguments(self, prefix: str) -> dict[str, Any]:
        """Return what a kernel needs to reduce the tiles."""
        tiles = self.key.shape[0]
        return {f"{prefix}_key": self.key, f"{prefix}_index": self.winner, f"{prefix}_tiles": tiles}


@triton.jit
def _hardest_kernel(
    x,
    y,
    pairs,  # [N] row of x that stands in row n; with GATHER
    x_ids,
    y_ids,
    row_bound,  # [N] scores that semi-hard negatives stay below
    column_bound,  # [M]
    row_key,
    row_index,
    column_key,
    column_index,
    x_stride,
    y_stride,
    x_part,
    y_part,
    N,
    M,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    HAS_IDS: tl.constexpr,
    GATHER: tl.constexpr,
    BOUNDED: tl.constexpr,
    OF_ROWS: tl.constexpr,
    OF_COLUMNS: tl.constexpr,
):
    n, m, row_tile, column_tile = place(ROWS, COLUMNS, N, M)
    rows, columns = tl.minimum(n, N - 1), tl.minimum(m, M - 1)
    stands = rows
    if GATHER:
        stands = tl.maximum(tl.load(pairs + rows), 0)
    scores = score_tile(
        x, y, x_stride, y_stride, x_part, y_part, D, stands, columns,
        DEPTH, PARTS, PRECISION, ALIGN, EVEN,
    )  # fmt: skip
    off = same_id(stands, columns, x_ids, y_ids, HAS_IDS)
    off |= (n >= N)[:, None] | (m >= M)[None, :]
    none: tl.constexpr = no_key(scores.dtype)
    keys = tl.where(off, none, ordered_key(scores))
    if OF_ROWS:
        of_row = keys
        if BOUNDED:  # NaN is below no bound and above none: it stays
            of_row = tl.where(scores >= tl.load(row_bound + rows)[:, None], none, keys)
        key, index = highest(of_row, columns[None, :], 1)
        at = column_tile.to(tl.int64) * N + n
        tl.store(row_key + at, key, mask=n < N)
        tl.store(row_index + at, index, mask=n < N)
    if OF_COLUMNS:
        of_column = keys
        if BOUNDED:
            of_column = tl.where(scores >= tl.load(column_bound + columns)[None, :], none, keys)
        key, index = highest(of_column, rows[:, None], 0)
        at = row_tile.to(tl.int64) * M + m
        tl.store(column_key + at, key, mask=m < M)
        tl.store(column_index + at, index, mask=m < M)


@triton.jit
def best_of_tiles(key, index, tiles, anchors, at, TILES: tl.constexpr):
    """Return the index of the best candidate of some anchors, -1 for none.

    Tiles are reduced in chunks and in order: a later one must be better to win.
    """
    none: tl.constexpr = no_key(key.dtype.element_ty)
    best = tl.full((at.shape[0],), none, key.dtype.element_ty)
    found = tl.full((at.shape[0],), -1, tl.int32)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)
        place_of = tile[:, None].to(tl.int64) * anchors + at[None, :]
        inside = (tile < tiles)[:, None]
        keys = tl.load(key + place_of, mask=inside, other=none)
        indices = tl.load(index + place_of, mask=inside, other=0)
        chunk, candidate = highest(keys, indices, 0)
        found = tl.where(chunk > best, candidate, found)
        best = tl.maximum(chunk, best)
    return found


@triton.jit
def _bound_kernel(
    x,
    y,
    pairs,
    bound,  # [M]
    x_stride,
    y_stride,
    x_part,
    y_part,
    M,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    GATHER: tl.constexpr,
):
    m = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    columns = tl.minimum(m, M - 1)
    stands = columns
    if GATHER:
        stands = tl.maximum(tl.load(pairs + columns), 0)
    scores = score_tile(
        x, y, x_stride, y_stride, x_part, y_part, D, stands, columns,
        DEPTH, PARTS, PRECISION, ALIGN, EVEN,
    )  # fmt: skip
    own = tl.arange(0, COLUMNS)
    own_scores = tl.sum(tl.where(own[:, None] == own[None, :], scores, 0.0), 0)
    tl.store(bound + m, own_scores, mask=m < M)


def hardest(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    positive: Tensor | None,  # [M]
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    semihard: bool,
) -> tuple[Best, Best]:
    """Find the hardest text of every image and image of every text, per tile.

    Semi-hard negatives stay below the score of a pair, so that rows are then pairs: `[tiles, M]`.
    """
    # A bound is a cliff: what falls off it is decided as fp32 would.
    both = operands(image, text, parts=3 if semihard else 2)
    N, M = image.shape[0], text.shape[0]
    options = {**both.arguments(), "HAS_IDS": image_ids is not None, "BOUNDED": semihard}
    ids = image_ids if image_ids is not None else image, text_ids if text_ids is not None else text
    bound = pairs = image  # stand-ins that no kernel reads
    if semihard:
        bound = torch.empty(M, dtype=_launch.wide_dtype(image), device=image.device)
        pairs = positive if positive is not None else image
        gather = positive is not None
        own = {**both.arguments(), "GATHER": gather, "ROWS": both.tile.columns, "M": M}
        # A score of the same kernel: a text equal to the positive ties with it to the last bit.
        _bound_kernel[(triton.cdiv(M, both.tile.columns),)](pairs=pairs, bound=bound, **own)

    def run(rows: int, gather: bool, of_rows: bool, of_columns: bool) -> tuple[Best, Best]:
        row = _empty(both, M if of_rows else 0, rows, both.tile.columns)
        column = _empty(both, rows if of_columns else 0, M, both.tile.rows)
        _hardest_kernel[both.tile.programs(rows, M)](
            pairs=pairs, x_ids=ids[0], y_ids=ids[1], row_bound=bound, column_bound=bound,
            row_key=row.key, row_index=row.winner, column_key=column.key,
            column_index=column.winner, N=rows, M=M, **options,
            GATHER=gather, OF_ROWS=of_rows, OF_COLUMNS=of_columns,
        )  # fmt: skip
        return row, column

    if semihard and positive is not None:
        return run(M, True, True, False)[0], run(N, False, False, True)[1]
    return run(N, False, True, True)


def _empty(both: Any, candidates: int, anchors: int, at_once: int) -> Best:
    shape = triton.cdiv(candidates, at_once), anchors
    keys = torch.int64 if both.kind == "fp64" else torch.int32
    return Best(
        torch.empty(shape, dtype=keys, device=both.x.device),
        torch.empty(shape, dtype=torch.int32, device=both.x.device),
    )
