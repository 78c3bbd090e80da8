"""Tiles of similarities or distances, and weighted sums of differences of rows.

Dot products run on tensor cores. Squared distances are expanded as |x|^2 + |y|^2 - 2 x.y. Those of
close pairs, where this cancels, are replaced (`_close_distances`). l1 is computed from differences.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton import _scaled_operands
from itm_kernels.triton._close_distances import are_close, replace_close_distances
from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._operands import (
    Operands,
    ScoreOperands,
    Tile,
    constants_of,
    contiguous_rows,
    stored_dtype,
    tile_of,
    wide_dtype,
)
from itm_kernels.triton._score_tiles import (
    difference_tile,
    paired_scores,
    program_tile,
    scale_scores,
    score_tile,
    wide_type,
)
from itm_kernels.triton._tile_table import architecture

EXPANDED = ("l2", "sqeuclidean")  # metrics that are expanded into products


@jit
def _squared_norms_kernel(x, out, stride, N, D, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(n, N - 1)
    tl.store(out + n, paired_scores(x, x, stride, stride, D, rows, rows, DEPTH), mask=n < N)


def row_squared_norms(x: Tensor) -> Tensor:  # [N, D] -> [N]
    """Return |x|^2 of contiguous rows."""
    N, D = x.shape
    out = torch.empty(N, dtype=wide_dtype(x), device=x.device)
    _squared_norms_kernel[(cdiv(N, 16),)](x, out, x.stride(0), N, D, ROWS=16, DEPTH=128)
    return out


class RawRows(NamedTuple):
    """Kernel argument: the rows of `metric_tile` in their own precision, and the metric."""

    raw_x: Tensor  # [.., D]
    raw_y: Tensor
    raw_x_stride: int
    raw_y_stride: int
    raw_width: int
    x_term: Tensor  # squared norms, for distances
    y_term: Tensor
    METRIC: tl.constexpr
    CHUNK: tl.constexpr  # elements of D per step of a difference


@triton.jit
def metric_tile(
    operands,  # `ScoreOperands`
    raw,  # `RawRows`
    rows,
    columns,
):
    """Return the similarities or distances `[R, C]` of some rows of x and some rows of y.

    Euclidean and squared distances of close pairs are inaccurate (`_close_distances`).
    """
    METRIC: tl.constexpr = raw.METRIC
    if METRIC == "l1":
        compared = difference_tile(
            raw.raw_x, raw.raw_y, raw.raw_x_stride, raw.raw_y_stride, raw.raw_width, rows, columns,
            raw.CHUNK, False,
        )  # fmt: skip
    else:
        EXPANDED: tl.constexpr = METRIC == "l2" or METRIC == "sqeuclidean"
        compared = score_tile(operands, rows, columns, ROUNDED=EXPANDED)
        compared = scale_scores(operands, compared, rows, columns)
        if EXPANDED:
            lengths = tl.load(raw.x_term + rows)[:, None] + tl.load(raw.y_term + columns)[None, :]
            compared = lengths - 2 * compared
            compared = tl.where(compared < 0, 0.0, compared)
            if METRIC == "l2":
                compared = tl.sqrt(compared)
    return compared


class MetricOperands(NamedTuple):
    """Rows prepared for `metric_tile`, and the tile."""

    scores: ScoreOperands
    raw: RawRows
    tile: Tile
    both: Operands | None  # None: l1, which has no products

    def arguments(self) -> dict[str, Any]:
        """Return the operands as a kernel's arguments, with the options of a launch."""
        warps, stages = self.tile.warps, self.tile.stages
        found = {"operands": self.scores, "raw": self.raw}
        return {**found, "num_warps": warps, "num_stages": stages}

    def from_row(self, side: str, first: int) -> "MetricOperands":
        """Return the operands with views of the rows of one side (x or y) from `first` on."""

        def views(of: NamedTuple, *names: str) -> dict[str, Any]:
            found = {name: getattr(of, name) for name in names}
            return {
                name: each[..., first:, :] if each.dim() > 1 else each[first:]
                for name, each in found.items()
                if each is not None
            }

        scores = self.scores._replace(**views(self.scores, side, f"{side}_factor"))
        raw = self.raw._replace(**views(self.raw, f"raw_{side}", f"{side}_term"))
        return self._replace(scores=scores, raw=raw)


