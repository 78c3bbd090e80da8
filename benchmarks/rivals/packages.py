"""The same mathematics from the packages that people install for it.

Each builder returns a function of the row's tensors, in the package's own words; what it needs
around the package (normalised rows, labels, both directions) stands here and is timed with it.
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
    """Import a package, or say that it is not installed."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken installation is as absent as a missing one
        raise UnavailableError(f"not installed ({type(error).__name__})") from error


def load_open_clip() -> Any:
    """Load open_clip's loss module alone: the package imports torchvision (no CPU build)."""
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
    """open_clip's ClipLoss (computes the score matrix twice, once per direction)."""
    loss = load_open_clip().ClipLoss()
    return lambda image, text: loss(normalize(image, dim=-1), normalize(text, dim=-1), SCALE)


def siglip() -> Function:
    """open_clip's SigLipLoss."""
    loss = load_open_clip().SigLipLoss()
    return lambda image, text: loss(normalize(image, dim=-1), normalize(text, dim=-1), SCALE, BIAS)


def _both_ways(loss: Any, miner: Any, image: Tensor, text: Tensor) -> Tensor:
    labels = torch.arange(image.shape[0], device=image.device)
    # The same object as labels and ref_labels would drop the diagonal, that is every positive.
    other = labels.clone()
    one = miner(image, labels, text, other) if miner else None
    two = miner(text, labels, image, other) if miner else None
    return loss(image, labels, one, text, other) + loss(text, labels, two, image, other)


def metric_learning_hinges(hardest: bool) -> Function:
    """pytorch-metric-learning's TripletMarginLoss on dot products, with a hard miner or without."""
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
    """pytorch-metric-learning's NTXentLoss, mean of both directions."""
    # It compares every positive with every negative pair: matrices of N x N (N - 1), of which a
    # byte mask and three in fp32 live at once.
    need = 13 * N**3
    if available() and need > available() / 2:
        raise UnavailableError(f"out of memory (needs about {need / 2**30:,.0f} GiB)")
    loss = load("pytorch_metric_learning.losses").NTXentLoss(temperature=1 / SCALE)
    return lambda image, text: _both_ways(loss, None, image, text) / 2


def load_for_cuda(name: str) -> Any:
    """Import a package whose kernels are Triton's alone, or say what is missing."""
    if not torch.cuda.is_available():
        raise UnavailableError("needs CUDA")
    return load(name)


def inf_cl() -> Function:
    """Inf-CL's fused contrastive loss (Triton), mean of both directions.

    It has one value per row and widens rows to fp32; D is a multiple of its head's 256.
    """
    loss = load_for_cuda("inf_cl").cal_flash_loss

    def function(image: Tensor, text: Tensor) -> Tensor:
        v, c = normalize(image, dim=-1), normalize(text, dim=-1)
        return (loss(v, c, scale=SCALE) + loss(c, v, scale=SCALE)).mean() / 2

    return function


def memeff_clip() -> Function:
    """Return memeff's MemoryEfficientCLIPLoss (Triton): it normalises rows, mean of both ways.

    Without `stable` its gradient is that of its value; with it, sqrt(N temperature) times that.
    """
    package = load_for_cuda("memeff")
    loss = package.MemoryEfficientCLIPLoss(temperature=1 / SCALE, stable=False)
    return lambda image, text: loss(image, text)


def siglip_kernel() -> Function:
    """Return siglip-kernel's fused_siglip_loss (Triton), by the backend that it picks itself.

    It takes unit rows and the logarithm of the scale, and divides by the rows as we do. Both
    scalars are tensors; it forms their gradients too.
    """
    loss = load_for_cuda("siglip_kernel").fused_siglip_loss

    def function(image: Tensor, text: Tensor) -> Tensor:
        scale, bias = (image.new_full((), v, dtype=torch.float32) for v in (math.log(SCALE), BIAS))
        return loss(normalize(image, dim=-1), normalize(text, dim=-1), scale, bias)

    return function


def scikit_learn_kmeans(init: Tensor, iterations: int) -> Function:
    """scikit-learn's KMeans by Lloyd; it stops early when no assignment changes."""
    cluster = load("sklearn.cluster")
    start = init.cpu().numpy()

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        model = cluster.KMeans(
            len(start), init=start, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "did not converge" is what fixed iterations mean
            model.fit(x.cpu().numpy())
        nearest = torch.from_numpy(model.labels_).long().to(x.device)
        return nearest, torch.from_numpy(model.cluster_centers_).to(x.device)

    return function


def faiss_kmeans(init: Tensor, iterations: int, threads: int) -> Function:
    """faiss-cpu's Kmeans on all points, and one search for the assignment."""
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
