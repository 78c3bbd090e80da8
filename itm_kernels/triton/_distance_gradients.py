"""Gradients of squared and Euclidean distances: (sum_m w) x - W y, and differences of close pairs.

W y is a library product. Pairs whose distance is far below their norms are left out of it
(`_score_gradients`); the last step adds their differences directly, tile by tile. A flag per tile
marks those that have such pairs.
"""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from itm_kernels.triton import _score_gradients
from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._metrics import MetricOperands, write_matrix
from itm_kernels.triton._operands import stored_dtype, tile_of
from itm_kernels.triton._products import add_product, row_parts, weights_empty
from itm_kernels.triton._score_gradients import blocks, write_score_gradients


@jit
def _distance_gradients_kernel(
    x,  # [R, D]
    y,  # [M, D]
    close,  # [R, M] weights of close pairs, written in tiles that have any
    has_close,  # [row tiles, column tiles]
    sums,  # [column tiles, R]
    product,  # [R, D]
    factor,  # [R]
    unit,  # []
    out,  # [R, D]
    x_stride,
    y_stride,
    R,
    M,
    D,
    FACTORS: tl.constexpr,
    TILE: tl.constexpr,  # columns per flag
    FLAGS: tl.constexpr,  # flags tested at once
    ROWS: tl.constexpr,  # rows per flag
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(n, R - 1).to(tl.int64)
    depth = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    inside = (depth < D)[None, :]
    DTYPE: tl.constexpr = product.dtype.element_ty
    here = tl.load(x + rows[:, None] * x_stride + depth[None, :], inside, 0.0).to(DTYPE)
    tiles = tl.cdiv(M, TILE)
    weight = tl.zeros((ROWS,), DTYPE)
    for tile in range(0, tiles):
        weight += tl.load(sums + tl.cast(tile, tl.int64) * R + rows)
    total = weight[:, None] * here - tl.load(
        product + rows[:, None] * D + depth[None, :], inside, 0.0
    )
    total /= tl.load(unit)
    if FACTORS:
        total /= tl.load(factor + rows)[:, None]
    flags = has_close + tl.program_id(0) * tiles
    for first in range(0, tiles, FLAGS):
        flag = first + tl.arange(0, FLAGS)
        if tl.max(tl.load(flags + flag, flag < tiles, 0), 0) > 0:
            for tile in range(first, tl.minimum(first + FLAGS, tiles)):
                if tl.load(flags + tile) > 0:
                    for m_first in range(tile * TILE, tl.minimum((tile + 1) * TILE, M), COLUMNS):
                        m = m_first + tl.arange(0, COLUMNS)
                        there = (m < M)[None, :]
                        pair_weight = tl.load(close + rows[:, None] * M + m[None, :], there, 0.0)
                        if tl.max(tl.max((pair_weight != 0).to(tl.int32), 1), 0) > 0:
                            at = m.to(tl.int64)[:, None] * y_stride + depth[None, :]
                            other = tl.load(y + at, (m < M)[:, None] & inside, 0.0).to(DTYPE)
                            difference = here[:, None, :] - other[None, :, :]
                            total += tl.sum(pair_weight[:, :, None] * difference, 1)
    tl.store(out + n.to(tl.int64)[:, None] * D + depth[None, :], total, (n < R)[:, None] & inside)


class ClosePairs:
    """Flags of a block's tiles with close pairs, and the sums of the other pairs' weights."""

    def __init__(self, R: int, M: int, like: Tensor) -> None:
        rows, columns = (
            cdiv(R, _score_gradients.ROWS),
            cdiv(M, _score_gradients.COLUMNS),
        )
        self.sums = torch.empty((columns, R), dtype=like.dtype, device=like.device)
        self.has_close = torch.empty((rows, columns), dtype=torch.int32, device=like.device)

    def gradient(
        self,
        x: Tensor,  # [R, D]
        y: Tensor,  # [M, D]
        weights: Tensor,  # [R, M] of close pairs
        product: Tensor,  # [R, D]
        factor: Tensor,  # [R], or [0]
        unit: Tensor,
        out: Tensor,  # [R, D]
    ) -> None:
        """Write a block's gradient."""
        (R, M), D = weights.shape, x.shape[1]
        tile = tile_of("weighted_difference", R, M, D)
        grid = cdiv(R, _score_gradients.ROWS), cdiv(D, tile.depth)
        _distance_gradients_kernel[grid](
            x, y, weights, self.has_close, self.sums, product, factor, unit, out,
            x.stride(0), y.stride(0), R, M, D, FACTORS=factor.shape[0] > 0,
            TILE=_score_gradients.COLUMNS, FLAGS=64,
            **{**tile.options(), "ROWS": _score_gradients.ROWS},
        )  # fmt: skip


def empty_gradient(x: Tensor) -> Tensor:
    """Allocate the gradient of x, in the dtype in which kernels store it."""
    return torch.empty(x.shape, dtype=stored_dtype(x.dtype), device=x.device)


def distance_gradient(
    x: Tensor,  # [N, D]
    y: Tensor,  # [M, D]
    found: MetricOperands,
    unit: Tensor,  # []
    known: dict[str, Any],  # arguments of `_score_gradients.write_score_gradients`
) -> Tensor:  # [N, D]
    """Return the gradient of x of a weighted sum of Euclidean or squared distances."""
    (N, D), M, both = x.shape, y.shape[0], found.both
    assert both is not None
    assert both.x_factor is not None
    gradient = empty_gradient(x)
    _, rows = row_parts(both, D)
    known = {
        **{"x_factor": both.x_factor, "y_factor": both.y_factor, "FACTORS": len(both.x_factor) > 0},
        **{"x_square": found.raw.x_term, "y_square": found.raw.y_term},
        **{**known, "unit": unit, "CLOSE": True},
    }
    # 8 bytes per pair: a block's distances and two parts of weights.
    for block in blocks(N, M, D, 8):
        R = block.stop - block.start
        compared = {"key": write_matrix(found, unit.new_empty((R, M)), first_row=block.start)}
        if known["SOURCE"] == "ranks":
            other = unit.new_empty((M, R))
            compared["other"] = write_matrix(found, other, first_column=block.start)
        close = ClosePairs(R, M, unit)
        weights = weights_empty(R, M, x)
        if known["SOURCE"] == "given" and weights.dtype.itemsize == 2 and weights.shape[0] == 1:
            # Unequal gradients of rows with unequal norms: with one part the error exceeds twice
            # eager's.
            weights = weights_empty(2 * R, M, x).unflatten(1, (2, R))[0]
        write_score_gradients(
            weights, block.start, x, **known, **compared, sums=close.sums, has_close=close.has_close
        )
        product = add_product(None, weights, rows)
        close.gradient(
            x[block], y, compared["key"], product, both.x_factor[block], unit, gradient[block]
        )
        del compared, close, weights, product
    return gradient.to(x.dtype)
