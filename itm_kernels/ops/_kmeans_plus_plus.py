"""The k-means++ start of k-means: rows drawn in proportion to their squared distance."""

import torch
from torch import Tensor

from itm_kernels import reference
from itm_kernels.backends import resolve
from itm_kernels.ops._define import define, torch_op, wide_empty


def _fake(x: Tensor, member: Tensor | None, draws: Tensor) -> Tensor:
    B = 1 if member is None else member.shape[0]
    return wide_empty(x, B, draws.shape[0], x.shape[1])


define("kmeans_plus_plus", "(Tensor x, Tensor? member, Tensor draws) -> Tensor centroids", _fake)


def fused_kmeans_plus_plus(
    x: Tensor,  # [M, D]
    member: Tensor | None,  # [B, M] bool, one problem per row; None: one problem over all rows
    num_clusters: int,
    generator: torch.Generator | None,
    backend: str,
    draw: bool = True,
) -> Tensor:  # [B, K, D]
    """Draw start centroids by k-means++, with the same random numbers for every problem.

    Without draws, every centroid is the row farthest from the previous ones, ties to the lowest.
    Unless the reference is requested, the start runs on the best available backend, as not every
    backend has a kernel for it.
    """
    draws = x.new_ones((num_clusters, x.shape[0]), dtype=torch.float32)
    if draw:
        draws.exponential_(generator=generator)
    chosen = "reference" if backend == "reference" else "auto"
    sides = 1 if member is None else member.shape[0], x.shape[0]  # problems, and rows of each
    namespace = resolve("kmeans_plus_plus", x, chosen, sides)
    if namespace is None:
        return reference.kmeans_plus_plus(x, member, draws)
    return torch_op(namespace, "kmeans_plus_plus")(x, member, draws)
