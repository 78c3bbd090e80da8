"""k-means for one set of members, or for one set per anchor."""

from typing import NamedTuple

import torch
from torch import Tensor

from itm_kernels import _checks, reference
from itm_kernels._autocast import outside_autocast
from itm_kernels._options import Backend
from itm_kernels._public import public
from itm_kernels.backends import CHOICES, resolve
from itm_kernels.ops._define import define, index_empty, torch_op, wide_empty
from itm_kernels.ops._kmeans_plus_plus import fused_kmeans_plus_plus


class KMeans(NamedTuple):
    """The cluster of every row, and the centroids, of which its own is the nearest."""

    assignment: Tensor  # [M] int64
    centroids: Tensor  # [K, D]


def _fake(
    x: Tensor, member: Tensor | None, centroids: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    return index_empty(x, centroids.shape[0], x.shape[0]), wide_empty(x, *centroids.shape)


define(
    "kmeans",
    "(Tensor x, Tensor? member, Tensor centroids, int iterations) "
    "-> (Tensor assignment, Tensor centroids)",
    _fake,
)


@outside_autocast
@torch.no_grad()
def fused_kmeans(
    x: Tensor,  # [M, D]
    member: Tensor | None,  # [B, M] bool, one problem per row; None: one problem over all rows
    num_clusters: int,
    iterations: int,
    init: Tensor | None,  # [B, K, D]
    generator: torch.Generator | None,
    backend: str,
    draw: bool = True,  # False: a start that depends on the rows only
) -> tuple[Tensor, Tensor]:  # [B, M], [B, K, D]
    """Cluster checked arguments."""
    if init is None:
        init = fused_kmeans_plus_plus(x, member, num_clusters, generator, backend, draw)
    sides = init.shape[0], x.shape[0]  # problems, and rows of each
    namespace = resolve("kmeans", x, backend, sides)
    if namespace is None:
        return reference.kmeans(x, member, init, iterations)
    return torch_op(namespace, "kmeans")(x, member, init, iterations)


@public
def kmeans(
    x: Tensor,
    num_clusters: int,
    *,
    iterations: int = 10,
    init: Tensor | None = None,
    generator: torch.Generator | None = None,
    backend: Backend = "auto",
) -> KMeans:
    """Cluster rows by Lloyd's iterations from a k-means++ start.

    Args:
        x: `[M, D]`, floating point, not normalised.
        num_clusters: K >= 1; clusters in excess of M stay empty.
        iterations: number of updates of the centroids, >= 0. There is no early stop, which would
            wait for the device; on a CPU, updates that would change nothing are skipped.
        init: `[K, D]` start centroids instead of k-means++.
        generator: of the k-means++ draws, on the device of x.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.

    Returns:
        `KMeans(assignment [M], centroids [K, D])`, without gradient. Ties go to the lowest
        cluster, and an empty cluster keeps its centroid. The same seed gives the same bits.

    Raises:
        TypeError: x is not a floating-point tensor.
        ValueError: invalid shapes or options.
        RuntimeError: the requested backend cannot run here.

    >>> import torch
    >>> kmeans(torch.tensor([[0.0], [1.0], [10.0]]), 2, init=torch.tensor([[0.0], [9.0]]))
    KMeans(assignment=tensor([0, 0, 1]), centroids=tensor([[ 0.5000],
            [10.0000]]))
    """
    _checks.embeddings(x=x)
    _checks.integer("num_clusters", num_clusters, least=1)
    _checks.integer("iterations", iterations, least=0)
    _checks.option("backend", backend, CHOICES)
    _checks.generator(generator)
    if init is not None:
        x, init = _checks.embeddings(x=x, init=init)
        if init.shape[0] != num_clusters:
            raise ValueError(
                f"kmeans: init {list(init.shape)} must hold num_clusters = {num_clusters} rows"
            )
        init = init[None]
    found = fused_kmeans(x, None, num_clusters, iterations, init, generator, backend)
    return KMeans(found[0][0], found[1][0])
