"""The gradient of members through the Gram matrices K of their clusters, in fp64.

With A = K + ridge I and H = A^-1 dL/dW, dL/dK = -H W^T. The gradient of x_i is the sum over its
cluster of F_ij (x_j - x_i) / sigma^2, F_ij = -K_ij (H_i W_j + W_i H_j). F is symmetric: its lower
blocks overwrite the cluster's Cholesky factor, which is no longer needed.
"""

import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._cholesky import (
    DEPTH,
    block_row,
    factor_of_cluster,
    rbf_block,
    transposed_tile,
)
from itm_kernels.triton._cluster_batches import BLOCK
from itm_kernels.triton._clusters import spans_of
from itm_kernels.triton._kam_solve import ClusterSystems
from itm_kernels.triton._launch import cdiv, jit, next_power_of_2
from itm_kernels.triton._score_tiles import float_argument

_COLUMNS = 64


@triton.jit
def _both_products(
    left,  # [M, D]
    right,  # [M, D]
    of_m,  # [BLOCK] rows, int64
    of_n,
    D,
    total,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Return total + left_m right_n^T."""
    depth = tl.arange(0, DEPTH)
    at_m, at_n = left + of_m[:, None] * D + depth, right + of_n[:, None] * D + depth
    for d in range(0, D, DEPTH):
        inside = (depth < D - d)[None, :]
        m = tl.load(at_m + d, mask=inside, other=0.0).to(tl.float64)
        n = tl.load(at_n + d, mask=inside, other=0.0).to(tl.float64)
        total = tl.dot(m, tl.trans(n), total, input_precision="ieee", out_dtype=tl.float64)
    return total


@jit(do_not_specialize=["blocks_at_most", "base"])
def _blocks_kernel(
    x,  # [M, D]
    memory,  # [M, D] W
    of_memory,  # [m, D] H in fp64, of rows from `base` on
    blocks,  # [1, size] fp64, in the layout of factors
    starts,  # [1, K + 1]
    span_cluster,
    span_first,
    span_end,
    blocks_at_most,
    base,
    K,
    D,
    scale: tl.float64,  # 1 / (2 sigma^2)
    CLUSTERS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Write one lower block of F."""
    tile, j = tl.program_id(0), tl.program_id(1)
    cluster, first = tl.load(span_cluster + tile), tl.load(span_first + tile)
    own, begin, end = factor_of_cluster(
        blocks, starts, 0, cluster, blocks_at_most, K, CLUSTERS, BLOCK
    )
    i = (first - begin) // BLOCK
    if (j <= i) & (first < tl.load(span_end + tile)):
        at = tl.arange(0, BLOCK)
        m, n = begin + i * BLOCK + at, begin + j * BLOCK + at
        of_m, of_n = tl.minimum(m, end - 1).to(tl.int64), tl.minimum(n, end - 1).to(tl.int64)
        value = rbf_block(x, D, of_m, of_n, D, scale, BLOCK, DEPTH)
        total = tl.zeros((BLOCK, BLOCK), tl.float64)
        h_m, h_n = of_m - base, of_n - base
        total = _both_products(of_memory, memory, h_m, of_n, D, total, BLOCK, DEPTH)
        total = _both_products(memory, of_memory, of_m, h_n, D, total, BLOCK, DEPTH)
        value *= -total
        inside = (m < end)[:, None] & (n < end)[None, :] & (m[:, None] != n[None, :])
        to = block_row(own, i, BLOCK) + j * BLOCK + at[None, :]
        tl.store(to, tl.where(inside, value, 0.0))


@triton.jit
def _times_rows(
    blocks, i, of_cluster, column, there, size, D, first, last, total, weight,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Add the products of row block i of F, with UP of its transpose, with rows [first, last)."""
    depth = tl.arange(0, DEPTH)
    rows = block_row(blocks, i, BLOCK)
    for n in range(first, last, DEPTH):
        if UP:
            left = transposed_tile(blocks, i, n, BLOCK, DEPTH)
        else:
            left = tl.load(rows + n + depth[None, :])
        row = (n + depth)[:, None]
        at = of_cluster + row.to(tl.int64) * D + column
        right = tl.load(at, mask=(row < size) & there, other=0.0).to(tl.float64)
        weight += left
        total = tl.dot(left, right, total, input_precision="ieee", out_dtype=tl.float64)
    return total, weight


@jit(do_not_specialize=["blocks_at_most"])
def _members_kernel(
    x,  # [M, D]
    blocks,  # [1, size]
    starts,
    span_cluster,
    span_first,
    span_end,
    out,  # [M, D], accumulated
    blocks_at_most,
    K,
    D,
    scale: tl.float64,  # 1 / sigma^2
    CLUSTERS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add sum F_ij (x_j - x_i) for a row of blocks, as two sums: near-equal rows cancel."""
    tile = tl.program_id(0)
    cluster, first = tl.load(span_cluster + tile), tl.load(span_first + tile)
    own, begin, end = factor_of_cluster(
        blocks, starts, 0, cluster, blocks_at_most, K, CLUSTERS, BLOCK
    )
    i, size = (first - begin) // BLOCK, end - begin
    if first < tl.load(span_end + tile):
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        there = column < D
        total = tl.zeros((BLOCK, COLUMNS), tl.float64)
        weight = tl.zeros((BLOCK, DEPTH), tl.float64)
        of_cluster = x + tl.cast(begin, tl.int64) * D
        middle, padded = (i + 1) * BLOCK, (size + BLOCK - 1) // BLOCK * BLOCK
        # Two loops: with a branch in one, the compiler does not load ahead.
        total, weight = _times_rows(
            own, i, of_cluster, column, there, size, D, 0, middle, total, weight, BLOCK, DEPTH,
            False,
        )  # fmt: skip
        total, weight = _times_rows(
            own, i, of_cluster, column, there, size, D, middle, padded, total, weight, BLOCK, DEPTH,
            True,
        )  # fmt: skip
        weight = tl.sum(weight, 1)
        row = (i * BLOCK + tl.arange(0, BLOCK))[:, None]
        inside = (row < size) & there
        place = row.to(tl.int64) * D + column
        own_x = tl.load(of_cluster + place, mask=inside, other=0.0).to(tl.float64)
        total = (total - weight[:, None] * own_x) * float_argument(scale, tl.float64)
        to = out + tl.cast(begin, tl.int64) * D + place
        before = tl.load(to, mask=inside, other=0.0)
        tl.store(to, (before + total.to(before.dtype)), mask=inside)


def add_gradient_of_members(
    systems: ClusterSystems,  # whose factors are overwritten
    x: Tensor,  # [M, D]
    memory: Tensor,  # [M, D] W
    of_memory: Tensor,  # [m, D] H of the systems' batch, in fp64
    sigma: float,
    out: Tensor,  # [M, D], accumulated
) -> None:
    """Add the gradient of the members through K."""
    batch, starts = systems.batch, systems.starts
    spans = spans_of(starts, batch.end - batch.begin, BLOCK)
    T, D, K = spans.first.shape[1], x.shape[1], starts.shape[1] - 1
    shared = {
        "blocks": systems.factor,
        "starts": starts,
        "span_cluster": spans.cluster,
        "span_first": spans.first,
        "span_end": spans.end,
        "blocks_at_most": batch.size // BLOCK**2,
        "K": K,
        "D": D,
        "CLUSTERS": next_power_of_2(K),
        "BLOCK": BLOCK,
        "DEPTH": DEPTH,
        "num_warps": 8,
    }
    _blocks_kernel[(T, cdiv(batch.largest, BLOCK))](
        x=x, memory=memory, of_memory=of_memory, base=batch.begin, scale=1 / (2 * sigma**2),
        **shared,
    )  # fmt: skip
    _members_kernel[(T, cdiv(D, _COLUMNS))](
        x=x, out=out, scale=1 / sigma**2, COLUMNS=_COLUMNS, **shared
    )
