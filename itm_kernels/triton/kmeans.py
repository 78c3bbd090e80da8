"""k-means: one launch finds the nearest centroid of every row, another updates the centroids.

Half-precision rows are exact as fp16 times a power of two, and centroids are two fp16 parts: two
products. fp32 rows are two parts as well: three products (`_scaled_operands`). A tile holds all
centroids if it can, so that rows are read once.

With one set of members per anchor every anchor is a problem of its own, and a tile holds the
centroids of several problems.
"""

import math
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._centroids import mean_kernel, sums_kernel
from itm_kernels.triton._gathered_sums import gathered_sums_kernel
from itm_kernels.triton._launch import cdiv, jit, next_power_of_2
from itm_kernels.triton._operands import (
    INTERPRETED,
    Operands,
    contiguous_rows,
    kind_of,
    prepare,
    tile_and_precision,
    wide_dtype,
)
from itm_kernels.triton._scaled_operands import scaled_rows
from itm_kernels.triton._score_tiles import (
    maximum_with_index,
    no_key,
    ordered_key,
    scale_scores,
    score_tile,
    wide_type,
)
from itm_kernels.triton._tile_table import Tile, tile_of

_MOST_COLUMNS = 64  # columns of a tile with several problems
_PROGRAMS = 264  # two per processor of an H100
_ALONE = 256  # up to this many rows are not split: another launch would take longer
# Rows that are gathered: columns of a tile, of 64 bytes per column, and assignments per step. With
# 128 bytes, tf32 has 10 spills on sm_90.
_LEAST_COLUMNS, _GATHERED_COLUMNS = 64, 1024
_ASSIGNMENTS = 4096
_CHAIN = 1024  # rows that a program adds, unless partial sums then exceed the size of the rows


