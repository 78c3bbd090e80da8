"""Noise without a state: what is drawn for a pair of rows is the same in every backend.

csrc/cpu/simd/philox.h defines the layout: a counter of Philox4x32-10 is (column / 2, row, stream),
its four words are two columns of direction 0 and two of direction 1, and the key is the seed's.
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
    """Return four words `[R, C / 2]` per two columns, two for either direction."""
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
    # 1 - u from the word's complement loses nothing near 0. Near 1 it rounds, and its logarithm is
    # short by the ratio of u to what was left of it.
    u, rest = _unit(word), _unit(word ^ 0xFFFFFFFF)
    left = 1 - rest
    exponential = tl.where(left == 0, u, -tl.log(rest) * (u / tl.where(left == 0, 1.0, left)))
    return -tl.log(exponential)


@triton.jit
def gumbel_of_columns(even, odd):
    """Return the noise `[R, C]` of neighbouring columns' words `[R, C / 2]`."""
    return tl.interleave(gumbel(even), gumbel(odd))
