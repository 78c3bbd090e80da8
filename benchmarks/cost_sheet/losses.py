"""Every loss of the package as a function of embeddings, and its eager formula.

Meta tensors have no values to index by, so formulas that need them are replaced by equivalents with
clusters of equal size: the same launches and memory traffic.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.rivals import eager
from itm_kernels import functional, losses, mining, ops

Function = Callable[..., Any]
CLUSTERS, CENTROIDS, ITERATIONS, SIGMA, RIDGE = 8, 256, 10, 0.3, 1e-4
TRITON: dict[str, Any] = {"backend": "triton"}
BAND: dict[str, Any] = {"mode": "paper", "lower": 0.05, "upper": 0.5}


class Loss(NamedTuple):
    """A row of the sheet."""

    ours: Function
    eager: Function
    inputs: Callable[[int, int, torch.dtype], tuple[Tensor, ...]]
    note: str = ""  # the formula counted as eager


def rows(*shape: int, dtype: torch.dtype, grad: bool = True) -> Tensor:
    """Return embeddings without data."""
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=grad)


def numbers(N: int) -> Tensor:
    """Return ids, or cluster indices."""
    return torch.empty(N, dtype=torch.int64, device="meta")


def sides(N: int, D: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return image and text embeddings."""
    return rows(N, D, dtype=dtype), rows(N, D, dtype=dtype)


