"""Philox4x32-10 from the paper, and the noise of a pair that cpu/simd/philox.h promises.

Salmon, Moraes, Dror and Shaw: Parallel random numbers: as easy as 1, 2, 3. SC 2011, section 3.3.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(counter: list[ArrayLike], key: list[int]) -> list[NDArray[np.uint64]]:
    """Returns four random words for every counter of four words and one key of two."""
    words = [np.asarray(word, dtype=np.uint64) for word in counter]
    first, second = key
    for _ in range(10):
        x, y = np.uint64(0xD2511F53) * words[0], np.uint64(0xCD9E8D57) * words[2]
        words = [
            (y >> _HALF) ^ words[1] ^ np.uint64(first),
            y & _LOW,
            (x >> _HALF) ^ words[3] ^ np.uint64(second),
            x & _LOW,
        ]
        first, second = (first + 0x9E3779B9) % 2**32, (second + 0xBB67AE85) % 2**32
    return words


def gumbel(words: ArrayLike) -> NDArray[np.float64]:
    """Returns the Gumbel noise of random words."""
    u = (np.asarray(words, dtype=np.float64) + 0.5) / 2**32
    return -np.log(-np.log1p(-u))


def gumbel_of_pairs(seed: tuple[int, int], N: int, M: int) -> NDArray[np.float64]:  # [2, N, M]
    """Returns the noise added to the scores of N rows and M columns, for either direction."""
    halves = [half for word in seed for half in (word % 2**32, word >> 32)]
    column, row = np.arange((M + 1) // 2)[None, :], np.arange(N)[:, None]
    words = philox([column, row, *halves[2:]], halves[:2])
    a, b, c, d = (gumbel(np.broadcast_to(word, (N, (M + 1) // 2))) for word in words)
    pairs = [np.stack(two, axis=2).reshape(N, -1)[:, :M] for two in ((a, b), (c, d))]
    return np.stack(pairs)
