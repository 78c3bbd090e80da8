"""The kernel associative memory: solve (K + ridge I) C = R for every cluster.

A program substitutes a tile of right-hand sides through the Cholesky factor of one cluster
(`_cholesky`), block by block. The number of launches depends neither on cluster sizes nor on the
number of right-hand sides, unless the factors do not fit in memory together (`AssociativeMemory`).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton import _cluster_batches
from itm_kernels.triton._cholesky import (
    DEPTH,
    block_row,
    cholesky_factors,
    factor_of_cluster,
    transposed_tile,
)
from itm_kernels.triton._cluster_batches import BLOCK, ClusterBatch, single_batch
from itm_kernels.triton._launch import cdiv, jit, next_power_of_2

_COLUMNS = 64  # right-hand sides per program
_PROGRAMS = 128  # with fewer programs per batch, a program takes half as many right-hand sides


@triton.jit
def _factor_times_solved(
    factor,
    known,  # solved values, from the cluster's first row on
    column,  # [1, COLUMNS] int32
    there,  # [1, COLUMNS] mask
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
    """Return row block i of the factor, with UP of its transpose, times the solved values."""
    depth = tl.arange(0, DEPTH)
    rows = block_row(factor, i, BLOCK)
    total = tl.zeros((BLOCK, COLUMNS), tl.float64)
    for begin in range(first, last, DEPTH):
        if UP:
            left = transposed_tile(factor, i, begin, BLOCK, DEPTH)
        else:
            left = tl.load(rows + begin + depth[None, :])
        # A 64-bit scalar and 32-bit offsets in the tile save registers.
        at = known + tl.cast(begin, tl.int64) * stride + (depth[:, None] * stride + column)
        right = tl.load(at, mask=(begin + depth < end)[:, None] & there, other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee", out_dtype=tl.float64)
    return total


@jit(do_not_specialize=["blocks_at_most", "M", "base"])
def _substitute_kernel(
    factor,
    starts,
    order,
    right,  # [B, M, C] with strides right_problem, right_row and 1
    work,  # [B, m, C] fp64; rows start at `base`
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
    """Substitute a tile of columns forward through a factor, with UP back through its transpose."""
    problem, cluster = tl.program_id(0) // K, tl.program_id(0) % K
    own, begin, end = factor_of_cluster(
        factor, starts, problem, cluster, blocks_at_most, K, CLUSTERS, BLOCK
    )
    end -= begin
    problem = problem.to(tl.int64)
    first = problem * M + begin
    # Masked and not clamped: the compiler would not know that clamped columns are consecutive.
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    there = column < C
    known = work + (first - base) * C
    at_row = tl.arange(0, BLOCK)
    blocks = (end + BLOCK - 1) // BLOCK
    for step in range(0, blocks):
        i = blocks - 1 - step if UP else step
        begin_i, last = i * BLOCK, (i + 1) * BLOCK
        from_, to = (last, blocks * BLOCK) if UP else (0, begin_i)
        rest = _factor_times_solved(
            own, known, column, there, C, i, from_, to, end, COLUMNS, BLOCK, DEPTH, UP
        )
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
        tl.debug_barrier()  # other threads read the stored values
        tl.store(own_rows + (at_row[:, None] * C + column), rest, mask=inside)
        tl.debug_barrier()
        rest = _factor_times_solved(
            own, known, column, there, C, i, begin_i, last, end, COLUMNS, BLOCK, DEPTH, UP
        )
        tl.debug_barrier()
        tl.store(own_rows + (at_row[:, None] * C + column), rest, mask=inside)
        tl.debug_barrier()
        if UP and HAS_OUT:
            at = out + (problem * M + row)[:, None] * C + column
            tl.store(at, rest.to(out.dtype.element_ty), mask=inside)


class ClusterSystems(NamedTuple):
    """Factorized systems of a batch of clusters of one clustering, or of every anchor's."""

    factor: Tensor  # [B, size] fp64
    starts: Tensor  # [B, K + 1]
    order: Tensor | None  # [B, M] row of every column; None: the same
    batch: ClusterBatch

    def solve(
        self,
        right: Tensor,  # [B, M, C], contiguous rows
        out: Tensor | None,  # [B, M, C] to write, for rows in one of the clusters
    ) -> Tensor:  # [B, m, C] fp64, of the batch's rows
        """Return the solutions of all clusters; without `out`, rows in no cluster are 0.

        The result is in the order of columns, `out` in the order of rows.
        """
        B, M, C = right.shape
        K, batch = self.starts.shape[1] - 1, self.batch
        make = torch.zeros if out is None else torch.empty
        work = make((B, batch.end - batch.begin, C), dtype=torch.float64, device=right.device)
        columns = min(_COLUMNS, max(16, next_power_of_2(C)))
        if batch.clusters < K and batch.clusters * cdiv(C, columns) < _PROGRAMS:
            columns = min(columns, _COLUMNS // 2)
        for up in (False, True):
            _substitute_kernel[(B * K, cdiv(C, columns))](
                self.factor, self.starts, self.starts if self.order is None else self.order,
                right, work, work if out is None else out, self.factor.shape[1] // BLOCK**2,
                batch.begin, K, M, C, right.stride(0), right.stride(1),
                CLUSTERS=next_power_of_2(K), BLOCK=BLOCK, DEPTH=DEPTH, COLUMNS=columns,
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
    """Factorize the systems of every cluster `[start, next start)` of ordered rows."""
    batch = batch or single_batch(rows.shape[0], starts.shape[1] - 1)
    factor = cholesky_factors(rows, starts, order, sigma, ridge, batch)
    return ClusterSystems(factor, starts, order, batch)


class AssociativeMemory:
    """K + ridge I of one clustering of sorted rows, solved in one batch of clusters or several."""

    def __init__(
        self,
        rows: Tensor,  # [M, D] in the order of columns
        starts: Tensor,  # [1, K + 1]
        sigma: float,
        ridge: float,
        keep: bool,  # systems are needed twice: keep the factors if one batch holds all clusters
    ) -> None:
        self.given = rows, starts, sigma, ridge
        self.batches = _cluster_batches.batches_of(starts, rows.shape[0], rows.shape[1], keep)
        self._keep = keep and self.batches == [single_batch(rows.shape[0], starts.shape[1] - 1)]
        self._kept: ClusterSystems | None = None

    def factorized(self, last: Tensor | None = None) -> Iterator[ClusterSystems]:
        """Yield the systems of every batch of clusters; drop one before asking for the next.

        Args:
            last: `[M, D]`, the rows in fp32 or fp64, given at the last use. The caller may then
                overwrite the factors.
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
        """Return the solutions of all clusters; rows in no cluster are 0."""
        out = torch.zeros(right.shape, dtype=dtype, device=right.device)
        for one in self.factorized():
            one.solve(right[None], out[None])
            del one
        return out
