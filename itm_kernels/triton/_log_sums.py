"""Device functions: log-sum-exp of the rows and columns of a tile, and over all tiles."""

import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._score_tiles import PIECE, halves, joined
from itm_kernels.triton._tile_table import architecture

# One base for all exponents of a tile is safe while the maxima of its rows and columns differ by
# less than 60: e^60 does not overflow, e^-60 does not underflow.
SPREAD = tl.constexpr(60.0)
_LOG2_E = tl.constexpr(1.4426950408889634)


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
def exp(x):
    """Return e^x; fp32 results below 2^-126 are 0, which saves four of six instructions."""
    return tl.exp(x) if x.dtype == tl.float64 else tl.exp2(x * _LOG2_E)


@triton.jit
def scaled_logits(scores, first, of_logit, y_factor, FACTORS: tl.constexpr):
    """Return the logits of a tile from scores `[R, C]` of columns from `first` on.

    Args:
        scores: without factors.
        first: column.
        of_logit: factors of rows `[R]`, the scale included.
        y_factor: pointer to the factors of columns.
        FACTORS: whether there are factors of columns.
    """
    WIDTH: tl.constexpr = scores.shape[1]
    if not FACTORS:
        return scores * of_logit[:, None]
    elif WIDTH > PIECE:
        left, right = halves(scores)
        left = scaled_logits(left, first, of_logit, y_factor, FACTORS)
        tl.debug_barrier()  # the compiler would load the factors of all columns at once
        right = scaled_logits(right, first + WIDTH // 2, of_logit, y_factor, FACTORS)
        return joined(left, right)
    else:
        scores *= tl.load(y_factor + first + tl.arange(0, WIDTH))[None, :]
        return scores * of_logit[:, None]


@triton.jit
def _lift(highest, both):
    """Return the factor of a sum relative to a maximum that makes it relative to a larger one."""
    # A sum without logits is 0, and infinite sums are relative to 0.
    return exp(tl.where(highest == float("-inf"), 0.0, _shift(highest) - _shift(both)))


@triton.jit
def store_masked_log_sums(
    scores,  # [R, WIDTH] of columns from `first` on, without factors
    first,
    first_row,
    N,
    M,
    of_logit,  # [R]
    inputs,  # pointers: factor of columns, id of rows and of columns, positive
    outputs,  # pointers: maxima and log-sum-exps of the columns, logits of positives
    FACTORS: tl.constexpr,
    HAS_IDS: tl.constexpr,
    OF_POSITIVE: tl.constexpr,
):
    """Store the log-sum-exps of the columns of a tile with masks, and the logits of its positives.

    Return the maximum of every row, and the sum relative to it. A few columns at a time: masks and
    the logits of all columns do not fit the registers.
    """
    WIDTH: tl.constexpr = scores.shape[1]
    if WIDTH > PIECE // 2:
        left, right = halves(scores)
        highest, total = store_masked_log_sums(
            left, first, first_row, N, M, of_logit, inputs, outputs, FACTORS, HAS_IDS, OF_POSITIVE
        )
        of_right, right_sum = store_masked_log_sums(
            right, first + WIDTH // 2, first_row, N, M, of_logit, inputs, outputs,
            FACTORS, HAS_IDS, OF_POSITIVE,
        )  # fmt: skip
        both = tl.maximum(highest, of_right)
        return both, total * _lift(highest, both) + right_sum * _lift(of_right, both)
    else:
        n, m = first_row + tl.arange(0, scores.shape[0]), first + tl.arange(0, WIDTH)
        rows, columns = tl.minimum(n, N - 1), tl.minimum(m, M - 1)
        y_factor, x_ids, y_ids, positive = inputs
        column, column_sum, of_positive = outputs
        if FACTORS:
            scores *= tl.load(y_factor + columns)[None, :]
        logits = scores * of_logit[:, None]
        if OF_POSITIVE:
            of = tl.load(positive + columns)
            here = (of >= first_row) & (of < tl.minimum(first_row + scores.shape[0], N)) & (m < M)
            own = n[:, None] == of[None, :].to(tl.int32)
            tl.store(of_positive + m, tl.sum(tl.where(own, logits, 0.0), 0), mask=here)
        logits = tl.where((n < N)[:, None], logits, float("-inf"))
        logits = tl.where((m < M)[None, :], logits, float("-inf"))
        if HAS_IDS:
            same = tl.load(x_ids + rows)[:, None] == tl.load(y_ids + columns)[None, :]
            logits = tl.where(same, float("-inf"), logits)
        shift = _shift(tl.max(logits, 0))
        total = tl.sum(exp(logits - shift[None, :]), 0)
        tl.store(column + m, shift, mask=m < M)
        tl.store(column_sum + m, _logarithm(total), mask=m < M)
        highest = tl.max(logits, 1)
        return highest, tl.sum(exp(logits - _shift(highest)[:, None]), 1)


@triton.jit
def store_column_log_sums(logits, column, sums, SHARED: tl.constexpr):
    """Store the log-sum-exps of the columns of a complete tile, as `store_masked_log_sums`.

    If SHARED, rows and columns share one exponential per logit, relative to the tile's maximum,
    unless the maxima of two rows or columns differ by 60 or more.

    All threads of a tile hold the result of a reduction over its rows. Results of columns are
    therefore stored and loaded again, one per thread, before anything is computed from them.
    """
    m = tl.arange(0, logits.shape[1])
    _store_over_rows(logits, column, True)
    tl.debug_barrier()
    of_row = tl.max(logits, 1)
    of_column = tl.load(column + m)
    divisor = tl.full((logits.shape[1],), 1.0, logits.dtype)
    if SHARED and logits.dtype == tl.float32:
        top = tl.max(finite_or(of_row, float("-inf")), 0)
        top = tl.where(top == float("-inf"), 0.0, top)
        lowest = tl.minimum(
            tl.min(finite_or(of_row, float("inf")), 0),
            tl.min(finite_or(of_column, float("inf")), 0),
        )
        if top - lowest < SPREAD:
            weight = exp(logits - top)
            # Divided by the exponential of the maximum, with the same bits as in the sum. A row
            # without a finite maximum is not rescaled.
            total = tl.sum(weight, 1) / exp(finite_or(of_row, top) - top)
            divisor = exp(finite_or(of_column, top) - top)
            _store_over_rows(weight, sums, False)
        else:
            total = tl.sum(exp(logits - _shift(of_row)[:, None]), 1)
            _store_column_sums(logits, column, sums)
    else:
        total = tl.sum(exp(logits - _shift(of_row)[:, None]), 1)
        _store_column_sums(logits, column, sums)
    tl.debug_barrier()
    column_sum = tl.load(sums + m) / divisor
    tl.debug_barrier()
    tl.store(column + m, _shift(of_column))
    tl.store(sums + m, _logarithm(column_sum))
    return of_row, total


@triton.jit
def store_row_log_sums(highest, total, row, sums, inside):
    """Store the log-sum-exps of the rows of a tile from their maxima and the relative sums."""
    tl.store(row, _shift(highest), mask=inside)
    tl.store(sums, _logarithm(total), mask=inside)


@triton.jit
def _store_over_rows(values, at, MAXIMA: tl.constexpr):
    """Store the maxima or the sums of columns, 64 columns at a time."""
    WIDTH: tl.constexpr = values.shape[1]
    if WIDTH > 2 * PIECE:
        left, right = halves(values)
        _store_over_rows(left, at, MAXIMA)
        tl.debug_barrier()
        _store_over_rows(right, at + WIDTH // 2, MAXIMA)
    else:
        tl.store(at + tl.arange(0, WIDTH), tl.max(values, 0) if MAXIMA else tl.sum(values, 0))


@triton.jit
def _store_column_sums(logits, column, sums):
    """Store the sums of columns relative to the maxima of the columns, 32 columns at a time."""
    WIDTH: tl.constexpr = logits.shape[1]
    if WIDTH > PIECE:
        left, right = halves(logits)
        _store_column_sums(left, column, sums)
        _store_column_sums(right, column + WIDTH // 2, sums + WIDTH // 2)
    else:
        m = tl.arange(0, WIDTH)
        shift = _shift(tl.load(column + m))
        tl.store(sums + m, tl.sum(exp(logits - shift[None, :]), 0))


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
        total += tl.sum(exp(sums), 0).to(tl.float64)
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
