"""The kernel associative memory: systems (K + ridge I) C = R of all clusters side by side.

A program takes some right-hand sides of a cluster through its factor (`_cholesky`), block by block:
launches depend neither on the clusters' sizes nor on the number of right-hand sides, unless the
factors are too large to exist all at once (`AssociativeMemory`).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton import _cluster_batches
from itm_kernels.triton._cholesky import DEPTH, block_row, cholesky_factors, factor_of_cluster
from itm_kernels.triton._cluster_batches import BLOCK, ClusterBatch, single_batch

_COLUMNS = 64  # right-hand sides of a program
_PROGRAMS = 128  # below that, programs of a batch take half as many right-hand sides


@triton.jit
def _explained(
    factor,
    known,  # of the cluster's first row
    column,  # [1, COLUMNS] int32
    stride,
    i,
    first,
    last,
    end,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    UP: tl.constexpr,
):
    """Return rows of block i of the factor, or up of its transpose, times what is known."""
    depth = tl.arange(0, DEPTH)
    rows = block_row(factor, i, BLOCK)
    total = tl.zeros((BLOCK, COLUMNS), tl.float64)
    for begin in range(first, last, DEPTH):
        if UP:
            lower = tl.cast(begin // BLOCK, tl.int64)
            at = factor + lower * (lower + 1) // 2 * (BLOCK * BLOCK) + i * BLOCK
            at += (begin % BLOCK + depth)[:, None] * ((lower + 1) * BLOCK)
            left = tl.trans(tl.load(at + tl.arange(0, BLOCK)[None, :]))
        else:
            left = tl.load(rows + begin + depth[None, :])
        # A scalar in 64 bits, the tile in 32: registers.
        at = known + tl.cast(begin, tl.int64) * stride + (depth[:, None] * stride + column)
        right = tl.load(at, mask=(begin + depth < end)[:, None], other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee", out_dtype=tl.float64)
    return total


@triton.jit(do_not_specialize=["blocks_at_most", "M", "base"])
def _substitute_kernel(
    factor,
    starts,
    order,
    right,  # of problem b, row m, column c at b * problem_stride + m * row_stride + c
    work,  # [B, M, C] fp64, of one problem from row `base` on
    out,  # [B, M, C]
    blocks_at_most,
    base,
    K,
    M,
    C,
    right_problem,
    right_row,
    CLUSTERS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    UP: tl.constexpr,
    HAS_OUT: tl.constexpr,
):
    """Solve with a cluster's factor down its rows, or up with its transpose, for some columns."""
    problem, cluster = tl.program_id(0) // K, tl.program_id(0) % K
    own, begin, end = factor_of_cluster(
        factor, starts, problem, cluster, blocks_at_most, K, CLUSTERS, BLOCK
    )
    end -= begin
    problem = problem.to(tl.int64)
    first = problem * M + begin
    # Columns beyond the last are computed as the last, and not stored where others are read.
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = (column < C)[None, :]
    column = tl.minimum(column, C - 1)[None, :]
    known = work + (first - base) * C
    at_row = tl.arange(0, BLOCK)
    blocks = (end + BLOCK - 1) // BLOCK
    for step in range(0, blocks):
        i = blocks - 1 - step if UP else step
        begin_i, last = i * BLOCK, (i + 1) * BLOCK
        from_, to = (last, blocks * BLOCK) if UP else (0, begin_i)
        rest = _explained(own, known, column, C, i, from_, to, end, COLUMNS, BLOCK, DEPTH, UP)
        inside = there & (begin_i + at_row < end)[:, None]
        row = begin + begin_i + at_row.to(tl.int64)
        if HAS_ORDER:
            row = tl.load(order + first + begin_i + at_row, mask=begin_i + at_row < end, other=0)
        own_rows = known + tl.cast(begin_i, tl.int64) * C
        if UP:
            at = own_rows + (at_row[:, None] * C + column)
        else:
            at = right + problem * right_problem + row[:, None] * right_row + column
        rest = tl.load(at, mask=inside, other=0.0).to(tl.float64) - rest
        tl.debug_barrier()  # between the threads that write and those that read
        tl.store(own_rows + (at_row[:, None] * C + column), rest, mask=inside)
        tl.debug_barrier()
        rest = _explained(own, known, column, C, i, begin_i, last, end, COLUMNS, BLOCK, DEPTH, UP)
        tl.debug_barrier()
        tl.store(own_rows + (at_row[:, None] * C + column), rest, mask=inside)
        tl.debug_barrier()
        if UP and HAS_OUT:
            at = out + (problem * M + row)[:, None] * C + column
            tl.store(at, rest.to(out.dtype.element_ty), mask=inside)


