"""Clusters of members: which columns are whose, and how kernels run over them.

How large a cluster is only the device knows, so that no library's product has its shape. With one
clustering for all anchors, members are sorted: a cluster is a list of columns, and its kernel runs
over those alone. When every anchor has its own, there is one list of all columns, rows are pairs
(anchor, cluster), and a cluster is a mask over them: more products, but no gathered rows.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor


class Spans(NamedTuple):
    """Clusters cut into tiles of columns; the last tiles, of which there are enough, are empty."""

    cluster: Tensor  # [B, T] int32, of B clusterings
    begin: Tensor  # [B, T] first column of the cluster
    first: Tensor  # [B, T] first column of the tile
    end: Tensor  # [B, T] end of the cluster

    def arguments(self) -> dict[str, Any]:
        """Return the tiles as a kernel's arguments."""
        return {f"span_{name}": tensor for name, tensor in self._asdict().items()}


def spans_of(starts: Tensor, columns: int, at_once: int) -> Spans:
    """Cut clusters `[start, next start)` `[B, K + 1]` into tiles of so many columns."""
    B, K = starts.shape[0], starts.shape[1] - 1
    begin, end = starts[:, :-1], starts[:, 1:]
    last = (end - begin + at_once - 1).div(at_once, rounding_mode="floor").cumsum(1)  # [B, K]
    most = (columns + min(K, columns) * (at_once - 1)) // at_once
    tile = torch.arange(most, device=starts.device).expand(B, -1)
    cluster = torch.searchsorted(last, tile.contiguous(), right=True)
    empty, cluster = cluster >= K, cluster.clamp_max(K - 1)
    # What a cluster's own tiles count from.
    before = torch.nn.functional.pad(last, (1, -1)).gather(1, cluster)
    begin = begin.gather(1, cluster).masked_fill(empty, 0)
    end = end.gather(1, cluster).masked_fill(empty, 0)
    first = begin + ((tile - before) * at_once).masked_fill(empty, 0)
    return Spans(*(t.to(torch.int32).contiguous() for t in (cluster, begin, first, end)))


class Clusters(NamedTuple):
    """Which columns are whose, for N anchors and M members."""

    number: int  # K
    order: Tensor | None  # [M] member of every column; None: as they come
    starts: Tensor  # [1, lists + 1] of the lists of columns
    assignment: Tensor  # [N, M]; [M] of one clustering, which kernels do not read

    @property
    def per_anchor(self) -> bool:
        """Return whether every anchor has a clustering of its own."""
        return self.order is None

    def rows(self, anchors: int) -> int:
        """Return how many rows a list has for so many anchors."""
        return anchors * self.number if self.per_anchor else anchors

    @property
    def lists(self) -> int:
        """Return how many lists of columns there are."""
        return self.starts.shape[1] - 1

    def of_anchors(self, first: int, anchors: int) -> "Clusters":
        """Return the clusters of some anchors."""
        if not self.per_anchor:
            return self
        return self._replace(
            assignment=cleaned(self.assignment[first : first + anchors], self.number)
        )

    def arguments(self) -> dict[str, Any]:
        """Return the clusters as a kernel's arguments."""
        return {
            **{"starts": self.starts, "assignment": self.assignment, "K": self.number},
            **{"M": self.assignment.shape[-1], "PER_ANCHOR": self.per_anchor},
        }


def cleaned(assignment: Tensor, number: int) -> Tensor:
    """Return clusters in int32, -1 for anything but a cluster's number."""
    outside = (assignment < 0) | (assignment >= number)
    return assignment.masked_fill(outside, -1).to(torch.int32)


def sorted_by_cluster(assignment: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return, of the last dimension, the order by cluster, and where every cluster starts."""
    # What is in no cluster comes last.
    found, order = assignment.masked_fill(assignment < 0, number).sort(dim=-1, stable=True)
    bounds = torch.arange(number + 1, device=found.device, dtype=found.dtype)
    starts = torch.searchsorted(found, bounds.expand(*found.shape[:-1], -1).contiguous())
    return order, starts.to(torch.int32)


def clusters_of(assignment: Tensor, number: int) -> Clusters:
    """Describe one clustering `[M]`, or one per anchor `[N, M]`."""
    if assignment.dim() == 1:
        order, starts = sorted_by_cluster(cleaned(assignment, number), number)
        return Clusters(number, order, starts[None], assignment)
    M = assignment.shape[1]
    starts = torch.arange(0, 2 * M, M, device=assignment.device, dtype=torch.int32)
    return Clusters(number, None, starts[None], assignment)


class Grid(NamedTuple):
    """Programs over tiles of the rows of every list."""

    P: int  # rows of a list
    tiles: int
    programs: int

    def arguments(self) -> dict[str, Any]:
        """Return the grid as a kernel's arguments."""
        return {"P": self.P, "tiles": self.tiles}


def grid_of(clusters: Clusters, anchors: int, rows: int) -> Grid:
    """Return the grid for so many anchors, and rows of a tile."""
    P = clusters.rows(anchors)
    return Grid(P, triton.cdiv(P, rows), clusters.lists * triton.cdiv(P, rows))
