"""The highest key of every row and column of given scores.

Every thread keeps the highest key of its part of each row, and the adjacent columns that have it,
until the end of its stripe; a tile leaves the highest keys of its columns. Keys are integers in the
order of the scores.
"""

import torch
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._given_scores import (
    LANES,
    GivenScores,
    all_outside,
    ids_at,
    stripes_of,
    tile_columns,
    tile_of,
)
from itm_kernels.triton._launch import jit
from itm_kernels.triton._score_tiles import at_least, no_key, ordered_key

_TILE = (16, 4)  # rows and adjacent columns of a thread
LAST = tl.constexpr(2**31 - 1)  # an index above all others


@jit(do_not_specialize=["N", "M", "R", "splits", "tiles"])
def _maxima_kernel(
    scores,  # [N, M]
    row_stride,
    column_stride,
    N,
    M,
    R,  # rows: of the matrix, or of the image of every pair
    positive,  # [M]
    x_ids,  # [N]
    y_ids,  # [M]
    bound,  # [M] scores of the pairs: semi-hard negatives are below
    row,  # [splits, R] keys
    row_first,  # [splits, R] first of the columns of a thread that has the key
    column,  # [stripes, width] keys
    width,
    splits,
    tiles,
    HAS_IDS: tl.constexpr,
    BOUNDED: tl.constexpr,
    OF_PAIRS: tl.constexpr,
    OF_ROWS: tl.constexpr,
    OF_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    stripe, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    n = stripe * ROWS + tl.arange(0, ROWS)
    anchors = tl.minimum(n, R - 1)
    rows = anchors
    if OF_PAIRS:
        rows = tl.maximum(tl.load(positive + anchors), 0).to(tl.int32)
    row_ids = ids_at(x_ids, rows, HAS_IDS)
    lowest, highest = tl.min(row_ids, 0), tl.max(row_ids, 0)
    whole = stripe * ROWS + ROWS <= R
    DTYPE: tl.constexpr = bound.dtype.element_ty
    none: tl.constexpr = no_key(DTYPE)
    best = tl.full((LANES, ROWS), none, row.dtype.element_ty)
    first = tl.zeros((LANES, ROWS), tl.int32)
    last = tl.minimum(split * tiles + tiles, tl.cdiv(M, LANES * VECTOR))
    for tile in range(split * tiles, last):
        m = tile_columns(tile, LANES, VECTOR)
        columns = tl.minimum(m, M - 1)
        at = tile_of(scores, row_stride, column_stride, rows, m)
        complete = whole & (tile * (LANES * VECTOR) + LANES * VECTOR <= M)
        if complete:
            found = tl.load(at).to(DTYPE)
        else:
            found = tl.load(at, mask=(m < M)[:, None, :], other=0.0).to(DTYPE)
        keys = ordered_key(found)
        if complete == 0:
            keys = tl.where((n < R)[None, :, None], keys, none)
            keys = tl.where((m < M)[:, None, :], keys, none)
        if all_outside(ids_at(y_ids, columns, HAS_IDS), lowest, highest) == 0:
            of_rows = ids_at(x_ids, rows, HAS_IDS)
            off = of_rows[None, :, None] == ids_at(y_ids, columns, HAS_IDS)[:, None, :]
            keys = tl.where(off, none, keys)
        if OF_COLUMNS:
            below = keys
            if BOUNDED:
                out = at_least(keys, tl.load(bound + columns)[:, None, :])
                below = tl.where(out, none, keys)
            tl.store(column + stripe.to(tl.int64) * width + m, tl.max(below, 1))
        if OF_ROWS:
            if BOUNDED:
                out = at_least(keys, tl.load(bound + anchors)[None, :, None])
                keys = tl.where(out, none, keys)
            key = tl.max(keys, 2)
            own = (tile * LANES + tl.arange(0, LANES)) * VECTOR
            first = tl.where(key > best, own[:, None], first)
            best = tl.maximum(best, key)
    if OF_ROWS:
        key = tl.max(best, 0)
        group = tl.min(tl.where(best == key[None, :], first, LAST), 0)
        to = split.to(tl.int64) * R + n
        tl.store(row + to, key, mask=n < R)
        tl.store(row_first + to, group, mask=n < R)


class ScoreMaxima:
    """Keys of stripes and splits, of rows or of columns or of both."""

    def __init__(
        self,
        given: GivenScores,
        pairs: tuple[Tensor | None, ...],
        bound: Tensor,
        *,
        bounded: bool,
        of_pairs: bool,
        of_rows: bool = True,
        of_columns: bool = True,
    ) -> None:
        self.R = given.M if of_pairs else given.N
        cut = self.cut = stripes_of(given._replace(N=self.R), *_TILE)
        wide, device = bound.dtype == torch.float64, bound.device
        dtype = torch.int64 if wide else torch.int32
        of_row = cut.splits, self.R if of_rows else 0
        self.row = torch.empty(of_row, dtype=dtype, device=device)
        self.first = torch.empty(of_row, dtype=torch.int32, device=device)
        of_column = cut.stripes, cut.width(given.M) if of_columns else 0
        self.column = torch.empty(of_column, dtype=dtype, device=device)
        _maxima_kernel[cut.grid](
            *given, self.R, *pairs, bound, self.row, self.first, self.column, of_column[1],
            cut.splits, cut.tiles, HAS_IDS=pairs[0] is not bound, BOUNDED=bounded,
            OF_PAIRS=of_pairs, OF_ROWS=of_rows, OF_COLUMNS=of_columns, ROWS=cut.rows, LANES=LANES,
            VECTOR=cut.vector,
        )  # fmt: skip