def one_side(N: int, D: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return the embeddings of one modality."""
    return (rows(N, D, dtype=dtype),)


def views(N: int, D: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return two views of both sides, and fused vectors."""
    return tuple(rows(2, N, D, dtype=dtype) for _ in range(3))


def clustered(N: int, D: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return anchors, members and their clusters."""
    return *sides(N, D, dtype), numbers(N)


def searched(N: int, D: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return queries and gallery with their ids."""
    pair = (rows(N, D, dtype=dtype, grad=False) for _ in range(2))
    return *pair, numbers(N), numbers(N)


def centred(N: int, D: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return rows and initial centroids."""
    K = min(CENTROIDS, N // 4)
    return rows(N, D, dtype=dtype, grad=False), rows(K, D, dtype=dtype, grad=False)


# -- ours ------------------------------------------------------------------------------------------


def itm(image: Tensor, text: Tensor) -> Tensor:
    """Return the image-text matching loss on sampled negatives; dot products replace the model."""
    sampler = mining.HardNegativeSampler("multinomial", **TRITON)

    def match(i: Tensor, t: Tensor) -> Tensor:
        return (image.index_select(0, i) * text.index_select(0, t)).sum(1)

    return losses.ITMLoss(sampler=sampler)(image, text, match)


def ito(images: Tensor, texts: Tensor, fused: Tensor) -> Tensor:
    """Return the ITO loss of two views and their fusion."""
    return losses.ITOLoss(eager.SCALE, learnable=False, **TRITON)(images, texts, fused)


def in_gluon(function: Function) -> Function:
    """Return a loss that uses every kernel of `triton.gluon`, verified on a GPU or not."""

    def run(*inputs: Tensor) -> Tensor:
        gluon: Any = importlib.import_module("itm_kernels.triton.gluon")
        with patch.object(gluon, "PROVEN", frozenset(gluon.KERNELS)):
            return function(*inputs)

    return run


def rbf(anchors: Tensor, members: Tensor, assignment: Tensor, weights: Any) -> Tensor:
    """Return the synthetic vectors of every anchor."""
    options = {"num_clusters": CLUSTERS, "sigma": SIGMA, "weights": weights, "ridge": RIDGE}
    return ops.rbf_synthesis(anchors, members, assignment, **options, **TRITON).vectors


def kmeans(x: Tensor, start: Tensor) -> Tensor:
    """Return the assignment of k-means from given centroids."""
    K = start.shape[0]
    return ops.kmeans(x, K, init=start, iterations=ITERATIONS, **TRITON).assignment


def ranks(queries: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> Tensor:
    """Return the rank of every query's best positive."""
    return ops.ranks(queries, gallery, query_ids, gallery_ids, **TRITON).rank


def sampled(image: Tensor, text: Tensor) -> Tensor:
    """Return one sampled negative per anchor."""
    return mining.HardNegativeSampler("multinomial", **TRITON)(image, text).text_index


# -- eager formulas that differ from those of `rivals.eager`, or that meta tensors cannot run ------


def eager_distances(x: Tensor, metric: str) -> Tensor:
    """Return the bounded sum of distances; `cdist` has no bf16 kernel on CUDA."""
    return eager.intra_modal(x.float(), metric, **BAND)


def eager_rbf(anchors: Tensor, members: Tensor, assignment: Tensor, weights: str) -> Tensor:
    """Return synthetic vectors, in a loop over clusters of equal size."""
    vectors = []
    size = len(members) // CLUSTERS
    anchors, members = anchors.float(), members.float()
    for k in range(CLUSTERS):
        chosen = (assignment == k)[:size].long()  # as many as the cluster's members
        own = members.index_select(0, chosen)
        khat = (-torch.cdist(anchors, own).square() / (2 * SIGMA**2)).softmax(1)
        if weights == "kam":
            gram = torch.exp(-torch.cdist(own, own).square() / (2 * SIGMA**2))
            gram = gram + RIDGE * torch.eye(size, dtype=gram.dtype, device=gram.device)
            khat = torch.cholesky_solve(khat.T, torch.linalg.cholesky(gram)).T
        vectors.append(khat @ own)
    return torch.stack(vectors, 1)


def eager_kmeans(x: Tensor, start: Tensor) -> Tensor:
    """Return the assignment of Lloyd's algorithm; cluster sizes are sums of ones."""
    centroids, wide = start.float(), x.float()
    ones = torch.ones_like(wide[:, 0])
    for _ in range(ITERATIONS):
        nearest = torch.cdist(wide, centroids).argmin(1)
        count = torch.zeros_like(centroids[:, 0]).index_add_(0, nearest, ones)[:, None]
        total = torch.zeros_like(centroids).index_add_(0, nearest, wide)
        centroids = torch.where(count > 0, total / count.clamp(min=1), centroids)
    return torch.cdist(wide, centroids).argmin(1)


def eager_itm(image: Tensor, text: Tensor) -> Tensor:
    """Return the ITM loss as in ALBEF: sampled negatives, gathered rows, a cross-entropy."""
    N = image.shape[0]
    with torch.no_grad():
        scores = image @ text.T / 0.07
        own = torch.eye(N, dtype=torch.bool, device=image.device)
        scores = scores.masked_fill(own, -torch.inf)
        texts = torch.multinomial(scores.softmax(1), 1)[:, 0]
        images = torch.multinomial(scores.T.softmax(1), 1)[:, 0]
    fused = torch.cat([image * text, image * text[texts], image[images] * text])
    labels = torch.zeros(3 * N, dtype=fused.dtype, device=image.device)
    labels[:N] = 1
    return torch.nn.functional.binary_cross_entropy_with_logits(fused.sum(1), labels)


def eager_sampled(image: Tensor, text: Tensor) -> Tensor:
    """Return the negatives of ALBEF's sampler, masked before its softmax."""
    generator: Any = None
    return eager.sample_negatives(image, text, "multinomial", 0.07, generator)[0]


def _bounded(metric: Any) -> Loss:
    ours = partial(functional.intra_modal_constraint, metric=metric, **BAND, **TRITON)
    return Loss(ours, partial(eager_distances, metric=metric), one_side, "cdist in fp32")


_SCALED: dict[str, Any] = {"logit_scale": eager.SCALE, **TRITON}
_PLAIN_CMR: dict[str, Any] = {"num_clusters": 0, "num_noise": 0}
_REFERENCE: dict[str, Any] = {"backend": "reference"}
_SIGMOID: dict[str, Any] = {"logit_bias": eager.BIAS, **_SCALED}
_EQUAL = "a loop over clusters of equal size, in fp32"
_BOUNDED: dict[str, Any] = {"metric": "cosine", "mode": "official"}

LOSSES: dict[str, Loss] = {
    "sum of hinges": Loss(
        partial(functional.sum_of_hinges_loss, **TRITON), eager.sum_of_hinges, sides
    ),
    "max of hinges": Loss(
        partial(functional.max_of_hinges_loss, **TRITON), eager.max_of_hinges, sides
    ),
    "max of hinges, Gluon": Loss(
        in_gluon(partial(functional.max_of_hinges_loss, **TRITON)), eager.max_of_hinges, sides
    ),
    "bounded cosines": Loss(
        partial(functional.intra_modal_constraint, **_BOUNDED, **TRITON),
        partial(eager.intra_modal, **_BOUNDED),
        one_side,
    ),
    "bounded l1": _bounded("l1"),
    "bounded l2": _bounded("l2"),
    "imc": Loss(partial(functional.imc_loss, **TRITON), eager.imc, sides),
    "info_nce": Loss(partial(functional.info_nce_loss, **_SCALED), eager.info_nce, sides),
    "sigmoid": Loss(partial(functional.sigmoid_loss, **_SIGMOID), eager.sigmoid, sides),
    "info_cmr plain": Loss(
        partial(functional.info_cmr_loss, **_PLAIN_CMR, **TRITON), eager.info_cmr, sides
    ),
    "info_cmr": Loss(
        partial(functional.info_cmr_loss, **TRITON),
        partial(functional.info_cmr_loss, **_REFERENCE),
        sides,
        "the package's reference",
    ),
    "itm": Loss(itm, eager_itm, sides),
    "sampler": Loss(sampled, eager_sampled, sides),
    "ito": Loss(ito, eager.ito, views),
    "ranks": Loss(ranks, eager.ranks, searched),
    "kmeans": Loss(kmeans, eager_kmeans, centred, "cdist in fp32"),
    "rbf attention": Loss(
        partial(rbf, weights="attention"),
        partial(eager_rbf, weights="attention"),
        clustered,
        _EQUAL,
    ),
    "rbf kam": Loss(
        partial(rbf, weights="kam"), partial(eager_rbf, weights="kam"), clustered, _EQUAL
    ),
}
