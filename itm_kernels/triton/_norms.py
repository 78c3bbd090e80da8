"""Device functions that compute norms of rows and divide rows by them."""

import triton
import triton.language as tl

from itm_kernels.triton._score_tiles import wide_type

# Smallest divisor of a row, as in torch.nn.functional.normalize.
SMALLEST = tl.constexpr(1e-12)


@triton.jit
def squared_norms(
    from_row,  # [R] pointers
    column_stride,
    D,
    columns,  # [C] arange
):
    """Return the squared norms `[R]` of some rows."""
    DTYPE: tl.constexpr = wide_type(from_row.dtype)
    squares = tl.zeros((from_row.shape[0], columns.shape[0]), DTYPE)
    for first in range(0, D, columns.shape[0]):
        d = (first + columns)[None, :].to(tl.int64)
        value = tl.load(from_row[:, None] + d * column_stride, mask=d < D, other=0.0).to(DTYPE)
        squares += value * value
    return tl.sum(squares, 1)


@triton.jit
def squared_norms_and_largest(
    from_row,  # [R] pointers
    column_stride,
    D,
    columns,  # [C] arange
):
    """Return the squared norms `[R]` of some rows, and their largest magnitudes `[R]`."""
    DTYPE: tl.constexpr = wide_type(from_row.dtype)
    squares = tl.zeros((from_row.shape[0], columns.shape[0]), DTYPE)
    largest = tl.zeros((from_row.shape[0], columns.shape[0]), DTYPE)
    for first in range(0, D, columns.shape[0]):
        d = (first + columns)[None, :].to(tl.int64)
        value = tl.load(from_row[:, None] + d * column_stride, mask=d < D, other=0.0).to(DTYPE)
        squares += value * value
        largest = tl.maximum(largest, tl.abs(value))
    return tl.sum(squares, 1), tl.max(largest, 1)


@triton.jit
def square_root(x):
    """Return the correctly rounded square root; the default for fp32 is an approximation."""
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)


@triton.jit
def norm_divisor(norm, LEAST: tl.constexpr):
    """Return the divisor of a row: its norm, but at least LEAST. NaN is kept.

    A zero row has no direction: its divisor is infinite, so that its unit row and gradient are 0.
    """
    found = tl.where(norm < LEAST, LEAST, norm)
    return tl.where(norm == 0, float("inf"), found)


@triton.jit
def divided_by_norm(x, norm):
    """Return x `[R, C]` divided by `norm_divisor` of its norms `[R]`, correctly rounded."""
    return quotient(x, norm_divisor(norm, SMALLEST)[:, None])


@triton.jit
def quotient(x, divisor):
    """Return x `[R, C]` / divisor, correctly rounded; `/` of fp32 is an approximation on a GPU."""
    divisor = tl.broadcast_to(divisor, x.shape)
    return x / divisor if x.dtype == tl.float64 else tl.div_rn(x, divisor)


@triton.jit
def reciprocal(x):
    """Return 1 / x, correctly rounded."""
    one = tl.full(x.shape, 1.0, x.dtype)
    return one / x if x.dtype == tl.float64 else tl.div_rn(one, x)


@triton.jit
def power_of_two_scale(value, LOG2: tl.constexpr):
    """Return the power of two that scales an fp32 value >= 0 to between 2^(LOG2 - 1) and 2^LOG2.

    Infinity is scaled like 2^128. For zero and denormal values the power is 2^113.
    """
    exponent = (value.to(tl.int32, bitcast=True) >> 23) & 0xFF
    return (tl.minimum(253 + LOG2 - exponent, 240) << 23).to(tl.float32, bitcast=True)
