"""The same mathematics in other packages.

Each builder returns a function of the row's tensors that calls the package's own API. Everything
that a package needs around its call (normalised rows, labels, both directions) is included in the
function and in its time.
"""

import importlib
import importlib.util
import math
import warnings
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.memory import available
from benchmarks.rivals import PACKAGES, Function, UnavailableError
from benchmarks.rivals.eager import BIAS, MARGIN, SCALE


def load(name: str) -> Any:
    """Import a package, or raise that it is not installed."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken installation counts as missing
        raise UnavailableError(f"not installed ({type(error).__name__})") from error


def load_open_clip() -> Any:
    """Load only open_clip's loss module: the package imports torchvision, without a CPU build."""
    try:
        path = distribution(PACKAGES["open_clip"]).locate_file("open_clip/loss.py")
    except PackageNotFoundError as error:
        raise UnavailableError("not installed") from error
    spec = importlib.util.spec_from_file_location("open_clip_loss", str(path))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def clip() -> Function:
    """Build open_clip's ClipLoss, which computes the score matrix once per direction."""
    loss = load_open_clip().ClipLoss()
    return lambda image, text: loss(normalize(image, dim=-1), normalize(text, dim=-1), SCALE)


def siglip() -> Function:
    """Build open_clip's SigLipLoss."""
    loss = load_open_clip().SigLipLoss()
    return lambda image, text: loss(normalize(image, dim=-1), normalize(text, dim=-1), SCALE, BIAS)


def _both_ways(loss: Any, miner: Any, image: Tensor, text: Tensor) -> Tensor:
    labels = torch.arange(image.shape[0], device=image.device)
    # Passing one object as labels and ref_labels would drop the diagonal, that is every positive.
    other = labels.clone()
    one = miner(image, labels, text, other) if miner else None
    two = miner(text, labels, image, other) if miner else None
    return loss(image, labels, one, text, other) + loss(text, labels, two, image, other)


def metric_learning_hinges(hardest: bool) -> Function:
    """Build pytorch-metric-learning's TripletMarginLoss on dot products, optionally hard-mined."""
    load("pytorch_metric_learning")
    losses = load("pytorch_metric_learning.losses")
    miners = load("pytorch_metric_learning.miners")
    distances = load("pytorch_metric_learning.distances")
    reducers = load("pytorch_metric_learning.reducers")
    dot = distances.DotProductSimilarity(normalize_embeddings=False)
    loss = losses.TripletMarginLoss(margin=MARGIN, distance=dot, reducer=reducers.SumReducer())
    miner = miners.BatchHardMiner(distance=dot) if hardest else None
    return lambda image, text: _both_ways(loss, miner, image, text)


def metric_learning_nt_xent(N: int) -> Function:
    """Build pytorch-metric-learning's NTXentLoss, mean of both directions."""
    # It compares every positive with every negative pair, in matrices of N x N (N - 1) elements. A
    # byte mask and three fp32 matrices are live at once.
    need = 13 * N**3
    if available() and need > available() / 2:
        raise UnavailableError(f"out of memory (needs about {need / 2**30:,.0f} GiB)")
    loss = load("pytorch_metric_learning.losses").NTXentLoss(temperature=1 / SCALE)
    return lambda image, text: _both_ways(loss, None, image, text) / 2


def load_for_cuda(name: str) -> Any:
    """Import a package that has Triton kernels only, or raise what is missing."""
    if not torch.cuda.is_available():
        raise UnavailableError("needs CUDA")
    return load(name)


def inf_cl() -> Function:
    """Build Inf-CL's fused contrastive loss (Triton), mean of both directions.

    It returns one value per row and converts rows to fp32. D must be a multiple of its head size,
    256.
    """
    loss = load_for_cuda("inf_cl").cal_flash_loss

    def function(image: Tensor, text: Tensor) -> Tensor:
        v, c = normalize(image, dim=-1), normalize(text, dim=-1)
        return (loss(v, c, scale=SCALE) + loss(c, v, scale=SCALE)).mean() / 2

    return function


def memeff_clip() -> Function:
    """Build memeff's MemoryEfficientCLIPLoss (Triton): normalises rows, mean of both directions.

    Without `stable` its gradient is that of its value; with it, sqrt(N temperature) times as large.
    """
    package = load_for_cuda("memeff")
    loss = package.MemoryEfficientCLIPLoss(temperature=1 / SCALE, stable=False)
    return lambda image, text: loss(image, text)


def siglip_kernel() -> Function:
    """Build siglip-kernel's fused_siglip_loss (Triton), with the backend that it chooses.

    It takes unit rows and the logarithm of the scale, and divides by the number of rows, as ours.
    Both scalars are tensors, and it computes their gradients too.
    """
    loss = load_for_cuda("siglip_kernel").fused_siglip_loss

    def function(image: Tensor, text: Tensor) -> Tensor:
        scale, bias = (image.new_full((), v, dtype=torch.float32) for v in (math.log(SCALE), BIAS))
        return loss(normalize(image, dim=-1), normalize(text, dim=-1), scale, bias)

    return function


def late_interaction_kernels() -> Function:
    """Build late-interaction-kernels' MaxSimScorer: Triton on a GPU, plain PyTorch on a CPU.

    It normalises rows and sums over the words of a text; the scores of texts are rows.
    """
    score = load("late_interaction_kernels").MaxSimScorer(normalize=True)

    def function(regions: Tensor, words: Tensor) -> Tensor:  # [N, R, D], [M, L, D] -> [N, M]
        return score(words, regions).T / words.shape[1]

    return function


def scikit_learn_kmeans(init: Tensor, iterations: int) -> Function:
    """Build scikit-learn's KMeans (Lloyd), which stops early when no assignment changes."""
    cluster = load("sklearn.cluster")
    start = init.cpu().numpy()

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        model = cluster.KMeans(
            len(start), init=start, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # with fixed iterations "did not converge" is expected
            model.fit(x.cpu().numpy())
        nearest = torch.from_numpy(model.labels_).long().to(x.device)
        return nearest, torch.from_numpy(model.cluster_centers_).to(x.device)

    return function


def faiss_kmeans(init: Tensor, iterations: int, threads: int) -> Function:
    """Build faiss-cpu's Kmeans on all points, with one search for the assignment."""
    faiss = load("faiss")
    start = init.cpu().numpy()

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        faiss.omp_set_num_threads(threads)
        rows = x.cpu().numpy()
        model = faiss.Kmeans(
            rows.shape[1],
            len(start),
            niter=iterations,
            min_points_per_centroid=1,
            max_points_per_centroid=len(rows),
        )
        model.train(rows, init_centroids=start)
        nearest = model.assign(rows)[1]
        return torch.from_numpy(nearest).long().to(x.device), torch.from_numpy(model.centroids).to(
            x.device
        )

    return function
