"""Clusters that are factorised at a time: all, unless their factors could be too large.

Up to `UNASKED` bytes for the worst case, where one cluster has all M members (M <= 11,520), all
clusters are factorised at once and the host asks for nothing. Beyond, the host reads where the
clusters start, once in each direction: a copy of K + 1 integers, on CUDA one synchronisation.
Factors then have their exact sizes, panels follow the largest cluster, and clusters are taken in
parts that fit a workspace. At M = 32,768, D = 1024, 8 equal clusters take 306 MB (three at a time:
205 MB of factors, 101 MB of work on right-hand sides) instead of 4.6 GB. One cluster that has all
members takes 4.6 GB all the same: an exact solution needs n^2 / 2 numbers of fp64.

In a CUDA graph nothing can be read: the worst case is allocated while one is captured.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import triton
from torch import Tensor

BLOCK = 64  # of fp64: 32 registers of each of 256 threads
UNASKED = 512 << 20  # bytes of factors up to which the host does not ask for clusters' sizes
# Bytes of the factors of a part and of the work on its right-hand sides; the smaller one beside the
# gradients of members.
WORKSPACE, SMALL_WORKSPACE = 320 << 20, 220 << 20


def factor_size(M: int, K: int) -> int:
    """Return how many numbers the factors of K clusters of M columns have at most.

    That is the case where one cluster has all columns: M^2 / 2 numbers of fp64, 69 MB at M = 4,096
    and 4.3 GB at 32,768. 8 equal clusters have an eighth of them.
    """
    blocks = triton.cdiv(M, BLOCK)
    return (blocks * (blocks + 1) // 2 + min(K, M)) * BLOCK**2


class Part(NamedTuple):
    """Clusters that are factorised at a time, as far as the host knows them."""

    begin: int  # first column
    end: int
    size: int  # numbers in their factors, or an upper bound of them
    largest: int  # columns of the largest cluster, or an upper bound of them
    clusters: int  # that are not empty, or an upper bound of them


def whole(M: int, K: int) -> Part:
    """Return all clusters, of which the host knows nothing."""
    return Part(0, M, factor_size(M, K), M, K)


def starts_on_host(starts: Tensor, M: int) -> list[int] | None:  # [1, K + 1]
    """Return where every cluster of M columns starts and the last one ends; None if unknown.

    This is the one place where a launcher waits for the device. A CUDA graph cannot wait, and meta
    tensors have no values.
    """
    if starts.is_meta or (starts.is_cuda and torch.cuda.is_current_stream_capturing()):
        return None
    return starts[0].tolist()


def parts_of(starts: Tensor, M: int, C: int, small: bool = False) -> list[Part]:  # [1, K + 1]
    """Divide clusters of M columns, to be solved for C right-hand sides, into parts."""
    K = starts.shape[1] - 1
    asked = 8 * factor_size(M, K) > UNASKED
    at = starts_on_host(starts, M) if asked else None
    return [whole(M, K)] if at is None else divided(at, C, small)


def divided(starts: list[int], C: int, small: bool = False) -> list[Part]:
    """Divide clusters into parts that fit a workspace; a larger cluster is a part of its own."""
    parts: list[Part] = []
    workspace = SMALL_WORKSPACE if small else WORKSPACE
    for begin, end in pairwise(starts):
        blocks = triton.cdiv(end - begin, BLOCK)
        own = Part(begin, end, blocks * (blocks + 1) // 2 * BLOCK**2, end - begin, 1)
        if own.size == 0:
            continue
        if parts:
            last = parts[-1]
            both = Part(
                last.begin, end, last.size + own.size, max(last.largest, own.largest),
                last.clusters + 1,
            )  # fmt: skip
            if 8 * (both.size + (end - last.begin) * C) <= workspace:
                parts[-1] = both
                continue
        parts.append(own)
    return parts
