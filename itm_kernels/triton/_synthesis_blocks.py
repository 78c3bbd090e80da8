"""Blocks of anchors: which members stand in which columns, their softmax and their weights."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from itm_kernels.triton._clusters import Clusters, clusters_of, grid_of, sorted_by_cluster
from itm_kernels.triton._compare import squares
from itm_kernels.triton._launch import INTERPRETED, operands, rows_of, wide_dtype
from itm_kernels.triton._sums import factor_of
from itm_kernels.triton._synthesis import logits_kernel, softmax_kernel
from itm_kernels.triton._systems import invert, solve
from itm_kernels.triton._weights import rows_at_once

# Numbers in the matrices of anchors with clusters of their own that exist at a time: 128 MiB.
_MATRICES = 1 << 24
# Of a softmax: 16 rows of 64 are 6 spills on sm_90. The interpreter pays per program.
_ROWS, _COLUMNS = (64, 128) if INTERPRETED else (4, 128)


class System(NamedTuple):
    """Inverse kernel matrices, of one clustering or of every anchor's."""

    inverse: Tensor  # [B, M, M]
    starts: Tensor  # [B, K + 1]
    order: Tensor  # [B, M] column of every row of the matrix


class Block(NamedTuple):
    """Anchors from `first` on, and their weights; columns are members."""

    first: int
    q: Tensor  # [R, D]
    clusters: Clusters
    khat: Tensor  # [R, M]
    weights: Tensor  # [R, M] of the members in the vectors: khat, or (K + ridge I)^-1 khat
    valid: Tensor  # [R, K]
    system: System | None


def list_arguments(clusters: Clusters, anchors: int) -> dict[str, Any]:
    """Return what a kernel over rows of lists needs, and its grid."""
    grid = grid_of(clusters, anchors, _ROWS)
    return {
        **{**clusters.arguments(), **grid.arguments()},
        **{"ROWS": _ROWS, "COLUMNS": _COLUMNS, "grid": (grid.programs,)},
    }


class Synthesis:
    """Anchors, members in the order of columns, and what all blocks share."""

    def __init__(
        self,
        anchors: Tensor,  # [N, D]
        members: Tensor,  # [M, D]
        assignment: Tensor,  # [M] or [N, M]
        anchor_ids: Tensor | None,  # [N]
        member_ids: Tensor | None,  # [M]
        num_clusters: int,
        sigma: float,
        weights: str,
        ridge: float,
    ) -> None:
        self.clusters = clusters_of(assignment, num_clusters)
        order = self.clusters.order
        self.q = rows_of(anchors)
        self.x = rows_of(members if order is None else members.index_select(0, order))
        self.ids = None
        if anchor_ids is not None and member_ids is not None:
            of_columns = member_ids if order is None else member_ids.index_select(0, order)
            self.ids = anchor_ids.contiguous(), of_columns.contiguous()
        self.both = operands(self.q, self.x)
        self.members = factor_of(self.x)
        self.offset = squares(self.x) / 2
        self.sigma, self.ridge, self.kam = sigma, ridge, weights == "kam"
        self.scale = 1 / sigma**2
        self.kernel = self.kernel_matrix() if self.kam and self.clusters.per_anchor else None
        self.system = self._one_system() if self.kam and not self.clusters.per_anchor else None

    # -- blocks ------------------------------------------------------------------------------------

    def at_once(self, per_row: int = 0) -> int:
        """Return how many anchors a block has, when it also holds so many numbers of each."""
        rows = rows_at_once(self.q, self.x, max(self.x.shape[0], per_row))
        if self.kernel is not None:
            rows = min(rows, max(1, _MATRICES // self.kernel.numel()))
        return rows

    def blocks(self, at_once: int) -> Iterator[Block]:
        """Yield all anchors in order."""
        for first in range(0, self.q.shape[0], at_once):
            yield self.block(first, min(at_once, self.q.shape[0] - first))

    def block(self, first: int, R: int) -> Block:
        """Return the softmax of some anchors over every cluster, and the weights it leads to."""
        (M, _), K = self.x.shape, self.clusters.number
        logits = torch.empty((R, M), dtype=wide_dtype(self.q), device=self.q.device)
        logits_kernel[self.both.tile.programs(R, M)](
            **self.both.arguments(), offset=self.offset, out=logits, first=first, R=R, M=M,
            scale=self.scale,
        )  # fmt: skip
        valid = torch.empty((R, K), dtype=torch.bool, device=self.q.device)
        clusters = self.clusters.of_anchors(first, R)
        arguments = list_arguments(clusters, R)
        stand_in = self.clusters.starts, self.clusters.starts
        row_ids, column_ids = stand_in if self.ids is None else self.ids
        softmax_kernel[arguments.pop("grid")](
            logits=logits, valid=valid, row_ids=row_ids[first:], column_ids=column_ids,
            HAS_IDS=self.ids is not None, **arguments,
        )  # fmt: skip
        q, system, weights = self.q[first : first + R], self.system, logits
        if self.kernel is not None:
            system = self._own_systems(clusters)
        if system is not None:
            weights = solve(*system, weights)
        return Block(first, q, clusters, logits, weights, valid, system)

    # -- the kernel associative memory -------------------------------------------------------------

    def kernel_matrix(self) -> Tensor:  # [M, M] fp64
        """Return e^(-|x_i - x_j|^2 / 2 sigma^2)."""
        x = self.x.double()
        kernel = x @ x.mT
        square = kernel.diagonal().clone()
        kernel.mul_(-2).add_(square).add_(square[:, None]).clamp_min_(0)
        return kernel.div_(-2 * self.sigma**2).exp_()

    def _one_system(self) -> System:
        matrix, starts = self.kernel_matrix()[None], self.clusters.starts
        matrix.diagonal(dim1=1, dim2=2).add_(self.ridge)
        invert(matrix, starts)
        return System(matrix, starts, torch.arange(matrix.shape[1], device=starts.device)[None])

    def _own_systems(self, clusters: Clusters) -> System:
        assert self.kernel is not None
        order, starts = sorted_by_cluster(clusters.assignment, clusters.number)
        matrix = self.kernel[order[:, :, None], order[:, None, :]]
        matrix.diagonal(dim1=1, dim2=2).add_(self.ridge)
        invert(matrix, starts)
        return System(matrix, starts, order)
