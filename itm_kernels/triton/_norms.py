"""Pieces of kernels that divide rows by their lengths."""

import triton
import triton.language as tl

from itm_kernels.triton._score_tiles import wide_type

# As torch.nn.functional.normalize has it: length of a row that a shorter one is divided by.
SMALLEST = tl.constexpr(1e-12)


@triton.jit
def squared_norms(
    from_row,  # [R] pointers
    column_stride,
    D,
    columns,  # [C] arange
):
    """Return the squared lengths `[R]` of some rows."""
    DTYPE: tl.constexpr = wide_type(from_row.dtype)
    squares = tl.zeros((from_row.shape[0], columns.shape[0]), DTYPE)
    for first in range(0, D, columns.shape[0]):
        d = (first + columns)[None, :].to(tl.int64)
        value = tl.load(from_row[:, None] + d * column_stride, mask=d < D, other=0.0).to(DTYPE)
        squares += value * value
    return tl.sum(squares, 1)


@triton.jit
def square_root(x):
    """Return the square root to the last bit: what is fastest for fp32 is off by more."""
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)


@triton.jit
def norm_divisor(length, LEAST: tl.constexpr):
    """Return what a row is divided by: its length, or LEAST where that is more. NaN stays.

    A row of length 0 has no direction: over infinity its unit row and its gradient are 0.
    """
    found = tl.where(length < LEAST, LEAST, length)
    return tl.where(length == 0, float("inf"), found)


@triton.jit
def divided_by_norm(x, length):
    """Return x `[R, C]` / length `[R]`, or / 1e-12 where that is more."""
    below = tl.broadcast_to(norm_divisor(length, SMALLEST)[:, None], x.shape)
    return x / below if x.dtype == tl.float64 else tl.div_rn(x, below)


@triton.jit
def reciprocal(x):
    """Return 1 / x to the last bit."""
    one = tl.full(x.shape, 1.0, x.dtype)
    return one / x if x.dtype == tl.float64 else tl.div_rn(one, x)


@triton.jit
def power_of_two_scale(value, LOG2: tl.constexpr):
    """Return the power of two that makes an fp32 number >= 0 one of 2^(LOG2 - 1) to 2^LOG2.

    For infinity it is the one for 2^128, for 0 and denormal numbers 2^113.
    """
    exponent = (value.to(tl.int32, bitcast=True) >> 23) & 0xFF
    return (tl.minimum(253 + LOG2 - exponent, 240) << 23).to(tl.float32, bitcast=True)
