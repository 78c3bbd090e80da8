"""Device functions: log-sum-exp of the rows and columns of a tile, and over all tiles."""

import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._tile_table import architecture

# One base for all exponents of a tile is safe while the maxima of its rows and columns differ by
# less than 60: e^60 does not overflow, e^-60 does not underflow.
SPREAD = tl.constexpr(60.0)


@triton.jit
def _shift(largest):
    # An infinite maximum would give inf - inf. With a shift of 0 infinities pass through.
    return tl.where(tl.abs(largest) == float("inf"), tl.zeros_like(largest), largest)


@triton.jit
def _logarithm(total):
    empty = total == 0
    return tl.where(empty, float("-inf"), tl.log(tl.where(empty, 1.0, total)))


@triton.jit
def finite_or(values, other):
    return tl.where(tl.abs(values) < float("inf"), values, other)


@triton.jit
def tile_log_sums(logits, SHARED: tl.constexpr):
    """Return the maximum of every row and column, and the log-sum-exp relative to it.

    If SHARED, rows and columns share one exponential per logit, relative to the tile's maximum,
    unless the maxima of two rows or columns differ by 60 or more.
    """
    of_row, of_column = tl.max(logits, 1), tl.max(logits, 0)
    row_shift, column_shift = _shift(of_row), _shift(of_column)
    if SHARED:
        row_sum, column_sum = _shared_sums(logits, of_row, of_column, row_shift, column_shift)
    else:
        row_sum = tl.sum(tl.exp(logits - row_shift[:, None]), 1)
        column_sum = tl.sum(tl.exp(logits - column_shift[None, :]), 0)
    return row_shift, _logarithm(row_sum), column_shift, _logarithm(column_sum)


@triton.jit
def _shared_sums(logits, of_row, of_column, row_shift, column_shift):
    top = tl.max(finite_or(of_row, float("-inf")), 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    lowest = tl.minimum(
        tl.min(finite_or(of_row, float("inf")), 0), tl.min(finite_or(of_column, float("inf")), 0)
    )
    if (top - lowest < SPREAD) & (logits.dtype == tl.float32):
        weight = tl.exp(logits - top)
        # Divided by the exponential of the maximum, with the same bits as in the sum. A row without
        # a finite maximum is not rescaled.
        row_sum = tl.sum(weight, 1) / tl.exp(finite_or(of_row, top) - top)
        column_sum = tl.sum(weight, 0) / tl.exp(finite_or(of_column, top) - top)
    else:
        row_sum = tl.sum(tl.exp(logits - row_shift[:, None]), 1)
        column_sum = tl.sum(tl.exp(logits - column_shift[None, :]), 0)
    return row_sum, column_sum


@triton.jit
def log_sum_of_tiles(tile_sums, found, found_highest, tiles, anchors, a, TILES: tl.constexpr):
    """Reduce the maxima and relative log-sum-exps `[2, tiles, anchors]` of all tiles."""
    DTYPE: tl.constexpr = found.dtype.element_ty
    at = tl.minimum(a, anchors - 1)[None, :]
    skip = tl.cast(tiles, tl.int64) * anchors
    largest = tl.full((a.shape[0],), float("-inf"), DTYPE)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)[:, None].to(tl.int64)
        place = tile_sums + tile * anchors + at
        sums = tl.load(place + skip, tile < tiles, float("-inf"))
        # The shift of a tile without logits is meaningless.
        shift = tl.load(place, tile < tiles, 0.0)
        shift = tl.where(sums == float("-inf"), float("-inf"), shift)
        largest = tl.maximum(largest, tl.max(shift, 0))
    shift = _shift(largest)
    total = tl.zeros((a.shape[0],), tl.float64)  # the number of tiles grows with the batch
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)[:, None].to(tl.int64)
        place = tile_sums + tile * anchors + at
        sums = tl.load(place + skip, tile < tiles, float("-inf"))
        sums += tl.load(place, tile < tiles, 0.0) - shift[None, :]
        total += tl.sum(tl.exp(sums), 0).to(tl.float64)
    tl.store(found + a, _logarithm(total.to(DTYPE)), mask=a < anchors)
    tl.store(found_highest + a, shift, mask=a < anchors)


@jit(do_not_specialize=["N", "M", "row_tiles", "column_tiles"])
def _join_tiles_kernel(
    row,  # [2, column tiles, N]
    column,  # [2, row tiles, M]
    of_row,  # [N]
    row_highest,  # [N]
    of_column,  # [M]
    column_highest,  # [M]
    N,
    M,
    row_tiles,
    column_tiles,
    ANCHORS: tl.constexpr,
    TILES: tl.constexpr,
):
    a = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS)
    if tl.program_id(1) == 0:
        log_sum_of_tiles(row, of_row, row_highest, column_tiles, N, a, TILES)
    else:
        log_sum_of_tiles(column, of_column, column_highest, row_tiles, M, a, TILES)


def shares_exponentials() -> bool:
    """Return whether rows and columns share exponentials: sm_100's compiler fails on the branch."""
    return architecture() != 100


def log_sums_of_tiles(
    row: Tensor,  # [2, column tiles, N]
    column: Tensor,  # [2, row tiles, M]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [N], [N], [M], [M]
    """Reduce over tiles; return the log-sum-exp and the maximum of rows, then of columns."""
    N, M = row.shape[2], column.shape[2]
    of_row, row_highest = row.new_empty(N), row.new_empty(N)
    of_column, column_highest = row.new_empty(M), row.new_empty(M)
    _join_tiles_kernel[(cdiv(max(N, M), 64), 2)](
        row, column, of_row, row_highest, of_column, column_highest, N, M,
        column.shape[1], row.shape[1], ANCHORS=64, TILES=16,
    )  # fmt: skip
    return of_row, row_highest, of_column, column_highest
