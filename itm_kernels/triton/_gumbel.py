"""Counter-based Gumbel noise: every backend draws the same noise for a pair of rows.

csrc/cpu/simd/philox.h defines the layout: the counter of Philox4x32-10 is (column / 2, row,
stream), its four words serve two columns of direction 0 and two of direction 1, and the key comes
from the seed.
"""

import triton
import triton.language as tl


@triton.jit
def _halves(word):
    """Return the low and the high half of an int64."""
    return (word & 0xFFFFFFFF).to(tl.uint32), ((word >> 32) & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def philox_words(
    seed,  # [2] int64
    n,  # [R] rows
    m,  # [C / 2] even columns
):
    """Return four words `[R, C / 2]` per pair of columns: two for each direction."""
    key, key_high = _halves(tl.load(seed))
    stream, stream_high = _halves(tl.load(seed + 1))
    column, row = (m // 2).to(tl.uint32)[None, :], n.to(tl.uint32)[:, None]
    return tl.philox_impl(column, row, stream, stream_high, key, key_high)


@triton.jit
def _unit(word):
    """Return (word + 1/2) / 2^32."""
    return (word.to(tl.float32) + 0.5) * 2.3283064365386963e-10


@triton.jit
def gumbel(word):
    """Return -log(-log(1 - u)) in fp32, for u = (word + 1/2) / 2^32: from -3.2 to 22.9."""
    # 1 - u comes from the complement of the word, which is exact near 0. Near 1 it rounds, and its
    # logarithm is corrected by the ratio of u to the rounded u.
    u, rest = _unit(word), _unit(word ^ 0xFFFFFFFF)
    left = 1 - rest
    exponential = tl.where(left == 0, u, -tl.log(rest) * (u / tl.where(left == 0, 1.0, left)))
    return -tl.log(exponential)


@triton.jit
def gumbel_of_columns(even, odd):
    """Return the noise `[R, C]` of the words `[R, C / 2]` of even and odd columns."""
    return tl.interleave(gumbel(even), gumbel(odd))
