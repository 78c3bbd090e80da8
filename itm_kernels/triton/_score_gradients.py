"""Gradients of scores from bits, bounds, ranks or a matrix, in parts for the library's products.

A gradient of a score is called a weight W. The gradient of a sum of similarities is W y, that of
distances (sum_m w) x - W y, with the rounded weights in both terms, so that their rounding errors
cancel as the rows do. If a distance is far below the norms of its rows, fp32 would cancel as well:
the weights of these close pairs are stored apart, for direct differences (`_distance_gradients`).
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._norms import quotient
from itm_kernels.triton._products import precision_of, store_parts

ROWS = 32  # per program: the bits of one word
COLUMNS = 128
# A block of weights takes at most the memory of two inputs in fp32, or this.
_LEAST_BYTES = 1 << 25
_MOST_ROWS = 4096


def blocks(N: int, M: int, D: int, bytes_per_pair: int) -> Iterator[slice]:
    """Yield slices of N rows whose weights fit in that memory, aligned to tiles."""
    budget = max(4 * (N + M) * D, _LEAST_BYTES)
    at_once = min(_MOST_ROWS, max(1, budget // (M * bytes_per_pair) // 128) * 128)
    for first in range(0, N, at_once):
        yield slice(first, min(first + at_once, N))


def gradient_scale(
    grad: Tensor,  # [N]
    norm: Tensor,  # [N]
    row: Tensor | None,  # [N] sums of ranked distances, which also multiply weights
    factor: Tensor,  # of all rows, or [0]
    metric: str,
) -> Tensor:  # []
    """Return the factor of stored weights, which scales the largest, or equal weights, to 2^14.

    They then fit fp16, and weights that are all equal are exact in half precision.
    """
    unit = torch.empty((), dtype=norm.dtype, device=norm.device)
    _gradient_scale_kernel[(1,)](
        grad, norm, norm if row is None else row, factor, unit, grad.stride(0), grad.shape[0],
        factor.shape[0],
        RANKS=row is not None, FACTORS=factor.shape[0] > 0, METRIC=metric, BLOCK=2048, num_warps=8,
    )  # fmt: skip
    return unit


@jit
def _gradient_scale_kernel(
    grad,
    norm,
    row,
    factor,
    unit,
    grad_stride,
    N,
    factors,  # number of factors
    RANKS: tl.constexpr,
    FACTORS: tl.constexpr,
    METRIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    DTYPE: tl.constexpr = norm.dtype.element_ty
    weights = tl.zeros((BLOCK,), DTYPE)
    for first in range(0, N, BLOCK):
        n = first + tl.arange(0, BLOCK)
        own = tl.load(grad + n.to(tl.int64) * grad_stride, mask=n < N, other=0.0).to(DTYPE)
        own = tl.abs(own / tl.load(norm + n, mask=n < N, other=1.0))
        if RANKS:
            own *= 1 + tl.abs(tl.load(row + n, mask=n < N, other=0.0))
        weights = tl.where((own > weights) & (own < float("inf")), own, weights)
    lengths = tl.full((BLOCK,), 0.0 if FACTORS else 1.0, DTYPE)
    if FACTORS:
        for first in range(0, factors, BLOCK):
            n = first + tl.arange(0, BLOCK)
            own = tl.load(factor + n, mask=n < factors, other=0.0)
            lengths = tl.where((own > lengths) & (own < float("inf")), own, lengths)
    largest, longest = tl.max(weights, 0), tl.max(lengths, 0)
    bound = 2 * largest * longest * longest
    if METRIC == "l2":
        # Divided by distances of at least a quarter of the norms, which are 2^13 factors.
        bound = largest * longest / 512 if FACTORS else largest
    tl.store(unit, 16384 / tl.maximum(bound, 1e-34))


@triton.jit
def _unpacked_mask(mask, words, row_word, column_word, rows, columns):
    """Return 1 for pairs `[32, C]` in the band; left of the diagonal, bits are those of row m."""
    bit = tl.arange(0, 32)
    WORDS: tl.constexpr = columns.shape[0] // 32
    inside = tl.zeros((32, columns.shape[0]), tl.int32)
    if column_word + WORDS > row_word:
        word = column_word + tl.arange(0, WORDS)
        there = ((word >= row_word) & (word < words))[None, :]
        found = tl.load(mask + (rows.to(tl.int64) * words)[:, None] + word[None, :], there, 0)
        inside = tl.reshape((found[:, :, None] >> bit[None, None, :]) & 1, inside.shape)
    if column_word < row_word:
        at = mask + columns.to(tl.int64) * words + row_word
        found = tl.load(at, columns // 32 < row_word, 0)
        inside |= (found[None, :] >> bit[:, None]) & 1
    return inside


@triton.jit
def _within(key, low, high):
    # "Not outside": NaN counts as inside, so that it propagates.
    return ((key <= low) | (key >= high)) == 0


@jit
def _score_gradients_kernel(
    given,  # [N, M] gradients of scores
    mask,  # [N, words]
    key,  # [R, M] values compared with the bounds; overwritten by the weights of close pairs
    other,  # [M, R] the same values, computed from the other row of a pair
    ids,  # [N]
    low,  # [N]
    high,
    norm,
    row,
    grad,
    x_factor,  # [N]
    y_factor,  # [M]
    x_square,  # [N]
    y_square,  # [M]
    unit,  # []
    weights,  # [parts, R, M]
    sums,  # [column tiles, R] of rounded weights, divided by y's factor
    has_close,  # [row tiles, column tiles] whether a tile has close pairs
    given_row,
    given_column,
    words,
    grad_stride,
    part,
    stride,
    first,
    R,
    N,
    M,
    SOURCE: tl.constexpr,  # "given", "bits", "bounds", "ranks"
    METRIC: tl.constexpr,
    MODE: tl.constexpr,
    HAS_IDS: tl.constexpr,
    FACTORS: tl.constexpr,
    CLOSE: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column_tile, row_tile = tl.program_id(0), tl.program_id(1)
    n = row_tile * ROWS + tl.arange(0, ROWS)
    m = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    there = (n < R)[:, None] & (m < M)[None, :]
    rows, columns = first + tl.minimum(n, R - 1), tl.minimum(m, M - 1)
    DTYPE: tl.constexpr = unit.dtype.element_ty
    at = key + (n.to(tl.int64) * M)[:, None] + m[None, :]
    compared = tl.zeros((ROWS, COLUMNS), DTYPE)
    if SOURCE == "bounds" or SOURCE == "ranks" or CLOSE:
        compared = tl.load(at, there, 0.0)
    if SOURCE == "given":
        from_row = given + (rows.to(tl.int64) * given_row)[:, None]
        value = tl.load(from_row + (m.to(tl.int64) * given_column)[None, :], there, 0.0).to(DTYPE)
    else:
        SIGN: tl.constexpr = -1.0 if (MODE == "repel") != (METRIC == "cosine") else 1.0
        sign: tl.constexpr = 1.0 if MODE == "official" else SIGN
        row_grad = sign * tl.load(grad + rows.to(tl.int64) * grad_stride).to(DTYPE)
        column_grad = sign * tl.load(grad + columns.to(tl.int64) * grad_stride).to(DTYPE)
        if SOURCE == "bits":
            first_word = (first + row_tile * ROWS) // 32
            bits = _unpacked_mask(
                mask, words, first_word, column_tile * (COLUMNS // 32), rows, columns
            )
            value = tl.where(bits != 0, row_grad[:, None] + column_grad[None, :], 0.0)
        else:
            own = compared
            if METRIC == "cosine" and MODE != "official":
                own = 1 - compared
            of_other = own
            if SOURCE == "ranks":
                row_norm, column_norm = tl.load(norm + rows), tl.load(norm + columns)
                row_grad /= row_norm
                column_grad /= column_norm
                if METRIC != "l1":
                    # A bound equals one of the row's own distances bit for bit. Products of parts
                    # are not bitwise symmetric: a row's distances are computed in its own order.
                    of_other = tl.load(
                        other + (columns.to(tl.int64) * R)[None, :] + n[:, None], there, 0.0
                    )
                # As PyTorch divides: `/` of fp32 is an approximation on a GPU, which moves the
                # distances that are their row's bounds.
                own = quotient(own, row_norm[:, None])
                of_other = quotient(of_other, column_norm[None, :])
            if HAS_IDS:
                pair = tl.load(ids + rows)[:, None] != tl.load(ids + columns)[None, :]
            else:
                pair = rows[:, None] != columns[None, :]
            own_inside = _within(own, tl.load(low + rows)[:, None], tl.load(high + rows)[:, None])
            other_inside = _within(
                of_other, tl.load(low + columns)[None, :], tl.load(high + columns)[None, :]
            )
            value = tl.where(own_inside & pair, row_grad[:, None], 0.0)
            value += tl.where(other_inside & pair, column_grad[None, :], 0.0)
            if SOURCE == "ranks":
                value -= (row_grad * tl.load(row + rows))[:, None] * own
                value -= (column_grad * tl.load(row + columns))[None, :] * of_other
        if METRIC == "cosine" and MODE == "official":
            # An infinite row is outside every band, but its sum is NaN, and so is its gradient.
            nan_or_zero = 0 * tl.load(row + rows)
            value += tl.where(rows[:, None] == columns[None, :], nan_or_zero[:, None], 0.0)
    if METRIC == "sqeuclidean":
        value *= 2
    if METRIC == "l2":
        # At distance 0 the gradient is 0, not 0 / 0.
        value = tl.where(compared == 0, 0.0, value / tl.where(compared == 0, 1.0, compared))
    value = tl.where(there, value, 0.0)
    if CLOSE:
        square = compared * compared if METRIC == "l2" else compared
        lengths = tl.load(x_square + rows)[:, None] + tl.load(y_square + columns)[None, :]
        # Below a quarter of the norms, two bits of a difference are lost.
        close = (square < lengths / 32) & (value != 0)
        if METRIC == "l2" and FACTORS:  # the weight of two tiny rows may not fit fp16
            limit = 32768 / (tl.load(unit) * tl.load(x_factor + rows))
            close |= tl.abs(value) * tl.load(y_factor + columns)[None, :] > limit[:, None]
        found = tl.max(tl.max(close.to(tl.int32), 1), 0)
        tl.store(has_close + row_tile * tl.num_programs(0) + column_tile, found)
        if found > 0:
            tl.store(at, tl.where(close, value, 0.0), there)
        value = tl.where(close, 0.0, value)
    value *= tl.load(unit)
    if FACTORS:
        value *= tl.load(x_factor + rows)[:, None]
        factor = tl.load(y_factor + columns)[None, :]
        value *= factor
    to = weights + (n.to(tl.int64) * stride)[:, None] + m[None, :]
    rest = store_parts(to, tl.cast(part, tl.int64), value, there, PARTS, PRECISION)
    if CLOSE:
        value -= rest
        if FACTORS:
            value /= factor
        tl.store(sums + column_tile.to(tl.int64) * R + n, tl.sum(value, 1), n < R)


def write_score_gradients(weights: Tensor, first: int, like: Tensor, **known: Any) -> None:
    """Write a block of weights `[parts, R, M]`; `known` are arguments of the kernel."""
    parts, R, M = weights.shape
    placeholders = dict.fromkeys(
        ("given", "mask", "key", "other", "ids", "low", "high", "norm", "row", "grad"), like
    )
    more = dict.fromkeys(
        ("x_factor", "y_factor", "x_square", "y_square", "sums", "has_close"), like
    )
    sizes = dict.fromkeys(("given_row", "given_column", "words", "grad_stride"), 0)
    options = {"MODE": "", "HAS_IDS": False, "FACTORS": False, "CLOSE": False, "N": M}
    _score_gradients_kernel[(cdiv(M, COLUMNS), cdiv(R, ROWS))](
        **{**placeholders, **more, **sizes, **options, **known},
        weights=weights, part=weights.stride(0), stride=weights.stride(1), first=first, R=R, M=M,
        PARTS=parts, ROWS=ROWS, COLUMNS=COLUMNS,
        # The weights of l1 are not multiplied by the library.
        PRECISION="ieee" if known["METRIC"] == "l1" else precision_of(weights),
        num_warps=8 if known["SOURCE"] == "ranks" else 4,  # 114 spills in 4
    )  # fmt: skip
