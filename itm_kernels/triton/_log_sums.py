"""Pieces of kernels: sums of exponentials of a tile's rows and columns."""

import triton
import triton.language as tl

# Exponents relative to one base are safe while e^60 lies between the bases of rows and columns.
SPREAD = tl.constexpr(60.0)


@triton.jit
def _shift(largest):
    # An infinite maximum would leave inf - inf; without it infinities come out as they are.
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
    """Return the highest logit of rows and of columns, and their log-sum-exp relative to it.

    If SHARED, rows and columns share one exponential per logit, relative to the tile's highest,
    unless e^60 lies between the highest of two of them.
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
        share = tl.exp(logits - top)
        # Over the share of the highest, as it is to the last bit; a sum without one stays.
        row_sum = tl.sum(share, 1) / tl.exp(finite_or(of_row, top) - top)
        column_sum = tl.sum(share, 0) / tl.exp(finite_or(of_column, top) - top)
    else:
        row_sum = tl.sum(tl.exp(logits - row_shift[:, None]), 1)
        column_sum = tl.sum(tl.exp(logits - column_shift[None, :]), 0)
    return row_sum, column_sum


@triton.jit
def log_sum_of_tiles(tile_sums, found, found_highest, tiles, anchors, a, TILES: tl.constexpr):
    DTYPE: tl.constexpr = found.dtype.element_ty
    at = tl.minimum(a, anchors - 1)[None, :]
    skip = tl.cast(tiles, tl.int64) * anchors
    largest = tl.full((a.shape[0],), float("-inf"), DTYPE)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)[:, None].to(tl.int64)
        place = tile_sums + tile * anchors + at
        sums = tl.load(place + skip, tile < tiles, float("-inf"))
        # A tile without a logit has a shift that says nothing.
        shift = tl.load(place, tile < tiles, 0.0)
        shift = tl.where(sums == float("-inf"), float("-inf"), shift)
        largest = tl.maximum(largest, tl.max(shift, 0))
    shift = _shift(largest)
    total = tl.zeros((a.shape[0],), tl.float64)  # tiles grow in number with the batch
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)[:, None].to(tl.int64)
        place = tile_sums + tile * anchors + at
        sums = tl.load(place + skip, tile < tiles, float("-inf"))
        sums += tl.load(place, tile < tiles, 0.0) - shift[None, :]
        total += tl.sum(tl.exp(sums), 0).to(tl.float64)
    tl.store(found + a, _logarithm(total.to(DTYPE)), mask=a < anchors)
    tl.store(found_highest + a, shift, mask=a < anchors)
