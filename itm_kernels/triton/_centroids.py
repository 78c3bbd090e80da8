"""The update of k-means: sums of every cluster's rows, and their means as operands.

A sum is a product with one-hot rows. Shares of rows are summed by programs of their own, so that
chains are short, and a second launch adds the shares up. A single share leaves means at once.
"""

import triton
import triton.language as tl

from itm_kernels.triton._norms import power_of_two_scale, reciprocal, square_root, squared_norms
from itm_kernels.triton._operands import INTERPRETED, to_tf32
from itm_kernels.triton._score_tiles import wide_type

# The interpreter multiplies bf16 wrongly.
_PART = tl.constexpr(tl.float32 if INTERPRETED else tl.bfloat16)
_MOST = tl.constexpr(3.38e38)  # that is finite in bf16


@triton.jit
def _own(assignment, problem, k, m, end, N, SHARED: tl.constexpr):
    """Mark the rows `[M]` of clusters `[C]`; cluster -2 has none."""
    here = m < end
    if SHARED:
        nearest = tl.load(assignment + m, mask=here, other=-1)[None, :]
    else:
        at = assignment + problem.to(tl.int64)[:, None] * N + m[None, :]
        nearest = tl.load(at, mask=here[None, :], other=-1)
    return nearest == k[:, None]


@triton.jit
def _counted(
    assignment, x_factor, problem, k, begin, end, N,
    DEPTH: tl.constexpr, SHARED: tl.constexpr, POWERS: tl.constexpr,
):  # fmt: skip
    """Return how many rows clusters `[C]` have, and the largest of these rows' factors."""
    count = tl.zeros((k.shape[0],), tl.int32)
    largest = tl.zeros((k.shape[0],), tl.float32)
    for first in range(begin, end, DEPTH):
        m = first + tl.arange(0, DEPTH)
        own = _own(assignment, problem, k, m, end, N, SHARED)
        count += tl.sum(own.to(tl.int32), 1)
        if POWERS:
            factor = tl.load(x_factor + m, mask=m < end, other=0.0)
            largest = tl.maximum(largest, tl.max(tl.where(own, factor[None, :], 0.0), 1))
    return count, largest


@triton.jit
def _leave(
    value,  # [C, COLUMNS]
    factor,  # [C], unless POWERS
    some,  # [C] that are written
    r,  # [C]
    tile,  # of D
    centroids,
    squares,
    y,
    y_factor,
    y_stride,
    y_part,
    R,
    D,
    PARTS: tl.constexpr,
    ROUND: tl.constexpr,
    POWERS: tl.constexpr,
):
    """Write a tile of centroids: their numbers, squares, and what is multiplied with rows."""
    COLUMNS: tl.constexpr = value.shape[1]
    d = tile * COLUMNS + tl.arange(0, COLUMNS)
    inside = some[:, None] & (d < D)[None, :]
    row = r.to(tl.int64)[:, None]
    tl.store(centroids + row * D + d[None, :], value, mask=inside)
    value = tl.where((d < D)[None, :], value, 0.0)
    tl.store(squares + tl.cast(tile, tl.int64) * R + r, tl.sum(value * value, 1), mask=some)
    inside = some[:, None] & (d < y_stride)[None, :]
    if POWERS:
        tl.store(y_factor + r, factor, mask=some & (tile == 0))
        value *= reciprocal(tl.where(some, factor, 1.0))[:, None]
    if ROUND:
        value = to_tf32(value)
    for part in tl.static_range(PARTS):
        high = value.to(y.dtype.element_ty)
        to = y + tl.cast(part, tl.int64) * y_part + row * y_stride + d[None, :]
        tl.store(to, high, mask=inside)
        value -= high.to(value.dtype)


