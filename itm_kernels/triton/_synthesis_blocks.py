"""Blocks of anchors: their softmax over the members of every cluster, and their weights."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from itm_kernels.triton._blocked_products import rows_per_block
from itm_kernels.triton._cluster_batches import factor_size
from itm_kernels.triton._clusters import ALIGNED, Clusters, clusters_of, grid_of, sorted_by_cluster
from itm_kernels.triton._kam_solve import AssociativeMemory, ClusterSystems, factorize
from itm_kernels.triton._launch import cdiv
from itm_kernels.triton._member_sums import RowOperand, row_operand, scaled_row_operand
from itm_kernels.triton._metrics import row_squared_norms
from itm_kernels.triton._operands import INTERPRETED, contiguous_rows, kind_and_parts, wide_dtype
from itm_kernels.triton._scaled_operands import scaled_operands, scaled_rows, unit_rows
from itm_kernels.triton._synthesis_kernels import logits_kernel, softmax_kernel

# Values in the Cholesky factors of a block of anchors with their own clusters: 128 MiB.
_FACTORS = 1 << 24
# Tile of a softmax: 16 x 64 has 6 spills on sm_90. The interpreter's time is per program.
_ROWS, _COLUMNS = (64, 128) if INTERPRETED else (4, 128)


def solve_weights(systems: ClusterSystems, weights: Tensor) -> Tensor:  # [R, M], [R, M]
    """Solve for the weights of every anchor, in fp64: they are in the thousands, and cancel."""
    out = torch.zeros((*weights.shape, 1), dtype=torch.float64, device=weights.device)
    systems.solve(weights[..., None], out)
    return out[..., 0]


class Block(NamedTuple):
    """A block of anchors that starts at `first`; columns are members."""

    first: int
    q: Tensor  # [R, D]
    clusters: Clusters
    khat: Tensor  # [R, M]
    weights: Tensor  # [R, M] weights of `Synthesis.rows` in the vectors
    valid: Tensor  # [R, K]
    own: ClusterSystems | None  # systems of anchors with their own clusters


def list_arguments(clusters: Clusters, anchors: int) -> dict[str, Any]:
    """Return the arguments of a kernel over the rows of every list, and its grid."""
    grid = grid_of(clusters, anchors, _ROWS)
    return {
        **{**clusters.arguments(), **grid.arguments()},
        **{"ROWS": _ROWS, "COLUMNS": _COLUMNS, "grid": (grid.programs,)},
    }


class Synthesis:
    """Anchors, members in the order of columns, and the operands that all blocks share."""

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
        *,
        keep_memory: bool = False,
        cosine: bool = False,  # normalize the rows here; needs one clustering for all anchors
    ) -> None:
        known = anchor_ids is not None and member_ids is not None
        self.clusters, ids = clusters_of(assignment, num_clusters, member_ids if known else None)
        order = self.clusters.order
        self.q = contiguous_rows(anchors)
        self.x = contiguous_rows(members if order is None else members.index_select(0, order))
        self.ids = None
        if anchor_ids is not None and ids is not None:
            self.ids = anchor_ids.contiguous(), ids.contiguous()
        # Half-precision rows are multiplied exactly as given, and scores are scaled by factors.
        wide = wide_dtype(self.x)
        self.both = scaled_operands(self.q, self.x, cosine, fine=cosine and self.x.dtype == wide)
        unit = unit_rows(self.x) if cosine else self.x
        self.offset = row_squared_norms(unit)
        self.sigma, self.ridge, self.kam = sigma, ridge, weights == "kam"
        self.scale = 1 / sigma**2
        self.for_gradients = keep_memory
        self.memory: AssociativeMemory | None = None
        self.rows = unit  # [M, D], the rows that the vectors sum up
        if self.kam and order is not None:
            memory = AssociativeMemory(unit, self.clusters.starts, sigma, ridge, keep_memory)
            self.rows = memory.solve(unit, wide)
            self.memory = memory if keep_memory else None

    @cached_property
    def members(self) -> RowOperand:
        """The rows that the vectors sum up, prepared for products with weights.

        The rows of an associative memory are large: in tf32 the error of the vectors was three
        times that of eager PyTorch.
        """
        kind, _ = kind_and_parts(self.rows, cancelling=self.kam)
        # Weights of anchors with their own clusters reach thousands for near-equal rows; the
        # gradient of the vectors multiplies the same bf16 parts (`_synthesis_backward`).
        bounded = not (self.kam and self.clusters.per_anchor)
        if kind in ("half", "parts") and bounded and not self.for_gradients:
            return scaled_row_operand(*scaled_rows(self.rows, kind, False, fine=True), self.rows)
        return row_operand(self.rows, cancelling=self.kam)

    # -- blocks ------------------------------------------------------------------------------------

    def at_once(self, per_row: int = 0) -> int:
        """Return the number of anchors per block, given further values held per anchor."""
        N, M, K = self.q.shape[0], self.x.shape[0], self.clusters.number
        # Two fp16 parts of the weights of a block are as large as its softmax, but for padding.
        padded = 0 if self.clusters.per_anchor else (ALIGNED - 1) * min(K, M) + 16
        rows = rows_per_block(self.q, self.x, max(M + padded, per_row))
        rows = cdiv(cdiv(N, cdiv(N, rows)), 128) * 128  # of equal size
        if self.kam and self.clusters.per_anchor:
            size = factor_size(M, K)
            rows = min(rows, max(1, _FACTORS // size))
        return rows

    def blocks(self, at_once: int, valid: Tensor) -> Iterator[Block]:  # valid: [N, K] to write
        """Yield all anchors in order, in blocks; drop a block before asking for the next."""
        for first in range(0, self.q.shape[0], at_once):
            R = min(at_once, self.q.shape[0] - first)
            yield self.block(first, R, valid[first : first + R])

    def block(self, first: int, R: int, valid: Tensor | None = None) -> Block:
        """Return the softmax of R anchors over every cluster, and the weights that follow."""
        (M, _), K = self.x.shape, self.clusters.number
        logits = torch.empty((R, M), dtype=wide_dtype(self.q), device=self.q.device)
        logits_kernel[self.both.tile.programs(R, M)](
            **self.both.arguments(), offset=self.offset, out=logits, first=first, R=R, M=M,
            scale=self.scale,
        )  # fmt: skip
        if valid is None:
            valid = torch.empty((R, K), dtype=torch.bool, device=self.q.device)
        clusters = self.clusters.of_anchors(first, R)
        arguments = list_arguments(clusters, R)
        stand_in = self.clusters.starts, self.clusters.starts
        row_ids, column_ids = stand_in if self.ids is None else self.ids
        softmax_kernel[arguments.pop("grid")](
            logits=logits, valid=valid, row_ids=row_ids[first:], column_ids=column_ids,
            HAS_IDS=self.ids is not None, **arguments,
        )  # fmt: skip
        q, own, weights = self.q[first : first + R], None, logits
        if self.kam and clusters.per_anchor:
            order, starts, _ = sorted_by_cluster(clusters.assignment, K)
            own = factorize(self.x, starts, order, self.sigma, self.ridge)
            weights = solve_weights(own, weights)
        return Block(first, q, clusters, logits, weights, valid, own)

    def kernel_rows(self, first: int, last: int) -> Tensor:  # [R, M] fp64
        """Return e^(-|x_i - x_j|^2 / 2 sigma^2) for members i in [first, last)."""
        x = self.x.double()
        square = x.square().sum(1)
        kernel = x[first:last] @ x.mT
        kernel.mul_(-2).add_(square).add_(square[first:last, None]).clamp_min_(0)
        return kernel.div_(-2 * self.sigma**2).exp_()
