"""A tile of a score matrix that the caller computed, with any strides."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import cdiv
from itm_kernels.triton._operands import wide_dtype
from itm_kernels.triton._score_tiles import wide_type

# A tile holds 8 scores per thread of 4 warps; 64 x 64 needs 236 registers (sm_90).
SIDE = 32


class GivenScores(NamedTuple):
    """The arguments of a kernel that reads a score matrix."""

    scores: Tensor  # [N, M]
    row_stride: int
    column_stride: int
    N: int
    M: int

    @property
    def tiles(self) -> tuple[int, int]:
        """Return the number of tiles along rows and columns."""
        return cdiv(self.N, SIDE), cdiv(self.M, SIDE)

    @property
    def grid(self) -> tuple[int]:
        """Return one program per tile."""
        return (self.tiles[0] * self.tiles[1],)

    def empty(self, *shape: int) -> Tensor:
        """Return an uninitialised tensor in the precision of computations."""
        return torch.empty(shape, dtype=wide_dtype(self.scores), device=self.scores.device)


def given_scores(scores: Tensor) -> GivenScores:
    """Return the arguments for a matrix."""
    return GivenScores(scores, *scores.stride(), *scores.shape)


@triton.jit
def load_scores(scores, row_stride, column_stride, rows, columns):
    """Return the scores `[R, C]` of rows < N and columns < M, in fp32 or fp64."""
    at = rows[:, None].to(tl.int64) * row_stride + columns[None, :].to(tl.int64) * column_stride
    return tl.load(scores + at).to(wide_type(scores.dtype))


@triton.jit
def store_gradient(grad, values, n, m, N, M):
    """Write a tile of the gradient `[N, M]`, which is contiguous."""
    inside = (n < N)[:, None] & (m < M)[None, :]
    at = n[:, None].to(tl.int64) * M + m[None, :]
    tl.store(grad + at, values.to(grad.dtype.element_ty), mask=inside)
