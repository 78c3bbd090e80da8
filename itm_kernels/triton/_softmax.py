"""Pieces of kernels: sums of exponentials of a tile's rows and columns, and weights of softmax."""

import triton
import triton.language as tl

# Exponents relative to one base are safe while e^60 lies between the bases of rows and columns.
_SPREAD = tl.constexpr(60.0)


@triton.jit
def _shift(largest):
    # An infinite maximum would leave inf - inf; without it infinities come out as they are.
    return tl.where(tl.abs(largest) == float("inf"), tl.zeros_like(largest), largest)


@triton.jit
def _logarithm(total):
    empty = total == 0
    return tl.where(empty, float("-inf"), tl.log(tl.where(empty, 1.0, total)))


@triton.jit
def _finite_or(values, other):
    return tl.where(tl.abs(values) < float("inf"), values, other)


@triton.jit
def log_sums(logits, SHARED: tl.constexpr):
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
    top = tl.max(_finite_or(of_row, float("-inf")), 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    lowest = tl.minimum(
        tl.min(_finite_or(of_row, float("inf")), 0), tl.min(_finite_or(of_column, float("inf")), 0)
    )
    if (top - lowest < _SPREAD) & (logits.dtype == tl.float32):
        share = tl.exp(logits - top)
        # Over the share of the highest, as it is to the last bit; a sum without one stays.
        row_sum = tl.sum(share, 1) / tl.exp(_finite_or(of_row, top) - top)
        column_sum = tl.sum(share, 0) / tl.exp(_finite_or(of_column, top) - top)
    else:
        row_sum = tl.sum(tl.exp(logits - row_shift[:, None]), 1)
        column_sum = tl.sum(tl.exp(logits - column_shift[None, :]), 0)
    return row_sum, column_sum


@triton.jit
def of_tiles(tile_sums, found, found_highest, tiles, anchors, a, TILES: tl.constexpr):
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


@triton.jit
def shares(
    logits, of_row, of_column, row, column, row_highest, column_highest, on, SHARED: tl.constexpr
):  # fmt: skip
    """Return of_row e^(logits - log-sum-exp of the row) + the same of columns, 0 where not on.

    If SHARED, both share one exponential unless the log-sum-exps of a tile lie far apart.
    """
    if SHARED:
        weight = _shared_weight(
            logits, of_row, of_column, row, column, row_highest, column_highest, on
        )
    else:
        weight = _own_weight(
            logits, of_row, of_column, row, column, row_highest, column_highest, on
        )
    return tl.where(on, weight, 0.0)


@triton.jit
def _own_weight(logits, of_row, of_column, row, column, row_highest, column_highest, on):
    by_row = (logits - row_highest[:, None]) - row[:, None]
    weight = of_row[:, None] * tl.exp(tl.where(on, by_row, float("-inf")))
    by_column = (logits - column_highest[None, :]) - column[None, :]
    return weight + of_column[None, :] * tl.exp(tl.where(on, by_column, float("-inf")))


@triton.jit
def _shared_weight(logits, of_row, of_column, row, column, row_highest, column_highest, on):
    # Differences first: that of two near logits is exact.
    total = row_highest + row
    base = tl.max(_finite_or(total, float("-inf")), 0)
    base = tl.where(base == float("-inf"), 0.0, base)
    # A sum of nothing has no pair that is on.
    to_row = tl.where(total == float("-inf"), 0.0, (base - row_highest) - row)
    to_column = tl.where(
        column_highest + column == float("-inf"), 0.0, (base - column_highest) - column
    )
    most = tl.maximum(tl.max(_finite_or(to_row, 0.0), 0), tl.max(_finite_or(to_column, 0.0), 0))
    if (most < _SPREAD) & (logits.dtype == tl.float32):
        weight = tl.exp(logits - base)
        weight *= (of_row * tl.exp(to_row))[:, None] + (of_column * tl.exp(to_column))[None, :]
    else:
        weight = _own_weight(
            logits, of_row, of_column, row, column, row_highest, column_highest, on
        )
    return weight
