"""The inverse of the Cholesky factor of one block in registers, pivot by pivot.

A pivot waits for its predecessor: the chain of 64 pivots is the floor of a block, whatever its
1.4e5 operations take.
"""

import triton
import triton.language as tl

# Smaller pivots are rounding errors: the diagonal of K is 1, and without a ridge duplicates leave
# 1e-16 |x|^2 / sigma^2 or exactly 0.
_SMALLEST_PIVOT = tl.constexpr(1e-13)


@triton.jit
def inverse_factor(block, size, BLOCK: tl.constexpr):
    """Return the inverse of a block's Cholesky factor; from row `size` on, both are the identity.

    In place: below and left of a pivot is the inverse of the factor with a diagonal of 1, right of
    it the rest of the symmetric block. One row per pivot is therefore reduced, and one tile
    updated.
    """
    at = tl.arange(0, BLOCK)
    for pivot in range(0, size):
        here = at == pivot
        row = tl.sum(tl.where(here[:, None], block, 0.0), 0)
        value = tl.sum(tl.where(here, row, 0.0), 0)
        value = tl.where(value > _SMALLEST_PIVOT, value, float("nan"))
        # By symmetry. A division of 0 takes a subroutine.
        column = tl.where(at > pivot, row, 0.0) * (1 / value)
        # The column of the pivot becomes -column: the update subtracts it from 0.
        kept = tl.where(here[None, :] & (at > pivot)[:, None], 0.0, block)
        block = kept - column[:, None] * tl.where(here, 1.0, row)[None, :]
    on = at[:, None] == at[None, :]
    value = tl.sum(tl.where(on, block, 0.0), 1)
    value = tl.sqrt(tl.where(value > _SMALLEST_PIVOT, value, float("nan")))
    lower = tl.where(at[:, None] > at[None, :], block, tl.where(on, 1.0, 0.0))
    return lower * (1 / value)[:, None]
