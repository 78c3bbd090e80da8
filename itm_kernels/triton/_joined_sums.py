"""Log-sum-exp of rows and columns from the maxima and sums of their parts."""

import triton
import triton.language as tl

from itm_kernels.triton._given_scores import exponential
from itm_kernels.triton._launch import jit


@triton.jit
def shift_of(largest):
    # An infinite maximum would give inf - inf. With a shift of 0 infinities pass through.
    return tl.where(tl.abs(largest) == float("inf"), tl.zeros_like(largest), largest)


@triton.jit
def ratio(highest, shift):
    """Return e^(highest - shift); sums without logits are 0, and infinite ones have no shift."""
    return exponential(tl.where(highest == float("inf"), 0.0, highest) - shift)


@triton.jit
def _join(parts, found, found_highest, count, width, anchors, a, PARTS: tl.constexpr):
    """Reduce the maxima and sums `[2, count, width]` of all parts of an anchor."""
    DTYPE: tl.constexpr = found.dtype.element_ty
    best = tl.full((PARTS, a.shape[0]), float("-inf"), DTYPE)
    total = tl.zeros((PARTS, a.shape[0]), DTYPE)
    skip = tl.cast(count, tl.int64) * width
    for first in range(0, count, PARTS):
        part = first + tl.arange(0, PARTS)[:, None].to(tl.int64)
        at = parts + part * width + a[None, :]
        mask = (part < count) & (a < anchors)[None, :]
        highest = tl.load(at, mask=mask, other=float("-inf"))
        sums = tl.load(at + skip, mask=mask, other=0.0)
        better = tl.maximum(best, highest)
        shift = shift_of(better)
        total = total * exponential(best - shift) + sums * ratio(highest, shift)
        best = better
    shift = shift_of(tl.max(best, 0))
    # The number of parts grows with the batch.
    sums = tl.sum((total * ratio(best, shift[None, :])).to(tl.float64), 0).to(DTYPE)
    empty = sums == 0
    logarithm = tl.where(empty, float("-inf"), tl.log(tl.where(empty, 1.0, sums)))
    tl.store(found + a, logarithm, mask=a < anchors)
    tl.store(found_highest + a, shift, mask=a < anchors)


@jit(do_not_specialize=["N", "M", "splits", "stripes"])
def join_sums_kernel(
    scores,  # [N, M]
    row_stride,
    column_stride,
    N,
    M,
    scale,  # []
    positive,  # [M]
    row,  # [2, splits, N]
    column,  # [2, stripes, width]
    of_row,  # [N]
    row_highest,  # [N]
    of_column,  # [M]
    column_highest,  # [M]
    of_positive,  # [M]
    width,
    splits,
    stripes,
    ANCHORS: tl.constexpr,
    PARTS: tl.constexpr,
):
    a = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS)
    if tl.program_id(1) == 0:
        _join(row, of_row, row_highest, splits, N, N, a, PARTS)
    else:
        _join(column, of_column, column_highest, stripes, width, M, a, PARTS)
        of = tl.load(positive + a, mask=a < M, other=-1)
        found = (of >= 0) & (of < N)
        at = scores + of.to(tl.int64) * row_stride + a.to(tl.int64) * column_stride
        own = tl.load(at, mask=found, other=0.0).to(of_positive.dtype.element_ty)
        own = tl.where(found, tl.load(scale) * own, float("nan"))
        tl.store(of_positive + a, own, mask=a < M)
