"""The kernel associative memory: systems (K + ridge I) c = khat of all clusters side by side.

In fp64: near-duplicates leave K + ridge I a condition of 1 / ridge. The matrices are inverted where
they stand, by the sweep operator over blocks. No cluster waits for another's size: a step takes one
block of every cluster that has so many.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._clusters import spans_of

_BLOCK = 64  # of fp64: 32 registers of each of 256 threads
# Pivots of a matrix with 1 on its diagonal that are nothing but rounding: with ridge 0, duplicates
# leave 1e-16 |x|^2 / sigma^2 or 0, as it happens.
_SMALLEST_PIVOT = tl.constexpr(1e-13)


@triton.jit
def _sweep(block, size, BLOCK: tl.constexpr):
    """Return minus the inverse of a symmetric block's first rows and columns."""
    at = tl.arange(0, BLOCK)
    for pivot in range(0, size):
        here = at == pivot
        row = tl.sum(tl.where(here[:, None], block, 0.0), 0)
        value = tl.sum(tl.where(here, row, 0.0), 0)
        value = tl.where(value > _SMALLEST_PIVOT, value, float("nan"))
        scaled = row / value
        rest = block - row[:, None] * scaled[None, :]
        rest = tl.where(here[:, None], scaled[None, :], rest)
        rest = tl.where(here[None, :], scaled[:, None], rest)
        block = tl.where(here[:, None] & here[None, :], -1 / value, rest)
    return block