class ClusterSystems(NamedTuple):
    """Factors of K + ridge I: of some clusters of one clustering, or of every anchor's."""

    factor: Tensor  # [B, size] fp64
    starts: Tensor  # [B, K + 1]
    order: Tensor | None  # [B, M] row of every column; None: as they come
    batch: ClusterBatch

    def solve(
        self,
        right: Tensor,  # [B, M, C], elements of a row side by side
        out: Tensor | None,  # [B, M, C] to write where a row is in one of the clusters
    ) -> Tensor:  # [B, m, C] fp64, of the batch's rows
        """Return the solutions of all clusters; without `out`, 0 in rows that are in none.

        With an order they are in the order of columns here, and of rows in `out`.
        """
        B, M, C = right.shape
        K, batch = self.starts.shape[1] - 1, self.batch
        make = torch.zeros if out is None else torch.empty
        work = make((B, batch.end - batch.begin, C), dtype=torch.float64, device=right.device)
        columns = min(_COLUMNS, max(16, triton.next_power_of_2(C)))
        if batch.clusters < K and batch.clusters * triton.cdiv(C, columns) < _PROGRAMS:
            columns = min(columns, _COLUMNS // 2)
        for up in (False, True):
            _substitute_kernel[(B * K, triton.cdiv(C, columns))](
                self.factor, self.starts, self.starts if self.order is None else self.order,
                right, work, work if out is None else out, self.factor.shape[1] // BLOCK**2,
                batch.begin, K, M, C, right.stride(0), right.stride(1),
                CLUSTERS=triton.next_power_of_2(K), BLOCK=BLOCK, DEPTH=DEPTH, COLUMNS=columns,
                HAS_ORDER=self.order is not None, UP=up, HAS_OUT=out is not None, num_warps=8,
                num_stages=3 if columns == _COLUMNS else 2,
            )  # fmt: skip
        return work


def factorize(
    rows: Tensor,  # [M, D]
    starts: Tensor,  # [B, K + 1]
    order: Tensor | None,  # [B, M]
    sigma: float,
    ridge: float,
    batch: ClusterBatch | None = None,  # None: all clusters
) -> ClusterSystems:
    """Return the systems of every cluster `[start, next start)` of rows in that order."""
    batch = batch or single_batch(rows.shape[0], starts.shape[1] - 1)
    factor = cholesky_factors(rows, starts, order, sigma, ridge, batch)
    return ClusterSystems(factor, starts, order, batch)


class AssociativeMemory:
    """K + ridge I of one clustering of sorted rows, to be solved for any right-hand sides."""

    def __init__(
        self,
        rows: Tensor,  # [M, D] in the order of columns
        starts: Tensor,  # [1, K + 1]
        sigma: float,
        ridge: float,
        keep: bool,  # there is a second round over the batches: keep factors that all exist at once
    ) -> None:
        self.given = rows, starts, sigma, ridge
        self.batches = _cluster_batches.batches_of(starts, rows.shape[0], rows.shape[1], keep)
        self._keep = keep and self.batches == [single_batch(rows.shape[0], starts.shape[1] - 1)]
        self._kept: ClusterSystems | None = None

    def factorized(self, last: Tensor | None = None) -> Iterator[ClusterSystems]:
        """Yield the systems of all clusters in batches, each of which is gone before the next.

        The last time, factors may be overwritten, and rows are handed in: in fp32 or better.
        """
        rows, starts, sigma, ridge = self.given
        if last is not None:
            self.given = (last, starts, sigma, ridge)
            rows = last
        M = rows.shape[0]
        for batch in self.batches:
            found, self._kept = self._kept, None
            if found is None:
                own = starts if batch.largest == M else starts.clamp(batch.begin, batch.end)
                found = factorize(rows, own, None, sigma, ridge, batch)
            if self._keep and last is None:
                self._kept = found
            yield found
            del found

    def solve(self, right: Tensor, dtype: torch.dtype) -> Tensor:  # [M, C] -> [M, C]
        """Return the solutions of all clusters; 0 in rows that are in none."""
        out = torch.zeros(right.shape, dtype=dtype, device=right.device)
        for one in self.factorized():
            one.solve(right[None], out[None])
            del one
        return out
