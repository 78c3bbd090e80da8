"""The centroid update of one problem of k-means: a program gathers the rows of one cluster.

A program reads all assignments, of which there are few bytes, and lists the rows of its share of a
cluster in order; it then adds these rows only. A product with one-hot assignments instead reads
every row once per tile of clusters: 69 us with its means at N = 4096, D = 1024, K = 256 in bf16 on
an H200, where this takes 11 us. Its floor is the 8 MB of the rows, 2 us, and two passes over 16 KB.
"""

import triton.language as tl

from itm_kernels.triton._centroids import store_centroids
from itm_kernels.triton._launch import jit
from itm_kernels.triton._score_tiles import wide_type


@jit(do_not_specialize=["N", "splits"])
def gathered_sums_kernel(
    x,  # [N, D]
    x_factor,  # [N] scale of the operands' rows
    assignment,  # [1, N]
    order,  # [N] rows by cluster, to write
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
    D,
    splits,  # programs per cluster
    ROWS: tl.constexpr,  # rows per iteration
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,  # assignments per iteration
    FINISH: tl.constexpr,  # one split: write the means
    PARTS: tl.constexpr,
    ROUND: tl.constexpr,
    POWERS: tl.constexpr,
):
    """Sum the rows of a share of a cluster, in fp64 over iterations; finish their mean."""
    r, split, tile = tl.program_id(0) % R, tl.program_id(0) // R, tl.program_id(1)
    before = tl.zeros((CHUNK,), tl.int32)
    count = tl.zeros((CHUNK,), tl.int32)
    for first in range(0, N, CHUNK):
        m = first + tl.arange(0, CHUNK)
        k = tl.load(assignment + m, mask=m < N, other=-1)
        before += ((k >= 0) & (k < r)).to(tl.int32)
        count += (k == r).to(tl.int32)
    size = tl.sum(count, 0)
    share = (size + splits - 1) // splits
    low, high = tl.minimum(split * share, size), tl.minimum((split + 1) * share, size)
    to = order + tl.sum(before, 0)
    place = 0
    for first in range(0, N, CHUNK):
        m = first + tl.arange(0, CHUNK)
        mine = tl.load(assignment + m, mask=m < N, other=-1) == r
        at = place + tl.cumsum(mine.to(tl.int32), 0) - 1
        tl.store(to + at, m, mask=mine & (at >= low) & (at < high))
        place += tl.sum(mine.to(tl.int32), 0)
    tl.debug_barrier()  # other threads read the stored rows
    DTYPE: tl.constexpr = wide_type(x.dtype)
    d = tile * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float64)
    largest = tl.zeros((ROWS,), tl.float32)
    for first in range(low, high, ROWS):
        at = first + tl.arange(0, ROWS)
        m = tl.load(to + at, mask=at < high, other=0)
        inside = (at < high)[:, None] & (d < D)[None, :]
        row = tl.load(x + m.to(tl.int64)[:, None] * x_stride + d[None, :], mask=inside, other=0.0)
        total += tl.sum(row.to(DTYPE), 0).to(tl.float64)
        if POWERS:
            factor = tl.load(x_factor + m, mask=at < high, other=0.0)
            largest = tl.maximum(largest, factor)
    # An infinite row makes its cluster NaN, as in a product.
    total = tl.where(tl.abs(total) < float("inf"), total, float("nan"))
    one = r + tl.arange(0, 1)
    scale = tl.max(largest, 0) + tl.zeros((1,), tl.float32)
    if FINISH:
        # An empty cluster keeps its centroid.
        value = (total / tl.maximum(size, 1).to(tl.float64)).to(DTYPE)
        store_centroids(
            value[None, :], scale, (one < R) & (size > 0), one, tile, centroids, squares, y,
            y_factor, y_stride, y_part, R, D, PARTS, ROUND, POWERS,
        )  # fmt: skip
    else:
        at = split.to(tl.int64) * R + r
        tl.store(sums + at * (tl.num_programs(1) * COLUMNS) + d, total.to(DTYPE))
        if tile == 0:
            tl.store(counts + at, high - low)
            if POWERS:
                tl.store(factors + at, tl.max(largest, 0))
