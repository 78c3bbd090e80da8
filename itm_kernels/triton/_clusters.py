"""Clusters of members: which columns are whose, and how kernels run over them.

How large a cluster is only the device knows, so that no library's product has its shape. With one
clustering for all anchors, members are sorted: a cluster is a list of columns, and its kernel runs
over those alone. When every anchor has its own, there is one list of all columns, rows are pairs
(anchor, cluster), and a cluster is a mask over them: more products, but no gathered rows.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_CHUNK = 1024  # members, or tiles, that a program looks at at once


class Spans(NamedTuple):
    """Clusters cut into tiles of columns; the last tiles, of which there are enough, are empty."""

    cluster: Tensor  # [B, T] int32, of B clusterings
    begin: Tensor  # [B, T] first column of the cluster
    first: Tensor  # [B, T] first column of the tile
    end: Tensor  # [B, T] end of the cluster

    def arguments(self) -> dict[str, Any]:
        """Return the tiles as a kernel's arguments."""
        return {f"span_{name}": tensor for name, tensor in self._asdict().items()}


@triton.jit
def tiles_before(starts, cluster, CLUSTERS: tl.constexpr, SIZE: tl.constexpr):
    """Return how many tiles of so many columns each of the clusters before one has: 0 for others.

    The result is `[CLUSTERS]`, a power of two.
    """
    k = tl.arange(0, CLUSTERS)
    before = k < cluster
    begin = tl.load(starts + k, mask=before, other=0)
    return (tl.load(starts + k + 1, mask=before, other=0) - begin + SIZE - 1) // SIZE


@triton.jit(do_not_specialize=["T"])
def _spans_kernel(
    starts,  # [B, K + 1]
    spans,  # [4, B, T]
    K,
    T,
    CLUSTERS: tl.constexpr,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write one cluster's tiles; the program after the last cluster's writes the empty ones."""
    problem, own = tl.program_id(0) // (K + 1), tl.program_id(0) % (K + 1)
    starts += problem * (K + 1)
    tile = tl.sum(tiles_before(starts, own, CLUSTERS, SIZE), 0)
    begin, end = tl.load(starts + own), tl.load(starts + tl.minimum(own + 1, K))
    tiles = tl.where(own < K, (end - begin + SIZE - 1) // SIZE, T - tile)
    end = tl.where(own < K, end, 0)
    begin = tl.where(own < K, begin, 0)
    length = (tl.num_programs(0) // (K + 1)).to(tl.int64) * T
    to = spans + problem.to(tl.int64) * T + tile
    for chunk in range(0, tiles, CHUNK):
        t = chunk + tl.arange(0, CHUNK)
        tl.store(to + t, tl.minimum(own, K - 1), mask=t < tiles)
        tl.store(to + length + t, begin, mask=t < tiles)
        tl.store(to + 2 * length + t, tl.where(own < K, begin + t * SIZE, 0), mask=t < tiles)
        tl.store(to + 3 * length + t, end, mask=t < tiles)


def spans_of(starts: Tensor, columns: int, at_once: int) -> Spans:
    """Cut clusters `[start, next start)` `[B, K + 1]` into tiles of so many columns."""
    B, K = starts.shape[0], starts.shape[1] - 1
    most = (columns + min(K, columns) * (at_once - 1)) // at_once
    spans = torch.empty((4, B, most), dtype=torch.int32, device=starts.device)
    _spans_kernel[(B * (K + 1),)](
        starts, spans, K, most, CLUSTERS=triton.next_power_of_2(K), SIZE=at_once, CHUNK=_CHUNK
    )
    return Spans(*spans.unbind())


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
        return self._replace(assignment=self.assignment[first : first + anchors])

    def arguments(self) -> dict[str, Any]:
        """Return the clusters as a kernel's arguments."""
        return {
            **{"starts": self.starts, "assignment": self.assignment, "K": self.number},
            **{"M": self.assignment.shape[-1], "PER_ANCHOR": self.per_anchor},
        }


@triton.jit(do_not_specialize=["M"])
def _sort_kernel(
    assignment,  # [B, M]
    ids,  # [M]
    order,  # [B, M] int64
    sorted_ids,  # [B, M]
    starts,  # [B, K + 1] int32
    M,
    K,
    CHUNK: tl.constexpr,
    HAS_IDS: tl.constexpr,
):
    """Write one cluster's members in order; the program after the last cluster's, all others."""
    problem, own = (tl.program_id(0) // (K + 1)).to(tl.int64), tl.program_id(0) % (K + 1)
    assignment += problem * M
    order += problem * M
    before = tl.zeros((CHUNK,), tl.int32)
    for first in range(0, M, CHUNK):
        m = first + tl.arange(0, CHUNK)
        k = tl.load(assignment + m, mask=m < M, other=K)
        k = tl.where((k < 0) | (k > K), K, k)
        before += (k < own).to(tl.int32)
    start = tl.sum(before, 0)
    tl.store(starts + problem * (K + 1) + own, start)
    for first in range(0, M, CHUNK):
        m = first + tl.arange(0, CHUNK)
        k = tl.load(assignment + m, mask=m < M, other=K)
        mine = (tl.where((k < 0) | (k > K), K, k) == own) & (m < M)
        at = start + tl.cumsum(mine.to(tl.int32), 0) - 1
        tl.store(order + at, m.to(tl.int64), mask=mine)
        if HAS_IDS:
            tl.store(sorted_ids + problem * M + at, tl.load(ids + m, mask=mine, other=0), mask=mine)
        start += tl.sum(mine.to(tl.int32), 0)


def sorted_by_cluster(
    assignment: Tensor,  # [B, M] integers
    number: int,
    ids: Tensor | None = None,  # [M]
) -> tuple[Tensor, Tensor, Tensor | None]:  # [B, M], [B, K + 1], [B, M]
    """Return members by cluster in their order, where every cluster starts, and members' ids.

    What is in no cluster comes last.
    """
    B, M = assignment.shape
    order = torch.empty((B, M), dtype=torch.int64, device=assignment.device)
    starts = torch.empty((B, number + 1), dtype=torch.int32, device=assignment.device)
    sorted_ids = None if ids is None else torch.empty_like(order, dtype=ids.dtype)
    _sort_kernel[(B * (number + 1),)](
        assignment.contiguous(), order if ids is None else ids.contiguous(), order,
        order if sorted_ids is None else sorted_ids, starts, M, number, CHUNK=_CHUNK,
        HAS_IDS=ids is not None,
    )  # fmt: skip
    return order, starts, sorted_ids


def clusters_of(
    assignment: Tensor, number: int, ids: Tensor | None = None
) -> tuple["Clusters", Tensor | None]:
    """Describe one clustering `[M]`, or one per anchor `[N, M]`; return it with columns' ids."""
    if assignment.dim() == 1:
        order, starts, ids = sorted_by_cluster(assignment[None], number, ids)
        return Clusters(number, order[0], starts, assignment), None if ids is None else ids[0]
    M = assignment.shape[1]
    starts = torch.arange(0, 2 * M, M, device=assignment.device, dtype=torch.int32)
    return Clusters(number, None, starts[None], assignment.contiguous()), ids


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