def metric_operands(
    x: Tensor,  # [.., D], contiguous rows
    y: Tensor,
    metric: str,
    shape: tuple[int, int],
    square: bool = False,
    ids: bool = False,
) -> MetricOperands:
    """Prepare rows for a metric.

    Args:
        x: one side.
        y: the other side.
        metric: "dot", "cosine", "l1", "l2" or "sqeuclidean".
        shape: of the matrix.
        square: tiles are square, as in the upper triangle.
        ids: pairs have ids.
    """
    chunk = tile_of("difference", *shape, x.shape[1])
    terms = [x, y]  # placeholders, for metrics that do not read them
    if metric in EXPANDED:
        terms = [row_squared_norms(x)]
        terms.append(terms[0] if y is x else row_squared_norms(y))
    both = None
    if metric == "l1":
        tile = chunk
    else:
        both = _scaled_operands.scaled_operands(x, y, metric == "cosine", shape=shape)
        tile = both.tile
        if square and both.kind == "ieee":
            tile = tile._replace(warps=8)  # scores, bounds and a mask: 5 spills in 4 warps
        elif (square or metric in EXPANDED) and architecture() == 100:
            # 128 x 128 causes 4 to 6 spills, 82 with the sums of chunks; 16 warps cannot use
            # tensor cores.
            tile = tile._replace(rows=64, columns=64, warps=4)
    side = min(tile.rows, tile.columns)
    tile = tile._replace(rows=side, columns=side) if square else tile
    if both is None:
        constants = constants_of(*tile[:3], 1, "ieee", 1, True, False)
        scores = ScoreOperands(x, y, 0, 0, 0, 0, 0, None, None, *constants)
    else:
        scores = both.arguments(tile)["operands"]
    constants = constants_of(metric, chunk.depth)
    raw = RawRows(x, y, x.stride(0), y.stride(0), x.shape[1], *terms, *constants)
    return MetricOperands(scores, raw, tile, both)


@jit
def _matrix_kernel(
    operands,  # `ScoreOperands` of B * N and B * M rows
    raw,  # `RawRows`
    out,  # [B, N, M]
    has_close,  # [B, row tiles, column tiles] whether a tile of distances has close pairs
    N,
    M,
):
    ROWS: tl.constexpr = operands.ROWS
    COLUMNS: tl.constexpr = operands.COLUMNS
    tiles = tl.cdiv(N, ROWS) * tl.cdiv(M, COLUMNS)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    program = tl.program_id(0) % tiles
    n, m, row_tile, column_tile = program_tile(program, ROWS, COLUMNS, N, M)
    rows, columns = batch * N + tl.minimum(n, N - 1), batch * M + tl.minimum(m, M - 1)
    compared = metric_tile(operands, raw, rows, columns)
    # Row pointers plus 32-bit column offsets: 64-bit offsets per element cause 23 spills.
    at = out + (batch * N + n)[:, None] * M + m[None, :]
    tl.store(at, compared, mask=(n < N)[:, None] & (m < M)[None, :])
    if raw.METRIC == "l2" or raw.METRIC == "sqeuclidean":
        close = tl.max(are_close(raw, compared, rows, columns).to(tl.int32))
        flag = batch * tiles + row_tile * tl.cdiv(M, COLUMNS) + column_tile
        tl.store(has_close + flag, close)


