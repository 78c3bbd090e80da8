"""Batches of clusters whose Cholesky factors exist at the same time, bounded by a workspace.

Up to `SYNC_FREE_BYTES` for the worst case, in which one cluster has all M members (M <= 11,520),
one batch holds all clusters and the host never reads the device. Beyond that, the host reads where
the clusters start, once in each direction: a copy of K + 1 integers, on CUDA one synchronisation.
Factors then have their exact sizes, the number of panels follows the largest cluster, and clusters
are processed in batches that fit a workspace. At M = 32,768, D = 1024, 8 equal clusters take 306 MB
(three at a time: 205 MB of factors, 101 MB of work on right-hand sides) instead of 4.6 GB. A single
cluster with all members still takes 4.6 GB: an exact solution needs n^2 / 2 fp64 values.

CUDA graph capture allows no read, so the worst case is allocated while a graph is captured.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from itm_kernels.triton._launch import cdiv

BLOCK = 64  # 64 x 64 fp64 values take 32 registers in each of 256 threads
SYNC_FREE_BYTES = 512 << 20  # factors up to this size need no cluster sizes on the host
# Bytes of a batch's factors and of the work on its right-hand sides. The smaller limit applies when
# the gradients of members are also in memory.
WORKSPACE, SMALL_WORKSPACE = 320 << 20, 220 << 20


def factor_size(M: int, K: int) -> int:
    """Return an upper bound on the number of values in the factors of K clusters of M columns.

    The bound is reached when one cluster has all columns: M^2 / 2 fp64 values, 69 MB at M = 4,096
    and 4.3 GB at 32,768. 8 equal clusters need an eighth of that.
    """
    blocks = cdiv(M, BLOCK)
    return (blocks * (blocks + 1) // 2 + min(K, M)) * BLOCK**2


class ClusterBatch(NamedTuple):
    """Clusters that are factorized together; the sizes are exact if the host has read them."""

    begin: int  # first column
    end: int
    size: int  # values in their factors, or an upper bound
    largest: int  # columns of the largest cluster, or an upper bound
    clusters: int  # number of non-empty clusters, or an upper bound


def single_batch(M: int, K: int) -> ClusterBatch:
    """Return one batch of all clusters, with the upper bounds that need no read."""
    return ClusterBatch(0, M, factor_size(M, K), M, K)


def starts_on_host(starts: Tensor, M: int) -> list[int] | None:  # [1, K + 1]
    """Return where every cluster of M columns starts and the last one ends; None if unknown.

    This is the only place where a launcher waits for the device. A CUDA graph cannot wait, and meta
    tensors have no values.
    """
    if starts.is_meta or (starts.is_cuda and torch.cuda.is_current_stream_capturing()):
        return None
    return starts[0].tolist()


def batches_of(
    starts: Tensor,  # [1, K + 1]
    M: int,
    C: int,
    small: bool = False,
) -> list[ClusterBatch]:
    """Divide clusters of M columns, to be solved for C right-hand sides, into batches."""
    K = starts.shape[1] - 1
    asked = 8 * factor_size(M, K) > SYNC_FREE_BYTES
    at = starts_on_host(starts, M) if asked else None
    return [single_batch(M, K)] if at is None else split_into_batches(at, C, small)


def split_into_batches(starts: list[int], C: int, small: bool = False) -> list[ClusterBatch]:
    """Divide clusters into batches that fit a workspace; a larger cluster forms its own batch."""
    batches: list[ClusterBatch] = []
    workspace = SMALL_WORKSPACE if small else WORKSPACE
    for begin, end in pairwise(starts):
        blocks = cdiv(end - begin, BLOCK)
        own = ClusterBatch(begin, end, blocks * (blocks + 1) // 2 * BLOCK**2, end - begin, 1)
        if own.size == 0:
            continue
        if batches:
            last = batches[-1]
            both = ClusterBatch(
                last.begin, end, last.size + own.size, max(last.largest, own.largest),
                last.clusters + 1,
            )  # fmt: skip
            if 8 * (both.size + (end - last.begin) * C) <= workspace:
                batches[-1] = both
                continue
        batches.append(own)
    return batches
