"""The backward pass from the synthetic vectors to scores and members, in blocks of anchors.

Workspace beyond inputs and outputs: two fp32 accumulators [M, D] of sums over all anchors (one for
attention), the rows that the vectors sum up in the layout of the tensor cores, and the softmax of
one block and its gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from itm_kernels.triton._blocked_products import rows_per_block
from itm_kernels.triton._cluster_products import add_gradient_of_rows, product_tile
from itm_kernels.triton._clusters import Spans, spans_of
from itm_kernels.triton._gradient_products import gradient_products
from itm_kernels.triton._gram_gradient import add_gradient_of_members
from itm_kernels.triton._launch import cdiv
from itm_kernels.triton._member_sums import RowOperand
from itm_kernels.triton._operands import Operands, kind_and_parts, prepare, tile_of, wide_dtype
from itm_kernels.triton._products import add_product
from itm_kernels.triton._synthesis_blocks import Block, Synthesis, list_arguments, solve_weights
from itm_kernels.triton._synthesis_kernels import (
    members_gradient_kernel,
    softmax_gradient_kernel,
    weights_gradient_kernel,
)

# Members above this size (in fp32) are converted from half precision a quarter at a time, and
# blocks next to an associative memory have half as many anchors: at N = 32,768, D = 1024, bf16, the
# workspace is 731 MB (kam) and 857 MB (attention) beyond inputs, outputs and the gradients of both.
_LARGE = 32 << 20
_CHUNKS = 4


class Backward:
    """Accumulators over all blocks of anchors, and the operands that blocks share."""

    def __init__(self, synthesis: Synthesis) -> None:
        self.synthesis = synthesis
        self.x = x = synthesis.x
        (M, D), self.dtype = x.shape, wide_dtype(x)
        rows = synthesis.rows
        like = x.new_empty((0, D), dtype=self.dtype)
        self.kind, self.parts = kind_and_parts(like, cancelling=synthesis.kam)
        if self.kind == "parts" and rows.dtype == self.dtype:
            self.prepared = synthesis.members.rows
        else:
            self.prepared = prepare(rows.to(self.dtype), self.kind, self.parts)
        self.whole = self.kind == "parts" and self.parts == 3
        if self.whole and synthesis.memory is not None:
            del synthesis.rows  # equal to the sum of the parts
        self.terms = self.parts if self.kind == "parts" else 0
        # One clustering: weights in parts multiply rows in tiles of many rows.
        self.apart = bool(self.terms) and not synthesis.clusters.per_anchor
        if self.apart:
            at_once = rows_per_block(x, x, 2 * M)
            self.tile = product_tile(at_once, D, "weights")
            # On sm_90, 128 x 256 spills, and 128 x 128 if rows are not aligned.
            self.sum_tile = product_tile(at_once, D, "narrow" if D % 16 else "")
        else:
            tile = tile_of("half" if self.kind == "parts" else self.kind, 1, 1, D)
            # rows of (anchor, cluster): 40 to 60 spills in 4 warps
            self.tile = tile._replace(warps=8)
            self.sum_tile = tile_of("sum", 1, 1, D) if self.terms else self.tile
        starts = synthesis.clusters.starts
        self.spans = [spans_of(starts, M, n) for n in (self.tile.columns, self.sum_tile.rows)]
        # Gradient of the rows that the vectors sum up, members or W, in the order of columns.
        self.rows = torch.zeros((M, D), dtype=self.dtype, device=x.device)
        self.total = torch.zeros(M, dtype=self.dtype, device=x.device)
        M = M if synthesis.kam and synthesis.memory is None else 0
        self.of_kernel = torch.zeros((M, M), dtype=torch.float64, device=x.device)

    @property
    def large(self) -> bool:
        """Return whether members are converted to fp32 in chunks."""
        return self.x.numel() * self.dtype.itemsize > _LARGE

    def at_once(self, per_row: int) -> int:
        """Return the number of anchors per block, given further values held per anchor."""
        M, one = self.x.shape[0], self.synthesis
        return one.at_once(max((4 if self.large and one.memory else 2) * M, per_row))

    def scores(
        self,
        block: Block,
        grad: Tensor,  # [R, K, D] of the vectors
        out: Tensor,  # [R, M] to write
    ) -> None:
        """Accumulate the gradient of the members, and write that of q x^T."""
        R, K, D = grad.shape
        one = self.synthesis
        rows = grad.to(self.dtype).reshape(R * K, D)
        precision = "tf32" if self.kind == "tf32" else "ieee"
        rows = prepare(rows, self.kind, self.parts)
        both = Operands(rows, self.prepared, self.kind, precision, self.tile)
        del rows
        of_khat = out.zero_()
        self._through_vectors(block, both, of_khat, D)
        if block.own is not None:
            of_khat = solve_weights(block.own, of_khat)
            self._to_kernel(block, of_khat)
            out.zero_()
        # In place is safe: a program reads all columns of its cluster before it writes them.
        arguments = list_arguments(block.clusters, R)
        bound = one.both.kind == "parts"
        self.largest = out.new_empty((block.clusters.lists, arguments["P"] if bound else 0))
        softmax_gradient_kernel[arguments.pop("grid")](
            softmax=block.khat, grad=of_khat, out=out, largest=self.largest, scale=one.scale,
            BOUND=bound, **arguments,
        )  # fmt: skip
        self.total += out.sum(0)

    def _through_vectors(self, block: Block, both: Operands, of_weights: Tensor, D: int) -> None:
        clusters = block.clusters
        P = clusters.rows(block.q.shape[0])
        shared = {**clusters.arguments(), "P": P}
        shared.pop("starts")

        def tiles(spans: Spans) -> dict[str, Tensor]:
            found = spans.arguments()
            found.pop("span_begin")
            return found

        of_scores, of_sums = self.spans
        T = of_scores.first.shape[1]
        weights_gradient_kernel[(T * cdiv(P, self.tile.rows),)](
            **both.arguments(), **tiles(of_scores), **shared, out=of_weights, T=T
        )
        if self.apart:
            given = both.x, self.terms, self.rows, of_sums, self.sum_tile
            add_gradient_of_rows(clusters, block.weights, *given)
            return
        factor = RowOperand(both.x, self.terms, both.precision, self.sum_tile)
        members_gradient_kernel[(of_sums.first.shape[1], cdiv(D, self.sum_tile.columns))](
            **factor.arguments(), **tiles(of_sums), **shared, weights=block.weights, out=self.rows,
            D=D,
        )  # fmt: skip

    def _to_kernel(self, block: Block, of_khat: Tensor) -> None:
        for k in range(block.clusters.number):
            here = block.clusters.assignment == k
            c, d = (torch.where(here, t, 0) for t in (block.weights, of_khat))
            self.of_kernel.addmm_(c.mT, d, alpha=-1)

    def run(
        self,
        fill: Callable[[int, Tensor], Tensor | None],  # first anchor, weights [R, M] to write
        at_once: int,
        anchors: Tensor,
        members: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of anchors and members, calling `fill` for every block of anchors.

        `fill` writes the gradient of the scores, and returns any further gradient of the block's
        anchors, in fp32 or fp64.
        """
        (N, _), M, one = anchors.shape, self.x.shape[0], self.synthesis
        of_anchors = torch.empty_like(anchors, memory_format=torch.contiguous_format)
        of_members = self.rows if one.memory is None else None
        for first in range(0, N, at_once):
            own = slice(first, min(first + at_once, N))
            weights = self.total.new_empty((own.stop - first, M))
            others = fill(first, weights)
            q = one.q[own].to(self.dtype)
            if one.both.kind == "parts":
                assert one.both.x_factor is not None
                both = one.both._replace(x=one.both.x[:, own], x_factor=one.both.x_factor[own])
                of_block, of_members = gradient_products(weights, self.largest, both, q, of_members)
            else:
                of_members = add_product(of_members, weights[None], q[None], transposed=True)
                of_block = self._times_members(weights)
            of_anchors[own] = of_block if others is None else of_block.add_(others)
            del weights, of_block, others, q
        assert of_members is not None
        return of_anchors, self._members(of_members).to(members.dtype)

    def _times_members(self, weights: Tensor) -> Tensor:  # [R, M] -> [R, D]
        """Return weights times members."""
        M, chunks = self.x.shape[0], _CHUNKS if self.large and self.x.dtype != self.dtype else 1
        size, total = cdiv(M, chunks), None
        for first in range(0, M, size):
            rows = self.x[first : first + size].to(self.dtype)
            total = add_product(total, weights[None, :, first : first + size], rows[None])
            del rows
        assert total is not None
        return total

    def _members(self, rows: Tensor) -> Tensor:
        """Return the gradient of the members in their original order.

        Args:
            rows: `[M, D]`, the transposed gradient of the scores times the anchors; overwritten.
        """
        one, D = self.synthesis, self.x.shape[1]
        rows -= self.total[:, None] * self.x
        if one.memory is not None:
            if self.whole:
                one.__dict__.pop("members", None)
                one.rows = torch.zeros_like(self.rows)
                for part in self.prepared:
                    one.rows += part[:, :D]
                del part, self.prepared
            x = self.x.to(self.dtype)
            del self.x, one.x, one.both, one.q  # half-precision rows
            for systems in one.memory.factorized(x):
                (solution,) = systems.solve(self.rows[None], None)
                rows[systems.batch.begin : systems.batch.end] += solution
                add_gradient_of_members(systems, x, one.rows, solution, one.sigma, rows)
                del systems, solution
        elif one.kam:
            M, at_once = rows.shape[0], rows_per_block(self.x, self.x, self.x.shape[0])
            for first in range(0, M, at_once):
                own = slice(first, min(first + at_once, M))
                rows[own] += self._through_kernel(own).to(rows.dtype)
        order = one.clusters.order
        return rows if order is None else torch.empty_like(rows).index_copy_(0, order, rows)

    def _through_kernel(self, own: slice) -> Tensor:  # [R, D]
        """Return the gradient through K for a range of members: -K_ij (x_i - x_j) (dx_i - dx_j)."""
        one, x = self.synthesis, self.x.double()
        factor = self.of_kernel[own] + self.of_kernel.mT[own]
        factor *= one.kernel_rows(own.start, own.stop)
        factor.diagonal(own.start).fill_(0)
        # The sums over j and over x_i are separate: they cancel for near-equal rows.
        return (factor @ x - factor.sum(1, keepdim=True) * x[own]).mul_(one.scale)
