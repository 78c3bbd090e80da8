"""pykeops: reductions over all pairs without the N x M matrix, compiled once per formula."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.rivals import Function, UnavailableError
from benchmarks.rivals.eager import SCALE
from benchmarks.rivals.packages import load

ROOT = Path(__file__).parents[2]


def compile_quickly() -> None:
    """Compile formulas without optimization, for tiny sizes: 5 s instead of 8 s per formula.

    They have a cache of their own: the cache of pykeops does not tell options of the compiler
    apart. Must be called before the first formula.
    """
    os.environ["KEOPS_CACHE_FOLDER"] = str(ROOT / "build" / "keops-quick")
    try:
        _lazy()
    except UnavailableError:
        return
    config = load("pykeops.config").pykeops_base
    config.cpp_flags = config.cpp_flags.replace("-O3", "-O0").replace("-flto=auto", "")


def _lazy() -> Any:
    # Silences pykeops, which reads this variable when it is first imported.
    os.environ.setdefault("PYKEOPS_VERBOSE", "0")
    return load("pykeops.torch").LazyTensor


def intra_modal_l1(lower: float, upper: float) -> Function:
    """Build the sum of the l1 distances inside a band (mode "paper")."""
    lazy = _lazy()

    def function(x: Tensor) -> Tensor:
        delta = (lazy(x[:, None, :]) - lazy(x[None, :, :])).abs().sum(-1)
        # The lower bound is at least 0, which excludes the diagonal.
        inside = (delta - lower).step() * (upper - delta).step()
        return (delta * inside).sum(1).sum()

    return function


def info_nce() -> Function:
    """Build InfoNCE with both log-sum-exps as reductions over the same formula."""
    lazy = _lazy()

    def function(image: Tensor, text: Tensor) -> Tensor:
        v, c = normalize(image, dim=-1), normalize(text, dim=-1)
        logits = (lazy(v[:, None, :]) * lazy(c[None, :, :])).sum(-1) * SCALE
        denominators = logits.logsumexp(1).mean() + logits.logsumexp(0).mean()
        return denominators / 2 - SCALE * (v * c).sum(-1).mean()

    return function


def rbf_attention(num_clusters: int, sigma: float) -> Function:
    """Build the softmax-weighted sums of every cluster's members."""
    lazy = _lazy()

    def function(anchors: Tensor, members: Tensor, assignment: Tensor) -> Tensor:
        vectors = []
        for k in range(num_clusters):
            own = members[assignment == k]
            square = ((lazy(anchors[:, None, :]) - lazy(own[None, :, :])) ** 2).sum(-1)
            logits = -square / (2 * sigma**2)
            vectors.append(logits.sumsoftmaxweight(lazy(own[None, :, :]), dim=1))
        return torch.stack(vectors, 1)

    return function
