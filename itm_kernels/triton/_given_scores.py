"""Tiles of a score matrix that the caller computed, with any strides.

A tile has R rows and `LANES` times V columns. A thread holds V adjacent columns of all R rows: the
maximum and the sum of a column are computed within a thread. Those of a row leave one value per
thread, and are reduced across threads once, after several tiles.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from itm_kernels.triton import _operands
from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._operands import wide_dtype
from itm_kernels.triton._score_tiles import float_argument

INTERPRETED = tl.constexpr(_operands.INTERPRETED)
LANES = 128  # threads of four warps
_PROGRAMS = 768  # two waves of three per processor (132 of sm_90)


class GivenScores(NamedTuple):
    """The arguments of a kernel that reads a score matrix."""

    scores: Tensor  # [N, M]
    row_stride: int
    column_stride: int
    N: int
    M: int

    def empty(self, *shape: int) -> Tensor:
        """Return an uninitialised tensor in the precision of computations."""
        return torch.empty(shape, dtype=wide_dtype(self.scores), device=self.scores.device)


class Stripes(NamedTuple):
    """A grid of programs: each visits `tiles` adjacent tiles along its axis."""

    rows: int  # of a tile
    vector: int  # adjacent columns of a thread
    stripes: int  # programs across
    splits: int  # programs along
    tiles: int  # of a program

    @property
    def grid(self) -> tuple[int]:
        """Return one program per split of every stripe."""
        return (self.stripes * self.splits,)

    def width(self, columns: int) -> int:
        """Return a number of columns in whole tiles."""
        return columns + -columns % (LANES * self.vector)


def given_scores(scores: Tensor) -> GivenScores:
    """Return the arguments for a matrix."""
    return GivenScores(scores, *scores.stride(), *scores.shape)


def stripes_of(given: GivenScores, rows: int, vector: int, *, of_rows: bool = True) -> Stripes:
    """Divide a matrix into stripes of rows or of columns, and these into splits."""
    # Fewer elements per thread in fp64: 128 of them would fill its registers.
    if given.scores.dtype == torch.float64:
        rows, vector = 8, 2
    # Other layouts of a tile, between which it moves, would fill the registers too.
    elif given.column_stride != 1 or given.row_stride == 1:
        rows, vector = 8 if given.column_stride == 1 else 16, 1
    across, along = cdiv(given.N, rows), cdiv(given.M, LANES * vector)
    if not of_rows:
        across, along = along, across
    tiles = cdiv(along, max(1, min(along, cdiv(_PROGRAMS, across))))
    return Stripes(rows, vector, across, cdiv(along, tiles), tiles)


@triton.jit
def tile_columns(tile, LANES: tl.constexpr, VECTOR: tl.constexpr):
    """Return the columns `[LANES, VECTOR]` of a tile."""
    lane = tl.arange(0, LANES)[:, None] * VECTOR
    return tile * (LANES * VECTOR) + (lane + tl.arange(0, VECTOR)[None, :])


@triton.jit
def tile_of(matrix, row_stride, column_stride, n, m):
    """Return the pointers `[LANES, R, VECTOR]` of a tile.

    Lanes come first: the compiler gives threads to the first of two axes without contiguity.
    """
    at = matrix + (n.to(tl.int64) * row_stride)[None, :, None]
    return at + (m.to(tl.int64) * column_stride)[:, None, :]


@triton.jit
def all_outside(ids, lowest, highest):
    """Return whether no id `[R]` or `[LANES, VECTOR]` is in a range.

    Sorted ids, like the numbers of rows, are in the ranges of few tiles. Others compare all pairs.
    """
    within = ((ids >= lowest) & (ids <= highest)).to(tl.int32)
    if len(ids.shape) == 2:
        within = tl.max(within, 1)
    return tl.max(within, 0) == 0


@triton.jit
def exp_in_base(x):
    """Return 2^x in fp32 and e^x in fp64; 2^x below 2^-126 is 0, which saves three instructions."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    if INTERPRETED:
        return tl.exp2(x)
    return libdevice.exp2(x)


@triton.jit
def exponential(x):
    """Return e^x."""
    return exp_in_base(x if x.dtype == tl.float64 else x * 1.4426950408889634)


@triton.jit
def accurate_exponential(x):
    """Return e^x to the last bits, in 10 instructions instead of 2."""
    return tl.exp(x) if x.dtype == tl.float64 or INTERPRETED else libdevice.exp(x)


@triton.jit
def ids_at(ids, at, HAS_IDS: tl.constexpr):
    """Return the ids of rows or columns; without ids, their numbers."""
    return tl.load(ids + at) if HAS_IDS else at


@jit(do_not_specialize=["N", "M"])
def _positives_kernel(
    scores,  # [N, M]
    row_stride,
    column_stride,
    N,
    M,
    positive,  # [M]
    found,  # [M]
    margin: tl.float64,
    HAS_POSITIVE: tl.constexpr,
    OFFSET: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    m = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    of = ids_at(positive, tl.minimum(m, M - 1), HAS_POSITIVE)
    at = of.to(tl.int64) * row_stride + m.to(tl.int64) * column_stride
    own = tl.load(scores + at, mask=(of >= 0) & (of < N) & (m < M), other=0.0)
    own = tl.where(of < 0, float("nan"), own.to(found.dtype.element_ty))
    if OFFSET:
        own = float_argument(margin, own.dtype) - own
    tl.store(found + m, own, mask=m < M)


def positives(given: GivenScores, positive: Tensor | None, margin: float | None = None) -> Tensor:
    """Return the score `[M]` of every text with its image, or the margin minus that score.

    It is NaN for a text without exactly one image.
    """
    found = given.empty(given.M)
    _positives_kernel[(cdiv(given.M, 128),)](
        *given, found if positive is None else positive.contiguous(), found, margin or 0.0,
        HAS_POSITIVE=positive is not None, OFFSET=margin is not None, COLUMNS=128,
    )  # fmt: skip
    return found


def pairs_by_image(positive: Tensor, N: int) -> tuple[Tensor, Tensor]:
    """Return the pairs `[M]` sorted by image, and the first of every image `[N + 1]`."""
    images, order = torch.sort(positive, stable=True)
    numbers = torch.arange(N + 1, dtype=images.dtype, device=images.device)
    return order, torch.searchsorted(images, numbers)
