"""The rows of the goal table: our function, the plain PyTorch formula, and the input tensors."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from benchmarks import inputs
from benchmarks.interleaved import Row
from benchmarks.limits import Work
from benchmarks.rivals import Builder, Function, eager, fine_grained, keops, packages
from benchmarks.shapes import CLUSTERS, MANY_CLUSTERS, REGIONS, WORDS, Size
from itm_kernels import functional, losses, mining, ops

COSINE: dict[str, Any] = {"metric": "cosine", "mode": "official", "lower": 0.05, "upper": 0.5}
SIGMA, RIDGE = 0.3, 1e-4  # several members of a cluster have weight
ITERATIONS = 10
BOTH, FP32 = (torch.bfloat16, torch.float32), (torch.float32,)  # torch.cdist does not support bf16
Packages = Callable[[Size], dict[str, Builder]]


class Prepared(NamedTuple):
    """A row with our function and the plain PyTorch formula."""

    row: Row
    ours: Function
    formula: Function
    comparable: bool = True  # False: both draw random numbers


Prepare = Callable[[Size, str], Prepared]


class Entry(NamedTuple):
    """A row with the sizes and dtypes that it is measured at."""

    prepare: Prepare
    rows: tuple[int, ...] = (4096, 32768, 128)
    dtypes: tuple[torch.dtype, ...] = BOTH
    packages: Packages = lambda size: {}


def product(size: Size) -> float:
    """Return the floating-point operations of one [N, D] x [D, N] product."""
    return 2.0 * size.N * size.N * size.D


def of_pairs(
    name: str,
    ours: Function,
    formula: Function,
    forward: float,  # products
    backward: float,
    *uses: str,
    comparable: bool = True,
) -> Prepare:
    """Return a loss of image and text embeddings."""

    def prepare(size: Size, device: str) -> Prepared:
        one = product(size)
        # The gradient of hinges over hardest pairs gathers four rows per pair.
        work = Work("product", forward * one, backward * one or 4.0 * size.N * size.D)
        row = Row(name, size, inputs.paired(size, device), work, uses=uses)
        return Prepared(row, ours, formula, comparable)

    return prepare


def similarity(metric: Literal["dot", "cosine", "l1", "l2"], formula: Function) -> Prepare:
    """Return a matrix of similarities or distances, with its gradients."""

    def prepare(size: Size, device: str) -> Prepared:
        one, elements = product(size), float(size.N) * size.N * size.D
        l1 = Work("instructions", 2 * elements, 3 * elements)
        work = l1 if metric == "l1" else Work("product", one, 2 * one)
        row = Row("similarity", size, inputs.paired(size, device), work, case=metric)
        return Prepared(row, partial(ops.similarity, metric=metric), formula)

    return prepare


def intra_modal(metric: str) -> Prepare:
    """Return the constraint of one modality, with 5 % of the pairs inside the band."""

    def prepare(size: Size, device: str) -> Prepared:
        x, one = inputs.paired(size, device)[0], product(size)
        options = COSINE
        if metric != "cosine":
            lower, upper = inputs.band(x, 0.05, p=1.0 if metric == "l1" else 2.0)
            options = {"metric": metric, "mode": "paper", "lower": lower, "upper": upper}
        work = Work("instructions", one / 2, 0.05 * 0.75 * one) if metric == "l1" else None
        row = Row("intra_modal", size, (x,), work or Work("product", one / 2, one), case=metric)
        formula = partial(eager.intra_modal, **options)
        return Prepared(row, partial(functional.intra_modal_constraint, **options), formula)

    return prepare


def synthesis(weights: str, logits: bool) -> Prepare:
    """Return the synthetic vectors of 8 clusters, or their cosines with the anchors."""

    def prepare(size: Size, device: str) -> Prepared:
        anchors, members = inputs.paired(size, device)
        K = min(CLUSTERS, size.N // 4)
        assignment = ops.kmeans(members, K, init=members[-K:]).assignment
        options: dict[str, Any] = {"weights": weights, "ridge": RIDGE}
        operator = ops.rbf_synthesis_logits if logits else ops.rbf_synthesis

        def ours(anchors: Tensor, members: Tensor, assignment: Tensor) -> Tensor:
            return operator(anchors, members, assignment, K, SIGMA, **options)[0]

        def formula(anchors: Tensor, members: Tensor, assignment: Tensor) -> Tensor:
            vectors = eager.rbf_synthesis(anchors, members, assignment, K, SIGMA, **options)
            return cosine_similarity(anchors[:, None], vectors, dim=-1) if logits else vectors

        work = Work("product", 2 * product(size), 4 * product(size))
        name = "rbf_synthesis_logits" if logits else "rbf_synthesis"
        row = Row(name, size, (anchors, members, assignment), work, case=weights)
        return Prepared(row, ours, formula)

    return prepare


def kmeans(size: Size, device: str) -> Prepared:
    """Return k-means: ten iterations from given centroids."""
    x, K = inputs.paired(size, device)[0], min(MANY_CLUSTERS, size.N // 4)
    start, work = x[:K].clone(), 2.0 * size.N * K * size.D * (ITERATIONS + 1)
    row = Row(
        "kmeans", size, (x,), Work("product", work, 0), case=f"K={K}", differentiable=False,
        # A row between two centroids may be assigned to either, which moves both.
        value=lambda found: (x.double() - found[1].double()[found[0]]).square().sum(),
        tolerance=1e-3 if size.dtype == torch.float32 else None,
    )  # fmt: skip
    return Prepared(
        row,
        lambda x: ops.kmeans(x, K, init=start, iterations=ITERATIONS),
        lambda x: eager.kmeans(x, start.to(x.dtype), ITERATIONS),
    )


def ranks(size: Size, device: str) -> Prepared:
    """Return the ranks of a retrieval evaluation."""
    ids = torch.arange(size.N, device=device)
    tensors = *inputs.paired(size, device), ids, ids.clone()
    row = Row(
        "ranks", size, tensors, Work("product", product(size), 0), differentiable=False,
        value=lambda found: found[0].double(),
        # Scores that are equal at this precision change a rank by one.
        tolerance=1e-2 if size.dtype == torch.float32 else 0.5,
    )  # fmt: skip
    return Prepared(row, ops.ranks, eager.ranks)


def sampler(size: Size, device: str) -> Prepared:
    """Return the sampling of the hardest negatives for ITM, compared by their mean score."""
    image, text = inputs.paired(size, device)
    sample = mining.HardNegativeSampler("hardest")

    def value(found: Any) -> Tensor:
        texts, images = found
        return (image * text[texts]).sum(1).mean() + (image[images] * text).sum(1).mean()

    row = Row(
        "sample_negatives", size, (image, text), Work("product", product(size), 0), value=value,
        case="hardest", differentiable=False,
    )  # fmt: skip
    options: dict[str, Any] = {"strategy": "hardest", "temperature": 0.07, "generator": None}
    return Prepared(row, sample, partial(eager.sample_negatives, **options))


def words_and_regions(operator: str, ours: Function, formula: Function) -> Prepare:
    """Return the scores of all images and texts from their regions and words."""

    def prepare(size: Size, device: str) -> Prepared:
        sets = inputs.words_and_regions(size, REGIONS, WORDS[0], device)
        one = REGIONS * WORDS[0] * product(size)
        row = Row(operator, size, sets, Work("product", one, 2 * one), tolerance=1e-2)
        return Prepared(row, ours, formula)

    return prepare


def of_scores(size: Size, device: str) -> Prepared:
    """Return InfoNCE of a score matrix, whose least work is to read and write it."""
    image, text = inputs.paired(size, device)
    scores, whole = image @ text.T, float(size.N * size.N * size.dtype.itemsize)
    work = Work("copy", whole, 2 * whole)
    row = Row("info_nce", size, (scores,), work, "from scores", ("log_sum_exp_from_scores",))
    loss = losses.InfoNCELoss(logit_scale=eager.SCALE).to(device)
    return Prepared(row, loss.from_scores, lambda s: eager.cross_entropies(eager.SCALE * s))


def hinges(hardest: bool, size: Size) -> dict[str, Builder]:
    """Return the packages that compute hinges over all pairs."""
    return {"metric_learning": partial(packages.metric_learning_hinges, hardest=hardest)}


def contrastive(size: Size) -> dict[str, Builder]:
    """Return the packages that compute InfoNCE."""
    found: dict[str, Builder] = {
        "open_clip": packages.clip,
        "metric_learning": partial(packages.metric_learning_nt_xent, size.N),
        "inf_cl": packages.inf_cl,
        "memeff": packages.memeff_clip,
    }
    if size.dtype == torch.float32:
        found["keops"] = keops.info_nce
    return found


def cosines(x: Tensor, y: Tensor) -> Tensor:
    """Return the matrix of cosine similarities."""
    return normalize(x, dim=-1) @ normalize(y, dim=-1).T


_INFO_CMR: dict[str, Any] = {"temperature": 1 / eager.SCALE}
_DEFAULT_INFO_CMR = of_pairs(
    "info_cmr default", partial(functional.info_cmr_loss, **_INFO_CMR),
    partial(functional.info_cmr_loss, backend="reference", **_INFO_CMR), 3, 2,
    "log_sum_exp", "rbf_synthesis_logits", "kmeans", comparable=False,
)  # fmt: skip
# The most informative rows first, in case a run ends early.
ENTRIES: dict[str, Entry] = {
    "info_nce": Entry(
        of_pairs("info_nce", partial(functional.info_nce_loss, logit_scale=eager.SCALE),
                 eager.info_nce, 1, 2, "log_sum_exp"), packages=contrastive,
    ),
    "max_of_hinges": Entry(
        of_pairs("max_of_hinges", functional.max_of_hinges_loss, eager.max_of_hinges, 1, 0,
                 "max_of_hinges"), packages=partial(hinges, True),
    ),
    "sigmoid": Entry(
        of_pairs("sigmoid", partial(functional.sigmoid_loss, logit_scale=eager.SCALE,
                                    logit_bias=eager.BIAS), eager.sigmoid, 1, 2, "sigmoid"),
        packages=lambda size: {
            "open_clip": packages.siglip, "siglip_kernel": packages.siglip_kernel
        },
    ),
    "intra_modal cosine": Entry(intra_modal("cosine")),
    "imc": Entry(
        of_pairs("imc", functional.imc_loss, eager.imc, 2, 2, "max_of_hinges", "intra_modal")
    ),
    "similarity dot": Entry(similarity("dot", lambda x, y: x @ y.T), rows=(4096, 32768)),
    "similarity cosine": Entry(similarity("cosine", cosines), rows=(4096, 32768)),
    "info_cmr alone": Entry(
        of_pairs("info_cmr", partial(functional.info_cmr_loss, num_clusters=0, num_noise=0,
                                     **_INFO_CMR), eager.info_cmr, 1, 2, "log_sum_exp"),
    ),
    "info_cmr": Entry(_DEFAULT_INFO_CMR, rows=(4096, 128)),
    "sum_of_hinges": Entry(
        of_pairs("sum_of_hinges", functional.sum_of_hinges_loss, eager.sum_of_hinges, 1, 2,
                 "sum_of_hinges"), packages=partial(hinges, False),
    ),
    "late_interaction": Entry(
        words_and_regions("late_interaction", ops.late_interaction, fine_grained.max_sim),
        rows=(512, 128),
    ),
    "cross_attention": Entry(
        words_and_regions("cross_attention", partial(ops.cross_attention,
                          smooth=fine_grained.SMOOTH, scale=fine_grained.SCALE),
                          fine_grained.from_gram), rows=(128,),
    ),
    "info_nce from scores": Entry(of_scores, rows=(4096, 32768)),
    "intra_modal l2": Entry(intra_modal("l2"), dtypes=FP32),
    "intra_modal l1": Entry(intra_modal("l1"), rows=(4096, 128), dtypes=FP32),
    "similarity l1": Entry(similarity("l1", eager.l1), rows=(4096,), dtypes=FP32),
    "similarity l2": Entry(similarity("l2", torch.cdist), rows=(4096,), dtypes=FP32),
    "rbf vectors attention": Entry(synthesis("attention", False), (4096, 32768), FP32),
    "rbf vectors kam": Entry(synthesis("kam", False), (4096, 32768), FP32),
    "rbf logits kam": Entry(synthesis("kam", True), (4096, 32768), FP32),
    "kmeans": Entry(kmeans, rows=(4096, 32768)),
    "ranks": Entry(ranks, rows=(4096, 32768)),
    "sampler": Entry(sampler, rows=(4096, 32768)),
    # Plain PyTorch takes 24 s.
    "info_cmr large": Entry(_DEFAULT_INFO_CMR, rows=(32768,), dtypes=(torch.bfloat16,)),
}  # fmt: skip
