"""Clusters of members as ranges of sorted columns, or as masks.

Cluster sizes exist only on the device, so no library product can have their shapes. With one
clustering for all anchors, members are sorted by cluster: a cluster is a list of consecutive
columns, and its kernel reads only those. If every anchor has its own clustering, one list holds all
columns, rows are pairs (anchor, cluster), and a cluster is a mask: more products, but no gathered
rows.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import cdiv, jit, next_power_of_2

_CHUNK = 1024  # members, or tiles, per iteration of a program
ALIGNED = 8  # columns of weights in parts that no two clusters share (`_cluster_products`)


class Spans(NamedTuple):
    """Clusters split into tiles of columns; T is an upper bound, and the last tiles are empty."""

    cluster: Tensor  # [B, T] int32, of B clusterings
    begin: Tensor  # [B, T] first column of the cluster
    first: Tensor  # [B, T] first column of the tile
    end: Tensor  # [B, T] end of the cluster

    def arguments(self) -> dict[str, Any]:
        """Return the tiles as a kernel's arguments."""
        return {f"span_{name}": tensor for name, tensor in self._asdict().items()}


@triton.jit
def tiles_before(starts, cluster, CLUSTERS: tl.constexpr, SIZE: tl.constexpr):
    """Return the number of tiles of SIZE columns `[CLUSTERS]` of every cluster before a given one.

    It is 0 for the other clusters. CLUSTERS is a power of two.
    """
    k = tl.arange(0, CLUSTERS)
    before = k < cluster
    begin = tl.load(starts + k, mask=before, other=0)
    return (tl.load(starts + k + 1, mask=before, other=0) - begin + SIZE - 1) // SIZE


@jit(do_not_specialize=["T"])
def _spans_kernel(
    starts,  # [B, K + 1]
    spans,  # [4, B, T]
    K,
    T,
    CLUSTERS: tl.constexpr,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write the tiles of one cluster per program; the last program writes the empty tiles."""
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
    """Split clusters `[start, next start)` `[B, K + 1]` into tiles of `at_once` columns."""
    B, K = starts.shape[0], starts.shape[1] - 1
    most = (columns + min(K, columns) * (at_once - 1)) // at_once
    spans = torch.empty((4, B, most), dtype=torch.int32, device=starts.device)
    _spans_kernel[(B * (K + 1),)](
        starts, spans, K, most, CLUSTERS=next_power_of_2(K), SIZE=at_once, CHUNK=_CHUNK
    )
    return Spans(*spans.unbind())


class Clusters(NamedTuple):
    """The assignment of M members to clusters, for N anchors."""

    number: int  # K
    order: Tensor | None  # [M] member of every column; None: unsorted
    starts: Tensor  # [1, lists + 1] first column of every list
    assignment: Tensor  # [N, M]; [M] for one clustering, which kernels do not read
    groups: Spans | None = None  # tiles of ALIGNED columns of one clustering

    @property
    def per_anchor(self) -> bool:
        """Return whether every anchor has its own clustering."""
        return self.order is None

    def rows(self, anchors: int) -> int:
        """Return the number of rows per list for a number of anchors."""
        return anchors * self.number if self.per_anchor else anchors

    @property
    def lists(self) -> int:
        """Return the number of lists of columns."""
        return self.starts.shape[1] - 1

    def of_anchors(self, first: int, anchors: int) -> "Clusters":
        """Return the clusters of a range of anchors."""
        if not self.per_anchor:
            return self
        return self._replace(assignment=self.assignment[first : first + anchors])

    def arguments(self) -> dict[str, Any]:
        """Return the clusters as a kernel's arguments."""
        return {
            **{"starts": self.starts, "assignment": self.assignment, "K": self.number},
            **{"M": self.assignment.shape[-1], "PER_ANCHOR": self.per_anchor},
        }


@triton.jit
def anchor_and_cluster(p, P, K, group, PER_ANCHOR: tl.constexpr):
    """Return the anchors and the clusters of rows `[p]` of a list: P rows, fewer than 2^31."""
    row = tl.minimum(p, P - 1)
    anchor = (row // K if PER_ANCHOR else row).to(tl.int64)
    cluster = row % K if PER_ANCHOR else group
    return anchor, cluster


@triton.jit
def in_cluster(at, m, end, p, P, k, assignment, PER_ANCHOR: tl.constexpr):
    """Mark `[p, m]` where column m is in the cluster of row p; `at` are offsets in assignment."""
    own = (m < end)[None, :] & (p < P)[:, None]
    if PER_ANCHOR:
        own &= tl.load(assignment + at, mask=own, other=-1) == k[:, None]
    return own


@jit(do_not_specialize=["M"])
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
    """Write the members of one cluster per program, in order; the last program writes the rest."""
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
    """Return members sorted by cluster, the start of every cluster, and the sorted ids.

    The sort is stable. Members of no cluster come last.
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
    """Return one clustering `[M]`, or one per anchor `[N, M]`, and the ids of its columns."""
    if assignment.dim() == 1:
        order, starts, ids = sorted_by_cluster(assignment[None], number, ids)
        groups = spans_of(starts, assignment.shape[0], ALIGNED)
        clusters = Clusters(number, order[0], starts, assignment, groups)
        return clusters, None if ids is None else ids[0]
    M = assignment.shape[1]
    starts = torch.arange(0, 2 * M, M, device=assignment.device, dtype=torch.int32)
    return Clusters(number, None, starts[None], assignment.contiguous()), ids


class Grid(NamedTuple):
    """The grid of a kernel with one program per tile of rows of every list."""

    P: int  # rows per list
    tiles: int
    programs: int

    def arguments(self) -> dict[str, Any]:
        """Return the grid as a kernel's arguments."""
        return {"P": self.P, "tiles": self.tiles}


def grid_of(clusters: Clusters, anchors: int, rows: int) -> Grid:
    """Return the grid for a number of anchors and of rows per tile."""
    P = clusters.rows(anchors)
    return Grid(P, cdiv(P, rows), clusters.lists * cdiv(P, rows))