@jit(do_not_specialize=["N", "B"])
def _nearest_kernel(
    operands,  # `ScoreOperands`
    squares,  # [tiles of D, B * K] squared norms of the centroids
    member,  # [B, N]
    assignment,  # [B, N] int32
    N,  # rows of x
    B,
    K,
    tiles,  # tiles of squares
    X_PARTS: tl.constexpr,
    WIDTH: tl.constexpr,  # columns of a problem: a power of two
    HAS_MEMBER: tl.constexpr,
):
    """Write the nearest centroid of every row and problem, -1 for rows that are not members."""
    ROWS: tl.constexpr = operands.ROWS
    COLUMNS: tl.constexpr = operands.COLUMNS
    PROBLEMS: tl.constexpr = COLUMNS // WIDTH
    groups = tl.cdiv(B, PROBLEMS)
    group = (tl.program_id(0) % groups) * PROBLEMS
    n = (tl.program_id(0) // groups) * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(n, N - 1)
    problem = group + tl.arange(0, PROBLEMS)
    column = tl.arange(0, COLUMNS)
    of_column = tl.minimum(group + column // WIDTH, B - 1)
    none: tl.constexpr = no_key(wide_type(operands.x.dtype))
    KEY: tl.constexpr = tl.int64 if wide_type(operands.x.dtype) == tl.float64 else tl.int32
    best = tl.full((ROWS, PROBLEMS), none, KEY)
    nearest = tl.zeros((ROWS, PROBLEMS), tl.int32)
    for first in range(0, K, WIDTH):
        k = first + column % WIDTH
        columns = of_column.to(tl.int64) * K + tl.minimum(k, K - 1)
        scores = score_tile(operands, rows, columns, X_PARTS)
        scores = scale_scores(operands, scores, rows, columns)
        square = tl.zeros((COLUMNS,), scores.dtype)
        for tile in range(0, tiles):
            square += tl.load(squares + tl.cast(tile, tl.int64) * B * K + columns)
        # |x|^2 is the same for every centroid and omitted. NaN is nearest, as in torch.argmin.
        # Columns beyond the last repeat it, and ties go to the lowest column.
        keys = ordered_key(scores - (square / 2)[None, :])
        index = (first + tl.arange(0, WIDTH)).to(tl.int32)
        if PROBLEMS == 1:
            key, found = maximum_with_index(keys, index[None, :], 1)
            key, found = key[:, None], found[:, None]
        else:
            keys = tl.reshape(keys, (ROWS, PROBLEMS, WIDTH))
            key, found = maximum_with_index(keys, index[None, None, :], 2)
        nearest = tl.where(key > best, found, nearest)
        best = tl.maximum(key, best)
    at = problem[None, :].to(tl.int64) * N + n[:, None]
    inside = (n < N)[:, None] & (problem < B)[None, :]
    if HAS_MEMBER:
        nearest = tl.where(tl.load(member + at, mask=inside, other=0) != 0, nearest, -1)
    tl.store(assignment + at, nearest, mask=inside)


def split_rows(M: int, R: int, programs: int, depth: int) -> int:
    """Return how many of M rows a program adds, for R clusters and a number of programs per split.

    The split gives enough programs and short chains, with fewer partial sums than input values.
    """
    splits = max(cdiv(_PROGRAMS, programs), cdiv(M, _CHAIN))
    splits = 1 if M <= _ALONE else max(1, min(splits, M // (4 * R)))
    return cdiv(cdiv(M, splits), depth) * depth


def gathered_splits(M: int, R: int, programs: int) -> int:
    """Return among how many programs the rows of a cluster are divided, if M rows are gathered."""
    splits = max(cdiv(_PROGRAMS // 2, programs), cdiv(M, R * _CHAIN))
    return max(1, min(splits, M // (4 * R)))


def _tile(kind: str, M: int, width: int) -> Tile:
    """Return the tile of the sums: clusters, columns of D, and rows per iteration."""
    name = "sum" if kind in ("half", "parts") else kind
    tile = tile_of(name, M, M, width, "means")
    # Column masks cost hundreds of spills in a large tile; on fp32 units of sm_86 it spills 4.
    if width % tile.columns or kind == "ieee":
        tile = tile_of(name, 1, 1, width, "means")
    # Two stages on fp32 units: 5 spills there.
    return tile._replace(warps=4, stages=1) if kind == "ieee" else tile


class Centroids:
    """Centroids, their operands, and the launches that update both."""

    def __init__(
        self,
        both: Operands,  # rows of x, and a buffer for parts of centroids, or `flat` itself
        rows: Tensor,  # [M, D] rows to sum
        flat: Tensor,  # [R, D] centroids to write
        shape: tuple[int, int],  # B problems and K centroids
        parts: int,  # number of parts of centroids to write
    ) -> None:
        M, (R, D), split = rows.shape[0], flat.shape, both.kind in ("half", "parts")
        tile = _tile(both.kind, *rows.shape)
        # Matrix instructions of sm_90 have 64 rows.
        tile = tile._replace(rows=min(tile.rows, max(64, next_power_of_2(R))))
        self.gathered = shape[0] == 1
        if self.gathered:
            width = max(D, both.y.stride(1))  # the operands' padding is written too
            columns = min(max(_LEAST_COLUMNS, next_power_of_2(width)), _GATHERED_COLUMNS)
            tiles, groups = cdiv(width, columns), R
            self.splits = gathered_splits(M, R, R * tiles)
            length, self.programs = tiles * columns, R * self.splits
            if self.splits > 1:  # `mean_kernel` adds partial sums of few columns
                columns, tiles = _LEAST_COLUMNS, length // _LEAST_COLUMNS
        else:
            columns = tile.columns
            tiles, groups = cdiv(D, columns), cdiv(R, tile.rows)
            of_split = split_rows(M, R, groups * tiles, tile.depth)
            self.splits, length = cdiv(M, of_split), tiles * columns
            self.programs = groups * (tiles if self.splits == 1 else self.splits * (tiles + 1))
        self.squares = flat.new_empty((tiles, R))
        kept = 0 if self.splits == 1 else self.splits  # one split stores no partial sums
        sums, factors = flat.new_empty((kept, R, length)), flat.new_empty((kept, R))
        counts = torch.empty((kept, R), dtype=torch.int32, device=flat.device)
        self.arguments: dict[str, Any] = {
            **{"sums": sums, "factors": factors, "counts": counts},
            **{"centroids": flat, "squares": self.squares, "R": R, "D": D},
            **{"y": both.y, "y_stride": both.y.stride(1), "y_part": both.y.stride(0)},
            **{"y_factor": both.y_factor, "PARTS": parts, "POWERS": split},
            **{"ROUND": both.kind == "tf32" and parts > 0, "COLUMNS": columns},
        }
        self.of_sums: dict[str, Any]
        if self.gathered:
            chunk = min(next_power_of_2(M), _ASSIGNMENTS)
            of_tile = min(length, _GATHERED_COLUMNS)
            self.tiles = length // of_tile
            self.of_sums = {
                **{"x": rows, "x_factor": both.x_factor, "x_stride": rows.stride(0), "N": M},
                **{"order": torch.empty(M, dtype=torch.int32, device=flat.device)},
                **{"splits": self.splits, "FINISH": self.splits == 1, "COLUMNS": of_tile},
                **{"ROWS": 64 // rows.element_size(), "CHUNK": chunk, "num_warps": 8},
            }
            return
        self.of_sums = {
            **{"x": rows, "x_factor": both.x_factor, "x_stride": rows.stride(0), "N": M},
            **{"K": shape[1], "SHARED": shape[0] == 1, "split_rows": of_split},
            **{"TERMS": 3 if both.kind == "parts" else 0, "PRECISION": both.precision},
            **{"width": rows.shape[1], "ALIGN": math.gcd(16, rows.shape[1], rows.stride(0))},
            **{"EVEN": rows.shape[1] % tile.columns == 0, "FINISH": self.splits == 1},
            **tile.options(),
        }

    def begin(self, start: Tensor) -> None:
        """Set the initial centroids `[R, D]`."""
        self._means(start, True)

    def update(self, assignment: Tensor) -> None:
        """Replace the centroids by the means of the rows assigned to them."""
        arguments = {"assignment": assignment, **self.arguments, **self.of_sums}
        if self.gathered:
            gathered_sums_kernel[(self.programs, self.tiles)](**arguments)
        else:
            sums_kernel[(self.programs,)](**arguments)
        if self.splits > 1:
            self._means(self.arguments["sums"][0], False)

    def _means(self, start: Tensor, begins: bool) -> None:
        tiles, R = self.squares.shape
        group = 64 if begins and INTERPRETED else 1  # an interpreted program takes milliseconds
        mean_kernel[(cdiv(R, group), tiles)](
            start=start, start_stride=start.stride(0), splits=self.splits, START=begins,
            SPLITS=16, GROUP=group, num_warps=4, **self.arguments,
        )  # fmt: skip


def _operands(
    x: Tensor,  # [M, D]
    flat: Tensor,  # [R, D] centroids
    problems: int,
) -> tuple[Operands, Tensor, int]:
    """Return operands with a buffer for centroids, the rows to sum, and the centroids' parts."""
    kind, (M, D), R = kind_of(x), x.shape, flat.shape[0]
    shape = (M, M) if problems == 1 else (1, 1)
    tile, precision = tile_and_precision(kind, x, x, shape, "nearest")
    if kind in ("half", "parts"):
        left, factor = scaled_rows(x, kind, False, fine=True, weighted=False)
        rows, parts = prepare(x, "half" if kind == "half" else "ieee")[0], 2
    else:
        left, factor = prepare(x, kind), flat.new_empty(0)
        rows, parts = left[0], int(kind == "tf32" and not INTERPRETED)
    right, y_factor = flat[None], factor
    if parts:
        right = torch.empty((parts, R, left.shape[2]), dtype=left.dtype, device=x.device)
        y_factor = flat.new_empty(R)
    else:
        left = left[..., :D]
    return Operands(left, right, kind, precision, tile, factor, y_factor), rows, parts


def kmeans(
    x: Tensor,  # [M, D]
    member: Tensor | None,  # [B, M]
    centroids: Tensor,  # [B, K, D]
    iterations: int,
) -> tuple[Tensor, Tensor]:  # [B, M], [B, K, D]
    """Return the nearest centroid of every member after some updates, -1 for others, and these."""
    (B, K, D), M = centroids.shape, x.shape[0]
    flat = torch.empty((B * K, D), dtype=wide_dtype(x), device=x.device)
    both, rows, parts = _operands(x, flat, B)
    moved = Centroids(both, rows, flat, (B, K), parts)
    moved.begin(contiguous_rows(centroids.reshape(B * K, D)))
    most = both.tile.columns if B == 1 else _MOST_COLUMNS
    width = min(next_power_of_2(K), most)
    columns = 16 if B * width <= 16 else max(16, width) if B == 1 else _MOST_COLUMNS
    width = columns if B == 1 else width
    assignment = torch.empty((B, M), dtype=torch.int32, device=x.device)
    warps = 4 if columns == 16 else both.tile.warps  # 8 warps: 7 spills on sm_80
    arguments = {
        **both.arguments(both.tile._replace(columns=columns, warps=warps), both.y.shape[0]),
        "X_PARTS": both.x.shape[0],
        **{"squares": moved.squares, "tiles": moved.squares.shape[0], "assignment": assignment},
        **{"member": assignment if member is None else member.contiguous(), "N": M, "B": B, "K": K},
        **{"WIDTH": width, "HAS_MEMBER": member is not None},
    }
    programs = cdiv(M, both.tile.rows) * cdiv(B, columns // width)
    for step in range(iterations + 1):
        if step > 0:
            moved.update(assignment)
        _nearest_kernel[(programs,)](**arguments)
    return assignment.long(), flat.view(B, K, D)
