"""The centroid update of k-means: sums of the rows of every cluster, and their means as operands.

A sum is a product with one-hot assignments. Rows are split over programs to keep accumulation
chains short, and a second launch adds the partial sums. Without a split, the first launch writes
the means.
"""

import triton
import triton.language as tl

from itm_kernels.triton._launch import jit
from itm_kernels.triton._norms import power_of_two_scale, reciprocal, square_root, squared_norms
from itm_kernels.triton._operands import INTERPRETED, to_tf32
from itm_kernels.triton._score_tiles import wide_type

# The interpreter's bf16 products are wrong.
_PART = tl.constexpr(tl.float32 if INTERPRETED else tl.bfloat16)
_MOST = tl.constexpr(3.38e38)  # the largest value that stays finite in bf16


@triton.jit
def _one_hot(assignment, problem, k, m, end, N, SHARED: tl.constexpr):
    """Mark `[C, M]` the rows m of the clusters k; cluster -2 is empty."""
    here = m < end
    if SHARED:
        nearest = tl.load(assignment + m, mask=here, other=-1)[None, :]
    else:
        at = assignment + problem.to(tl.int64)[:, None] * N + m[None, :]
        nearest = tl.load(at, mask=here[None, :], other=-1)
    return nearest == k[:, None]


@triton.jit
def _count_rows(
    assignment, x_factor, problem, k, begin, end, N,
    DEPTH: tl.constexpr, SHARED: tl.constexpr, POWERS: tl.constexpr,
):  # fmt: skip
    """Return the number of rows of clusters `[C]`, and the largest scale of these rows."""
    count = tl.zeros((k.shape[0],), tl.int32)
    largest = tl.zeros((k.shape[0],), tl.float32)
    for first in range(begin, end, DEPTH):
        m = first + tl.arange(0, DEPTH)
        own = _one_hot(assignment, problem, k, m, end, N, SHARED)
        count += tl.sum(own.to(tl.int32), 1)
        if POWERS:
            factor = tl.load(x_factor + m, mask=m < end, other=0.0)
            largest = tl.maximum(largest, tl.max(tl.where(own, factor[None, :], 0.0), 1))
    return count, largest