@triton.jit
def _pivot_kernel(
    matrix,  # [B, M, M]
    swept,  # [B, M, BLOCK]
    span_cluster,
    span_begin,
    span_first,
    span_end,
    step,
    T,
    M,
    BLOCK: tl.constexpr,
):
    """Multiply the pivot's rows with its inverse; a program has one block of their columns."""
    problem = (tl.program_id(0) // T).to(tl.int64)
    first, end = tl.load(span_first + tl.program_id(0)), tl.load(span_end + tl.program_id(0))
    start = tl.load(span_begin + tl.program_id(0)) + step * BLOCK
    if start < end:
        at = tl.arange(0, BLOCK)
        i, j = start + at, first + at
        rows = matrix + (problem * M + i[:, None]) * M
        inside = (i < end)[:, None]
        pivot = tl.load(rows + i[None, :], mask=inside & (i < end)[None, :], other=0.0)
        pivot = _sweep(pivot, tl.minimum(end - start, BLOCK), BLOCK)
        if first != start:
            own = tl.load(rows + j[None, :], mask=inside & (j < end)[None, :], other=0.0)
            # Beyond its rows the pivot holds 0, or NaN of 0 / 0.
            pivot = tl.where(inside & (i < end)[None, :], -pivot, 0.0)
            pivot = tl.dot(pivot, own, input_precision="ieee", out_dtype=tl.float64)
        to = swept + (problem * M + j[None, :]) * BLOCK + at[:, None]
        tl.store(to, pivot, mask=(j < end)[None, :])


@triton.jit
def _update_kernel(
    matrix,
    swept,
    span_cluster,
    span_begin,
    span_first,
    span_end,
    step,
    T,
    M,
    BLOCK: tl.constexpr,
):
    """Take the pivot out of the other rows; a program writes one block of rows."""
    problem = (tl.program_id(0) // T).to(tl.int64)
    first, end = tl.load(span_first + tl.program_id(0)), tl.load(span_end + tl.program_id(0))
    begin = tl.load(span_begin + tl.program_id(0))
    start = begin + step * BLOCK
    if start < end:
        at = tl.arange(0, BLOCK)
        i, p = first + at, start + at
        rows = matrix + (problem * M + i[:, None]) * M
        swept_rows = swept + problem * M * BLOCK
        inside = (i < end)[:, None]
        of_pivot = tl.load(rows + p[None, :], mask=inside & (p < end)[None, :], other=0.0)
        own = tl.load(swept_rows + i[:, None] * BLOCK + at[None, :], mask=inside, other=0.0)
        for column in range(begin, end, BLOCK):
            j = column + at
            there = (j < end)[None, :]
            pivot = tl.load(swept_rows + j[None, :] * BLOCK + at[:, None], mask=there, other=0.0)
            # Of the last block fewer rows were swept than are stored.
            pivot = tl.where((p < end)[:, None], pivot, 0.0)
            old = tl.load(rows + j[None, :], mask=inside & there, other=0.0)
            new = old - tl.dot(of_pivot, pivot, input_precision="ieee", out_dtype=tl.float64)
            new = tl.where(column == start, own, new)
            new = tl.where(first == start, pivot, new)
            tl.store(rows + j[None, :], new, mask=inside & there)


def invert(matrix: Tensor, starts: Tensor) -> None:
    """Replace the blocks `[start, next start)` `[B, K + 1]` of `[B, M, M]` by minus their inverse.

    NaN in a block that is not positive definite. Elements outside of the blocks are not read.
    """
    B, M, _ = matrix.shape
    spans = spans_of(starts, M, _BLOCK)
    T = spans.first.shape[1]
    swept = matrix.new_empty((B, M, _BLOCK))
    for step in range(triton.cdiv(M, _BLOCK)):
        for kernel in (_pivot_kernel, _update_kernel):
            kernel[(B * T,)](
                matrix, swept, *spans, step, T, M, BLOCK=_BLOCK, num_warps=8, num_stages=1
            )


@triton.jit
def _multiply_kernel(
    matrix,  # [B, M, M]
    order,  # [B, M] column of the weights that a row of the matrix belongs to
    weights,  # [B * R, M]
    out,  # [B * R, M]
    span_cluster,
    span_begin,
    span_first,
    span_end,
    T,
    R,
    M,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    problem = (tl.program_id(0) // T).to(tl.int64)
    first, end = tl.load(span_first + tl.program_id(0)), tl.load(span_end + tl.program_id(0))
    begin = tl.load(span_begin + tl.program_id(0))
    if begin < end:
        r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        i = first + tl.arange(0, BLOCK)
        rows = (problem * R + r[:, None]) * M
        total = tl.full((ROWS, BLOCK), 0, tl.float64)
        for start in range(begin, end, DEPTH):
            j = start + tl.arange(0, DEPTH)
            column = tl.load(order + problem * M + j, mask=j < end, other=0)
            inside = (r < R)[:, None] & (j < end)[None, :]
            weight = tl.load(weights + rows + column[None, :], mask=inside, other=0.0)
            inside = (j < end)[:, None] & (i < end)[None, :]
            at = (problem * M + j[:, None]) * M + i[None, :]
            own = tl.load(matrix + at, mask=inside, other=0.0)
            total = tl.dot(
                weight.to(tl.float64), own, total, input_precision="ieee", out_dtype=tl.float64
            )
        column = tl.load(order + problem * M + i, mask=i < end, other=0)
        inside = (r < R)[:, None] & (i < end)[None, :]
        tl.store(out + rows + column[None, :], -total, mask=inside)


def solve(
    inverse: Tensor,  # [B, M, M] as `invert` leaves it
    starts: Tensor,  # [B, K + 1]
    order: Tensor,  # [B, M]
    weights: Tensor,  # [B * R, M]
) -> Tensor:  # [B * R, M] fp64
    """Return the solutions for every row's clusters; 0 in columns that are in none."""
    B, M, _ = inverse.shape
    R = weights.shape[0] // B
    rows = 64 if R > 16 else 16
    spans = spans_of(starts, M, _BLOCK)
    T = spans.first.shape[1]
    out = torch.zeros(weights.shape, dtype=torch.float64, device=weights.device)
    _multiply_kernel[(B * T, triton.cdiv(R, rows))](
        inverse, order, weights, out, *spans, T, R, M, ROWS=rows, BLOCK=_BLOCK, DEPTH=16,
        num_warps=4, num_stages=2,
    )  # fmt: skip
    return out