@triton.jit(do_not_specialize=["N", "rows_of_share"])
def sums_kernel(
    x,  # [N, width], zeros from D on
    x_factor,  # [N] that rows of the operands are multiplied by
    assignment,  # [B, N]
    sums,  # [shares, R, tiles of D x COLUMNS]
    counts,  # [shares, R]
    factors,  # [shares, R]
    centroids,  # [R, D]
    squares,  # [tiles of D, R]
    y,  # [PARTS, R, WIDE] operands
    y_factor,  # [R]
    x_stride,
    y_stride,
    y_part,
    N,
    R,
    K,
    D,
    width,
    rows_of_share,
    ROWS: tl.constexpr,  # clusters
    COLUMNS: tl.constexpr,  # of D
    DEPTH: tl.constexpr,  # rows of x at once
    TERMS: tl.constexpr,  # bf16 parts that rows are split into; 0: they are multiplied as they are
    PRECISION: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    SHARED: tl.constexpr,  # one problem
    FINISH: tl.constexpr,  # one share
    PARTS: tl.constexpr,
    ROUND: tl.constexpr,
    POWERS: tl.constexpr,
):
    """Sum the rows of a share in some clusters; programs of their own count them."""
    x_stride, width = x_stride // ALIGN * ALIGN, width // ALIGN * ALIGN
    tiles = tl.cdiv(D, COLUMNS)
    slots = tiles if FINISH else tiles + 1
    tile, place = tl.program_id(0) % slots, tl.program_id(0) // slots
    groups = tl.cdiv(R, ROWS)
    share = place // groups
    r = (place % groups) * ROWS + tl.arange(0, ROWS)
    some = r < R
    problem = tl.minimum(r, R - 1) // K
    k = tl.where(some, r - problem * K, -2)
    begin = share * rows_of_share
    end = tl.minimum(begin + rows_of_share, N)
    at = share.to(tl.int64) * R + r
    if tile < tiles:
        d = tile * COLUMNS + tl.arange(0, COLUMNS)
        DTYPE: tl.constexpr = wide_type(x.dtype)
        total = tl.zeros((ROWS, COLUMNS), DTYPE)
        lost = tl.zeros((ROWS,), tl.int32)
        row_at = x + tl.arange(0, DEPTH).to(tl.int64)[:, None] * x_stride + d[None, :]
        for first in range(begin, end, DEPTH):
            m = first + tl.arange(0, DEPTH)
            own = _own(assignment, problem, k, m, end, N, SHARED)
            inside = (m < end)[:, None] if EVEN else (m < end)[:, None] & (d < width)[None, :]
            row = tl.load(row_at + tl.cast(first, tl.int64) * x_stride, mask=inside, other=0.0)
            # A row that is not finite makes its cluster NaN; 0 x NaN would make all of them.
            finite = tl.abs(row.to(DTYPE)) < (_MOST if TERMS > 0 else float("inf"))
            bad = tl.max((~finite).to(tl.int32), 1)
            if tl.max(bad, 0) > 0:
                lost = tl.maximum(lost, tl.max(own.to(tl.int32) * bad[None, :], 1))
            row = tl.where(finite, row, tl.zeros_like(row))
            if TERMS == 0:
                one = own.to(row.dtype)
                total = tl.dot(one, row, total, input_precision=PRECISION, out_dtype=DTYPE)
            else:
                one = own.to(_PART)
                for _ in tl.static_range(TERMS):
                    high = row.to(tl.bfloat16)
                    total = tl.dot(one, high.to(_PART), total)
                    row -= high.to(tl.float32)
        total = tl.where((lost != 0)[:, None], float("nan"), total)
        if FINISH:
            count, largest = _counted(
                assignment, x_factor, problem, k, begin, end, N, DEPTH, SHARED, POWERS
            )
            # An empty cluster keeps its centroid.
            value = total / tl.maximum(count, 1).to(DTYPE)[:, None]
            _leave(
                value, largest, some & (count > 0), r, tile, centroids, squares, y, y_factor,
                y_stride, y_part, R, D, PARTS, ROUND, POWERS,
            )  # fmt: skip
        else:
            to = sums + at[:, None] * (tiles * COLUMNS) + d[None, :]
            tl.store(to, total, mask=some[:, None])
    else:
        count, largest = _counted(
            assignment, x_factor, problem, k, begin, end, N, DEPTH, SHARED, POWERS
        )
        tl.store(counts + at, count, mask=some)
        if POWERS:
            tl.store(factors + at, largest, mask=some)


@triton.jit(do_not_specialize=["shares", "R"])
def mean_kernel(
    start,  # [R, D]
    sums,  # [shares, R, tiles of D x COLUMNS]
    counts,  # [shares, R]
    factors,  # [shares, R]
    centroids,  # [R, D]
    squares,  # [tiles of D, R]
    y,  # [PARTS, R, WIDE]
    y_factor,  # [R]
    start_stride,
    y_stride,
    y_part,
    shares,
    R,
    D,
    START: tl.constexpr,  # centroids are those given
    PARTS: tl.constexpr,
    ROUND: tl.constexpr,
    POWERS: tl.constexpr,
    SHARES: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,  # clusters of a program; of means 1
):
    """Write centroids: the means of all shares' rows, or those to start from."""
    r, tile = tl.program_id(0), tl.program_id(1)
    d = tile * COLUMNS + tl.arange(0, COLUMNS)
    one = r * GROUP + tl.arange(0, GROUP)
    DTYPE: tl.constexpr = centroids.dtype.element_ty
    if START:
        from_row = start + tl.minimum(one, R - 1).to(tl.int64) * start_stride
        some = one < R
        inside = some[:, None] & (d < D)[None, :]
        value = tl.load(from_row[:, None] + d[None, :], mask=inside, other=0.0).to(DTYPE)
        factor = tl.full((GROUP,), 1.0, DTYPE)
        if POWERS:
            length = square_root(squared_norms(from_row, 1, D, tl.arange(0, COLUMNS)))
            factor = reciprocal(power_of_two_scale(length.to(DTYPE), 14))
    else:
        total = tl.zeros((SHARES, COLUMNS), tl.float64)
        number = tl.zeros((SHARES,), tl.int32)
        largest = tl.zeros((SHARES,), tl.float32)
        for first in range(0, shares, SHARES):
            share = (first + tl.arange(0, SHARES)).to(tl.int64)
            here = share < shares
            at = share * R + r
            number += tl.load(counts + at, mask=here, other=0)
            if POWERS:
                largest = tl.maximum(largest, tl.load(factors + at, mask=here, other=0.0))
            found = sums + at[:, None] * (tl.num_programs(1) * COLUMNS) + d[None, :]
            total += tl.load(found, mask=here[:, None], other=0.0).to(tl.float64)
        count = tl.sum(number, 0)
        value = (tl.sum(total, 0) / tl.maximum(count, 1)).to(DTYPE)[None, :]
        # A mean is no longer than the longest row.
        factor = tl.max(largest, 0) + tl.zeros((1,), tl.float32)
        some = (one < R) & (count > 0)
    _leave(
        value, factor, some, one, tile, centroids, squares, y, y_factor, y_stride, y_part, R, D,
        PARTS, ROUND, POWERS,
    )  # fmt: skip
