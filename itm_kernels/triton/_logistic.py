"""The logistic function of logits and its logarithm, from one exponential per logit.

The logits of positives are negated, so that their loss log(1 + e^logit) is that of negatives.
Excluded pairs have the logit -inf, and thus a loss and a weight of 0. With e = e^-|logit|,
log(1 + e) is a polynomial, and the logistic function is a quotient.
"""

import triton
import triton.language as tl

from itm_kernels.triton._launch import jit
from itm_kernels.triton._score_tiles import log_of_one_plus, same_id

_LOG2_E, _LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)


@triton.jit
def exp_in_base(z):
    """Return 2^z in fp32 and e^z in fp64: logits are in the base with the fast exponential."""
    return tl.exp(z) if z.dtype == tl.float64 else tl.exp2(z)


@triton.jit
def _in_base(x):
    return x if x.dtype == tl.float64 else x * _LOG2_E


@triton.jit
def _to_natural(x):
    return x if x.dtype == tl.float64 else x * _LN_2


@triton.jit
def has_diagonal_or_edge(
    row, first, column, R, M, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Return whether a tile contains elements of the diagonal or exceeds the R x M scores."""
    outside = (row + ROWS > R) | (column + COLUMNS > M)
    return outside | ((first + row < column + COLUMNS) & (column < first + row + ROWS))


@triton.jit
def _log_of_one_plus(e):
    """Return log(1 + e) for e from 0 to 1.

    e times a polynomial, with a relative error of 1.5e-7 including rounding (log(1 + e) with a
    correction for the rounding of 1 + e has 2.7e-7), in 9 instructions instead of 31.
    """
    if e.dtype == tl.float64:
        return log_of_one_plus(e)
    found = 0.005364824552088976 * e - 0.030065791681408882
    found = found * e + 0.07920453697443008
    found = found * e - 0.13753803074359894
    found = found * e + 0.191536545753479
    found = found * e - 0.24857163429260254
    found = found * e + 0.3332132399082184
    found = found * e - 0.49999648332595825
    return (found * e + 1.0) * e


@triton.jit
def _reciprocal(x):
    """Return 1 / x for x from 1 to 2, as the square of rsqrt, a single instruction."""
    if x.dtype == tl.float64:
        return 1 / x
    found = tl.rsqrt(x)
    return found * found


@triton.jit
def negate_positives(x, own, rows, columns, special, HAS_IDS: tl.constexpr):
    """Return x `[R, C]` with the positives negated; infinite ones become NaN."""
    if HAS_IDS:
        x = tl.where(own, 0 * x - x, x)
    else:
        if special:  # compares again: a kept comparison is made in all tiles, and spills
            x = tl.where(rows[:, None] == columns[None, :], 0 * x - x, x)
    return x


@triton.jit
def logits(
    scores,  # [R, C]
    r,  # [R] row indices within the block of R x M scores, unclamped
    m,  # [C]
    R,
    M,
    rows,  # [R] row indices of x
    columns,  # [C]
    of_row,  # [R] factors of scores
    bias,
    positive,
    x_ids,
    y_ids,
    special,
    HAS_IDS: tl.constexpr,
):
    """Return logits, scores, and the positives `[R, C]`.

    Logits are in the base of `exp_in_base`, those of positives negated. Excluded pairs have logits
    of -inf and scores of 0.
    """
    DTYPE: tl.constexpr = scores.dtype
    z = scores * _in_base(of_row)[:, None] + _in_base(tl.load(bias).to(DTYPE))
    if HAS_IDS:
        of_text = tl.load(positive + columns).to(tl.int32)  # 64-bit indices spill on sm_100
        own = rows[:, None] == of_text[None, :]
        z = negate_positives(z, own, rows, columns, special, HAS_IDS)
        on = (own | ~same_id(rows, columns, x_ids, y_ids, HAS_IDS)) & (r < R)[:, None]
        on &= (m < M)[None, :]
        z = tl.where(on, z, float("-inf"))
        # A text without exactly one image is a user error: its logits become NaN.
        z += tl.where(of_text < 0, float("nan"), 0.0).to(DTYPE)[None, :]
        scores = tl.where(on, scores, 0.0)  # it may be infinite
    else:
        own = rows[:, None] == columns[None, :]
        z = negate_positives(z, own, rows, columns, special, HAS_IDS)
        if special:  # most tiles skip these selections
            # By rows, then by columns: a predicate per element would stay in registers.
            z = tl.where(
                (m < M)[None, :], tl.where((r < R)[:, None], z, float("-inf")), float("-inf")
            )
            scores = tl.where((r < R)[:, None], scores, 0.0)
            scores = tl.where((m < M)[None, :], scores, 0.0)
    return z, scores, own


@triton.jit
def logistic(z, small):
    """Return 1 / (1 + e^-z), for small = e^-|z|."""
    return tl.where(z < 0, small, 1.0) * _reciprocal(1 + small)


@triton.jit
def softplus(z, small):
    """Return log(1 + e^z), for small = e^-|z|."""
    return _log_of_one_plus(small) + _to_natural(tl.where(z > 0, z, 0.0))


@triton.jit
def softplus_sums(z, small, AXIS: tl.constexpr):
    """Return the sums along an axis of log(1 + e^z), for small = e^-|z|."""
    sums = tl.sum(_log_of_one_plus(small), AXIS)
    return sums + _to_natural(tl.sum(tl.where(z > 0, z, 0.0), AXIS))


@jit(do_not_specialize=["tiles"])
def sigmoid_totals_kernel(
    sums,  # [3, tiles]
    unit,
    of_scale,
    of_bias,
    loss,
    stored_unit,  # []
    tiles,
    UNIT: tl.constexpr,
    WHOLE: tl.constexpr,
    WEIGHTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up the sums of the tiles: scale, bias and loss in one program each."""
    kind = tl.program_id(0)
    there = WHOLE if kind == 2 else WEIGHTS
    found = tl.zeros((BLOCK,), tl.float64)  # the number of tiles grows with the batch
    for first in range(0, tiles, BLOCK):
        at = first + tl.arange(0, BLOCK)
        found += tl.load(sums + kind * tiles + at, mask=(at < tiles) & there, other=0.0)
    total = tl.sum(found)
    if kind == 0:
        tl.store(of_scale, total.to(of_scale.dtype.element_ty))
        one = tl.full((), 1.0, stored_unit.dtype.element_ty)
        tl.store(stored_unit, tl.load(unit) if UNIT else one)
    elif kind == 1:
        tl.store(of_bias, total.to(of_bias.dtype.element_ty))
    else:
        tl.store(loss, total.to(loss.dtype.element_ty))
