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
def _valid(pivot):
    """Return a pivot, or NaN for one that is a rounding error."""
    return tl.where(pivot > _SMALLEST_PIVOT, pivot, float("nan"))


@triton.jit
def inverse_factor(block, size, BLOCK: tl.constexpr):
    """Return the inverse of a block's Cholesky factor; from row `size` on, both are the identity.

    In place: below and left of a pivot is the inverse of the factor with a diagonal of 1, right of
    it the rest of the symmetric block. Of two pivots, the reductions do not wait for each other.
    """
    at = tl.arange(0, BLOCK)
    for pivot in range(0, size, 2):
        here, after = at == pivot, at == pivot + 1
        row = tl.sum(tl.where(here[:, None], block, 0.0), 0)
        lower = tl.sum(tl.where(after[:, None], block, 0.0), 0)
        value = tl.sum(tl.where(here, row, 0.0), 0)
        between = tl.sum(tl.where(after, row, 0.0), 0)
        second = tl.sum(tl.where(after, lower, 0.0), 0)
        # Eliminate the first pivot from the second row.
        over = 1 / _valid(value)
        second -= between * between * over
        row_of_inverse = tl.where(here, 1.0, row)
        lower = tl.where(here, 0.0, lower) - (between * over) * row_of_inverse
        over_second = 1 / _valid(second)
        below = at > pivot + 1
        # By symmetry. A division of 0 takes a subroutine.
        first_column = tl.where(below, row, 0.0) * over
        second_column = tl.where(below, lower, 0.0) * over_second
        # The columns of both pivots become those of the inverse: the update subtracts from 0.
        kept = tl.where((here | after)[None, :] & below[:, None], 0.0, block)
        kept = tl.where(after[:, None], lower[None, :], kept)
        block = kept - first_column[:, None] * tl.where(after, 0.0, row_of_inverse)[None, :]
        block -= second_column[:, None] * tl.where(after, 1.0, lower)[None, :]
    on = at[:, None] == at[None, :]
    value = tl.sqrt(_valid(tl.sum(tl.where(on, block, 0.0), 1)))
    lower = tl.where(at[:, None] > at[None, :], block, tl.where(on, 1.0, 0.0))
    return lower * (1 / value)[:, None]