def write_matrix(
    found: MetricOperands,
    out: Tensor,  # [.., N, M] to write
    batches: int = 1,
    first_row: int = 0,
    first_column: int = 0,
) -> Tensor:
    """Write the similarities or distances of some rows of x and some rows of y."""
    N, M = out.shape[-2:]
    # Views: passing the first row as an argument causes 3 spills on sm_100.
    for side, first in (("x", first_row), ("y", first_column)):
        if first:
            found = found.from_row(side, first)
    programs, tile = batches * found.tile.programs(N, M)[0], found.tile[:2]
    if found.raw.METRIC.value not in EXPANDED:
        _matrix_kernel[(programs,)](**found.arguments(), out=out, has_close=out, N=N, M=M)
        return out
    has_close = torch.empty(programs, dtype=torch.int32, device=out.device)
    _matrix_kernel[(programs,)](**found.arguments(), out=out, has_close=has_close, N=N, M=M)
    replace_close_distances(found.raw, has_close, out, batches, tile)
    return out


def matrices(
    x: Tensor,  # [B * N, D]
    y: Tensor,  # [B * M, D]
    batches: int,
    metric: str,
    dtype: torch.dtype,
) -> Tensor:  # [B, N, M]
    """Return the similarities or distances of all rows of x and y in every batch."""
    N, M = x.shape[0] // batches, y.shape[0] // batches
    x, y = contiguous_rows(x), contiguous_rows(y)
    out = torch.empty((batches, N, M), dtype=stored_dtype(dtype), device=x.device)
    return write_matrix(metric_operands(x, y, metric, (N, M)), out, batches).to(dtype)


@jit
def _weighted_differences_kernel(
    x,  # [B * N, D]
    y,  # [B * M, D]
    weight,  # [B, N, M]
    out,  # [B * N, D]
    x_stride,
    y_stride,
    batch_stride,  # of weight
    row_stride,
    column_stride,
    N,
    M,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SIGN: tl.constexpr,
):
    row_tiles = tl.cdiv(N, ROWS)
    batch = (tl.program_id(0) // row_tiles).to(tl.int64)
    n = (tl.program_id(0) % row_tiles) * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(n, N - 1)
    depth = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    inside = (depth < D)[None, :]
    DTYPE: tl.constexpr = wide_type(x.dtype)
    own = batch * N + rows
    here = tl.load(x + own[:, None] * x_stride + depth[None, :], mask=inside, other=0.0).to(DTYPE)
    total = tl.zeros((ROWS, DEPTH), DTYPE)
    for first in range(0, M, COLUMNS):
        m = first + tl.arange(0, COLUMNS)
        at = (batch * M + m)[:, None] * y_stride + depth[None, :]
        there = tl.load(y + at, mask=(m < M)[:, None] & inside, other=0.0).to(DTYPE)
        at = rows[:, None].to(tl.int64) * row_stride + m[None, :].to(tl.int64) * column_stride
        here_weight = tl.load(weight + batch * batch_stride + at, mask=(m < M)[None, :], other=0.0)
        difference = here[:, None, :] - there[None, :, :]
        if SIGN:
            difference = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, difference))
        total += tl.sum(here_weight[:, :, None] * difference, 1)
    tl.store(out + own[:, None] * D + depth[None, :], total, mask=(n < N)[:, None] & inside)


def weighted_differences(
    x: Tensor,  # [B * N, D]
    y: Tensor,  # [B * M, D]
    weight: Tensor,  # [B, N, M]
    sign: bool,
    out: Tensor | None = None,
) -> Tensor:
    """Return the sums over rows of y of weight (x - y), or weight sign(x - y), for every x."""
    (B, N, M), D = weight.shape, x.shape[1]
    if out is None:
        out = torch.empty(x.shape, dtype=weight.dtype, device=x.device)
    tile = tile_of("weighted_difference", N, M, D)
    _weighted_differences_kernel[(B * cdiv(N, tile.rows), cdiv(D, tile.depth))](
        x, y, weight, out, x.stride(0), y.stride(0), *weight.stride(), N, M, D,
        SIGN=sign, **tile.options(),
    )  # fmt: skip
    return out