@triton.jit
def store_centroids(
    value,  # [C, COLUMNS]
    factor,  # [C] with POWERS
    some,  # [C] which are written
    r,  # [C]
    tile,  # tile of D
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
    """Write a tile of centroids: values, squared norms, and operands of the products with rows."""
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


@jit(do_not_specialize=["N", "split_rows"])
def sums_kernel(
    x,  # [N, width], zeros from D on
    x_factor,  # [N] scale of the operands' rows
    assignment,  # [B, N]
    sums,  # [splits, R, tiles of D x COLUMNS]
    counts,  # [splits, R]
    factors,  # [splits, R]
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
    split_rows,  # rows per split
    ROWS: tl.constexpr,  # clusters
    COLUMNS: tl.constexpr,  # columns of D
    DEPTH: tl.constexpr,  # rows of x per iteration
    TERMS: tl.constexpr,  # number of bf16 parts of a row; 0: rows are not split into parts
    PRECISION: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    SHARED: tl.constexpr,  # one problem
    FINISH: tl.constexpr,  # one split: write the means
    PARTS: tl.constexpr,
    ROUND: tl.constexpr,
    POWERS: tl.constexpr,
):
    """Sum the rows of a split in a tile of clusters; separate programs count them."""
    x_stride, width = x_stride // ALIGN * ALIGN, width // ALIGN * ALIGN
    tiles = tl.cdiv(D, COLUMNS)
    slots = tiles if FINISH else tiles + 1
    tile, place = tl.program_id(0) % slots, tl.program_id(0) // slots
    groups = tl.cdiv(R, ROWS)
    split = place // groups
    r = (place % groups) * ROWS + tl.arange(0, ROWS)
    some = r < R
    problem = tl.minimum(r, R - 1) // K
    k = tl.where(some, r - problem * K, -2)
    begin = split * split_rows
    end = tl.minimum(begin + split_rows, N)
    at = split.to(tl.int64) * R + r
    if tile < tiles:
        d = tile * COLUMNS + tl.arange(0, COLUMNS)
        DTYPE: tl.constexpr = wide_type(x.dtype)
        total = tl.zeros((ROWS, COLUMNS), DTYPE)
        invalid = tl.zeros((ROWS,), tl.int32)
        row_at = x + tl.arange(0, DEPTH).to(tl.int64)[:, None] * x_stride + d[None, :]
        for first in range(begin, end, DEPTH):
            m = first + tl.arange(0, DEPTH)
            own = _one_hot(assignment, problem, k, m, end, N, SHARED)
            inside = (m < end)[:, None] if EVEN else (m < end)[:, None] & (d < width)[None, :]
            row = tl.load(row_at + tl.cast(first, tl.int64) * x_stride, mask=inside, other=0.0)
            # A non-finite row makes only its own cluster NaN; 0 x NaN would reach all of them.
            finite = tl.abs(row.to(DTYPE)) < (_MOST if TERMS > 0 else float("inf"))
            bad = tl.max((~finite).to(tl.int32), 1)
            if tl.max(bad, 0) > 0:
                invalid = tl.maximum(invalid, tl.max(own.to(tl.int32) * bad[None, :], 1))
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
        total = tl.where((invalid != 0)[:, None], float("nan"), total)
        if FINISH:
            # Counting before the sums takes up to 58 more registers (tf32, 256 x 333, sm_90).
            count, largest = _count_rows(
                assignment, x_factor, problem, k, begin, end, N, DEPTH, SHARED, POWERS
            )
            # An empty cluster keeps its centroid.
            value = total / tl.maximum(count, 1).to(DTYPE)[:, None]
            store_centroids(
                value, largest, some & (count > 0), r, tile, centroids, squares, y, y_factor,
                y_stride, y_part, R, D, PARTS, ROUND, POWERS,
            )  # fmt: skip
        else:
            to = sums + at[:, None] * (tiles * COLUMNS) + d[None, :]
            tl.store(to, total, mask=some[:, None])
    else:
        count, largest = _count_rows(
            assignment, x_factor, problem, k, begin, end, N, DEPTH, SHARED, POWERS
        )
        tl.store(counts + at, count, mask=some)
        if POWERS:
            tl.store(factors + at, largest, mask=some)


@jit(do_not_specialize=["splits", "R"])
def mean_kernel(
    start,  # [R, D]
    sums,  # [splits, R, tiles of D x COLUMNS]
    counts,  # [splits, R]
    factors,  # [splits, R]
    centroids,  # [R, D]
    squares,  # [tiles of D, R]
    y,  # [PARTS, R, WIDE]
    y_factor,  # [R]
    start_stride,
    y_stride,
    y_part,
    splits,
    R,
    D,
    START: tl.constexpr,  # copy the initial centroids
    PARTS: tl.constexpr,
    ROUND: tl.constexpr,
    POWERS: tl.constexpr,
    SPLITS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,  # clusters per program; 1 unless START
):
    """Write centroids: the means over all splits, or the initial centroids."""
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
            norm = square_root(squared_norms(from_row, 1, D, tl.arange(0, COLUMNS)))
            factor = reciprocal(power_of_two_scale(norm.to(DTYPE), 14))
    else:
        total = tl.zeros((SPLITS, COLUMNS), tl.float64)
        number = tl.zeros((SPLITS,), tl.int32)
        largest = tl.zeros((SPLITS,), tl.float32)
        for first in range(0, splits, SPLITS):
            split = (first + tl.arange(0, SPLITS)).to(tl.int64)
            here = split < splits
            at = split * R + r
            number += tl.load(counts + at, mask=here, other=0)
            if POWERS:
                largest = tl.maximum(largest, tl.load(factors + at, mask=here, other=0.0))
            found = sums + at[:, None] * (tl.num_programs(1) * COLUMNS) + d[None, :]
            total += tl.load(found, mask=here[:, None], other=0.0).to(tl.float64)
        count = tl.sum(number, 0)
        value = (tl.sum(total, 0) / tl.maximum(count, 1)).to(DTYPE)[None, :]
        # The norm of a mean is at most that of the largest row.
        factor = tl.max(largest, 0) + tl.zeros((1,), tl.float32)
        some = (one < R) & (count > 0)
    store_centroids(
        value, factor, some, one, tile, centroids, squares, y, y_factor, y_stride, y_part, R, D,
        PARTS, ROUND, POWERS,
    )  # fmt: skip
