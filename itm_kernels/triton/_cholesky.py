"""Batched Cholesky factorization of K + ridge I of every cluster, in blocks of 64 x 64.

It is in fp64, because near-duplicates give K + ridge I a condition number of 1 / ridge. Only lower
blocks are stored, one row of blocks after another. Diagonal blocks hold the inverse of their
factor, the form in which they are used. Entries of K are computed on the fly.

Every factor is divided into the same number of panels, so that the number of launches does not
depend on cluster sizes. A panel takes three launches: write its blocks of K + ridge I minus the
products of earlier panels, factorize its diagonal blocks (one program per cluster), and solve the
blocks below.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._cluster_batches import BLOCK, ClusterBatch
from itm_kernels.triton._clusters import spans_of, tiles_before
from itm_kernels.triton._inverse_factor import inverse_factor
from itm_kernels.triton._launch import cdiv, jit, next_power_of_2
from itm_kernels.triton._operands import INTERPRETED, contiguous_rows, wide_dtype
from itm_kernels.triton._score_tiles import float_argument

DEPTH = 64 if INTERPRETED else 16  # inner dimension of a product
_MOST_PANELS = 16
_PANEL = 8  # blocks per panel, until the number of panels reaches its limit


@triton.jit
def factor_of_cluster(
    factor,
    starts,
    problem,
    cluster,
    blocks_at_most,  # allocated per problem
    K,
    CLUSTERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return a pointer to a cluster's factor, its first column and the one after its last."""
    starts += problem * (K + 1)
    blocks = tiles_before(starts, cluster, CLUSTERS, BLOCK).to(tl.int64)
    before = tl.sum(blocks * (blocks + 1) // 2, 0)
    begin, end = tl.load(starts + cluster), tl.load(starts + cluster + 1)
    return (
        factor + (tl.cast(problem, tl.int64) * blocks_at_most + before) * (BLOCK * BLOCK),
        begin,
        end,
    )


@triton.jit
def block_row(factor, i, BLOCK: tl.constexpr):
    """Return pointers `[BLOCK, 1]` to the rows of a row of blocks."""
    i = tl.cast(i, tl.int64)
    row = tl.arange(0, BLOCK)[:, None] * ((i + 1) * BLOCK)
    return factor + i * (i + 1) // 2 * (BLOCK * BLOCK) + row


@triton.jit
def transposed_tile(factor, i, column, BLOCK: tl.constexpr, DEPTH: tl.constexpr):
    """Return the tile `[BLOCK, DEPTH]` of the factor's transpose at row block i and a column."""
    lower = tl.cast(column // BLOCK, tl.int64)
    at = factor + lower * (lower + 1) // 2 * (BLOCK * BLOCK) + i * BLOCK
    at += (column % BLOCK + tl.arange(0, DEPTH))[:, None] * ((lower + 1) * BLOCK)
    return tl.trans(tl.load(at + tl.arange(0, BLOCK)[None, :]))


@triton.jit
def _products(rows_i, rows_j, first, last, BLOCK: tl.constexpr, DEPTH: tl.constexpr):
    """Return the product of two rows of blocks over columns [first, last)."""
    depth = tl.arange(0, DEPTH)[None, :]
    total = tl.zeros((BLOCK, BLOCK), tl.float64)
    for column in range(first, last, DEPTH):
        left, right = tl.load(rows_i + column + depth), tl.load(rows_j + column + depth)
        total = tl.dot(left, tl.trans(right), total, input_precision="ieee", out_dtype=tl.float64)
    return total


@triton.jit
def _updated(factor, i, j, first, BLOCK: tl.constexpr, DEPTH: tl.constexpr):
    """Return block i, j minus the products of blocks [first, j) of both rows (Schur complement)."""
    rows_i, rows_j = block_row(factor, i, BLOCK), block_row(factor, j, BLOCK)
    total = _products(rows_i, rows_j, first * BLOCK, j * BLOCK, BLOCK, DEPTH)
    return tl.load(rows_i + j * BLOCK + tl.arange(0, BLOCK)[None, :]) - total


@triton.jit
def _lower_block(factor, i, j, first, BLOCK: tl.constexpr, DEPTH: tl.constexpr):
    """Replace block i, j by that of the factor; its panel starts at block `first`."""
    rows_i, rows_j = block_row(factor, i, BLOCK), block_row(factor, j, BLOCK)
    to = rows_i + j * BLOCK + tl.arange(0, BLOCK)[None, :]
    # Through memory: 64 x 64 operands in registers cost 1,000 spills without DMMA.
    tl.store(to, _updated(factor, i, j, first, BLOCK, DEPTH))
    tl.debug_barrier()  # other threads read the stored values
    lower = _products(rows_i, rows_j, j * BLOCK, (j + 1) * BLOCK, BLOCK, DEPTH)
    tl.debug_barrier()
    tl.store(to, lower)
    tl.debug_barrier()


@triton.jit
def rbf_block(
    rows,  # [M, D]
    row_stride,
    of_m,  # [BLOCK] rows, int64
    of_n,
    D,
    scale: tl.float64,  # 1 / (2 sigma^2)
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Return the RBF kernel K of two sets of rows, `[BLOCK, BLOCK]` in fp64."""
    depth = tl.arange(0, DEPTH)
    total = tl.zeros((BLOCK, BLOCK), tl.float64)
    square_m, square_n = tl.zeros((BLOCK, DEPTH), tl.float64), tl.zeros((BLOCK, DEPTH), tl.float64)
    at_m = rows + of_m[:, None] * row_stride + depth[None, :]
    at_n = rows + of_n[:, None] * row_stride + depth[None, :]
    for d in range(0, D, DEPTH):
        inside = (depth < D - d)[None, :]
        left = tl.load(at_m + d, mask=inside, other=0.0).to(tl.float64)
        right = tl.load(at_n + d, mask=inside, other=0.0).to(tl.float64)
        square_m += left * left
        square_n += right * right
        total = tl.dot(left, tl.trans(right), total, input_precision="ieee", out_dtype=tl.float64)
    square_m, square_n = tl.sum(square_m, 1), tl.sum(square_n, 1)
    distance = square_m[:, None] + square_n[None, :] - 2 * total
    return tl.exp(-tl.where(distance < 0, 0.0, distance) * float_argument(scale, tl.float64))


@jit(do_not_specialize=["blocks_at_most", "T", "step", "steps"])
def _panel_kernel(
    rows,  # [M, D]
    factor,  # [B, size]
    starts,  # [B, K + 1]
    order,  # [B, M] row of every column
    span_cluster,
    span_first,
    row_stride,
    blocks_at_most,
    T,
    K,
    M,
    D,
    step,
    steps,
    scale: tl.float64,  # 1 / (2 sigma^2)
    ridge: tl.float64,
    CLUSTERS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    HAS_ORDER: tl.constexpr,
):
    """Write one block of a panel: K + ridge I minus the products of earlier panels."""
    problem = tl.program_id(0) // T
    cluster = tl.load(span_cluster + tl.program_id(0))
    first = tl.load(span_first + tl.program_id(0))
    own, begin, end = factor_of_cluster(
        factor, starts, problem, cluster, blocks_at_most, K, CLUSTERS, BLOCK
    )
    blocks = (end - begin + BLOCK - 1) // BLOCK
    width = (blocks + steps - 1) // steps
    i, j = (first - begin) // BLOCK, step * width + tl.program_id(1)
    # An empty tile has first column 0, which lies in no cluster but the first.
    if (tl.program_id(1) < width) & (j <= i) & (first < end) & (i < blocks):
        at = tl.arange(0, BLOCK)
        m, n = begin + i * BLOCK + at, begin + j * BLOCK + at
        of_m, of_n = tl.minimum(m, end - 1).to(tl.int64), tl.minimum(n, end - 1).to(tl.int64)
        if HAS_ORDER:
            members = order + problem.to(tl.int64) * M
            of_m, of_n = tl.load(members + of_m), tl.load(members + of_n)
        value = rbf_block(rows, row_stride, of_m, of_n, D, scale, BLOCK, DEPTH)
        value = tl.where((m < end)[:, None] & (n < end)[None, :], value, 0.0)
        diagonal = 1 + tl.where(m < end, float_argument(ridge, tl.float64), 0.0)
        value = tl.where(m[:, None] == n[None, :], diagonal[:, None], value)
        rows_i, rows_j = block_row(own, i, BLOCK), block_row(own, j, BLOCK)
        value -= _products(rows_i, rows_j, 0, step * width * BLOCK, BLOCK, DEPTH)
        tl.store(rows_i + j * BLOCK + at[None, :], value)


@jit(do_not_specialize=["blocks_at_most", "step", "steps"])
def _diagonal_kernel(
    factor,
    starts,
    blocks_at_most,
    K,
    step,
    steps,
    CLUSTERS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Factorize the diagonal blocks of a panel; one program per cluster."""
    problem, cluster = tl.program_id(0) // K, tl.program_id(0) % K
    own, begin, end = factor_of_cluster(
        factor, starts, problem, cluster, blocks_at_most, K, CLUSTERS, BLOCK
    )
    blocks = (end - begin + BLOCK - 1) // BLOCK
    width = (blocks + steps - 1) // steps
    first = step * width
    last = tl.minimum(first + width, blocks)
    to = tl.arange(0, BLOCK)[None, :]
    for j in range(first, last):
        at = block_row(own, j, BLOCK) + j * BLOCK + to
        # Through memory: in the layout of a product, every pivot moved the tile to another one.
        tl.store(at, _updated(own, j, j, first, BLOCK, DEPTH))
        tl.debug_barrier()  # other threads read the stored values
        inverse = inverse_factor(tl.load(at), tl.minimum(end - begin - j * BLOCK, BLOCK), BLOCK)
        tl.store(at, inverse)
        tl.debug_barrier()  # other threads read the stored values
        for i in range(j + 1, last):
            _lower_block(own, i, j, first, BLOCK, DEPTH)


@jit(do_not_specialize=["blocks_at_most", "T", "step", "steps"])
def _below_kernel(
    factor,
    starts,
    span_cluster,
    span_first,
    blocks_at_most,
    T,
    K,
    step,
    steps,
    CLUSTERS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Solve one row of blocks below the diagonal blocks of a panel."""
    problem = tl.program_id(0) // T
    cluster = tl.load(span_cluster + tl.program_id(0))
    first = tl.load(span_first + tl.program_id(0))
    own, begin, end = factor_of_cluster(
        factor, starts, problem, cluster, blocks_at_most, K, CLUSTERS, BLOCK
    )
    width = ((end - begin + BLOCK - 1) // BLOCK + steps - 1) // steps
    i = (first - begin) // BLOCK
    if (i >= (step + 1) * width) & (first < end):
        for j in range(step * width, (step + 1) * width):
            _lower_block(own, i, j, step * width, BLOCK, DEPTH)


def cholesky_factors(
    rows: Tensor,  # [M, D]
    starts: Tensor,  # [B, K + 1]; clusters outside the batch are empty
    order: Tensor | None,  # [B, M] row of every column; None: the same
    sigma: float,
    ridge: float,
    batch: ClusterBatch,
) -> Tensor:  # [B, size] fp64
    """Factorize K + ridge I of every cluster `[start, next start)` of ordered rows.

    A matrix that is not positive definite gives NaN.
    """
    (M, D), (B, K) = rows.shape, (starts.shape[0], starts.shape[1] - 1)
    # The compiler cannot convert bf16 or fp16 rows to fp64 operands (3.7.1, sm_90).
    rows = contiguous_rows(rows.to(wide_dtype(rows)))
    factor = torch.empty((B, batch.size), dtype=torch.float64, device=rows.device)
    spans = spans_of(starts, batch.end - batch.begin, BLOCK)
    T, blocks = spans.first.shape[1], cdiv(batch.largest, BLOCK)
    # Panels are a chain: those of a batch, which holds large clusters, are as narrow as possible.
    panel = _PANEL if batch.largest == M else 1
    steps = min(_MOST_PANELS, cdiv(blocks, panel))
    shared: dict[str, Any] = {
        **{"factor": factor, "starts": starts, "blocks_at_most": batch.size // BLOCK**2},
        **{"K": K, "CLUSTERS": next_power_of_2(K), "steps": steps},
        **{"BLOCK": BLOCK, "DEPTH": DEPTH, "num_warps": 8},
    }
    tiles = {"span_cluster": spans.cluster, "span_first": spans.first, "T": T}
    for step in range(steps):
        _panel_kernel[(B * T, cdiv(blocks, steps))](
            rows=rows, order=starts if order is None else order, row_stride=rows.stride(0), M=M,
            D=D, step=step, scale=1 / (2 * sigma**2), ridge=ridge, HAS_ORDER=order is not None,
            **tiles, **shared,
        )  # fmt: skip
        _diagonal_kernel[(B * K,)](step=step, **shared)
        if step < steps - 1:
            _below_kernel[(B * T,)](step=step, **tiles, **shared)
    return factor
