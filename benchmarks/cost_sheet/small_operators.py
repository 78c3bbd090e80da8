"""Operators of a small batch: how to run them, their inputs, and their launches with CUDA kernels.

Tests compare these lists with what the launchers and ATen launch on the emulator.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.cost_sheet import cuda_models as cuda
from benchmarks.cost_sheet.counts import Count
from benchmarks.cost_sheet.cuda_models import CLUSTERS, ITERATIONS, Batch
from itm_kernels._positives import Pairs
from itm_kernels.ops._hardest_negatives import fused_hardest_negatives
from itm_kernels.ops._intra_modal import fused_intra_modal
from itm_kernels.ops._kmeans import fused_kmeans
from itm_kernels.ops._kmeans_plus_plus import fused_kmeans_plus_plus
from itm_kernels.ops._log_sum_exp import fused_log_sum_exp
from itm_kernels.ops._max_of_hinges import fused_max_of_hinges
from itm_kernels.ops._rbf_synthesis import (
    SynthesisOptions,
    fused_rbf_synthesis,
    fused_rbf_synthesis_logits,
)
from itm_kernels.ops._sigmoid import fused_sigmoid
from itm_kernels.ops._sum_of_hinges import fused_sum_of_hinges

D = 1024


class Operator(NamedTuple):
    """A row of the table: the operator, its inputs, and its launches with CUDA kernels."""

    run: Callable[..., Any]  # inputs, then the backend
    inputs: Callable[[int, torch.dtype, str], tuple[Tensor, ...]]  # rows, dtype, device
    launches: Callable[[Batch], list[Count]]


def step(run: Any, inputs: tuple[Tensor, ...], backend: str) -> None:
    """Run an operator forward, and backward if it has a gradient."""
    made = tree_leaves(run(*inputs, backend=backend))
    outputs = [each for each in made if isinstance(each, Tensor) and each.requires_grad]
    if outputs:
        leaves = [each for each in inputs if each.requires_grad]
        grads = [torch.empty_like(each) for each in outputs]
        torch.autograd.grad(outputs, leaves, grads, allow_unused=True)


# -- inputs ----------------------------------------------------------------------------------------


def _rows(*shape: int, dtype: torch.dtype, device: str, grad: bool = True) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device, requires_grad=grad)


def sides(N: int, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """Return images and texts."""
    return tuple(_rows(N, D, dtype=dtype, device=device) for _ in range(2))


def _scaled(N: int, dtype: torch.dtype, device: str, scalars: int) -> tuple[Tensor, ...]:
    numbers = (_rows(dtype=torch.float32, device=device) for _ in range(scalars))
    return *sides(N, dtype, device), *numbers


def _one(N: int, dtype: torch.dtype, device: str, grad: bool = True) -> tuple[Tensor, ...]:
    return (_rows(N, D, dtype=dtype, device=device, grad=grad),)


def _start(N: int, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    centroids = _rows(1, CLUSTERS, D, dtype=dtype, device=device, grad=False)
    return *_one(N, dtype, device, grad=False), centroids


def _clustered(N: int, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    return *sides(N, dtype, device), torch.arange(N, device=device) % CLUSTERS


# -- operators -------------------------------------------------------------------------------------

_DIAGONAL = Pairs(None, None, None)


def _hardest(image: Tensor, text: Tensor, backend: str) -> Any:
    return fused_hardest_negatives(image, text, _DIAGONAL, backend)


def _max_of_hinges(image: Tensor, text: Tensor, backend: str) -> Tensor:
    return fused_max_of_hinges(image, text, _DIAGONAL, 0.2, False, backend)


def _sum_of_hinges(image: Tensor, text: Tensor, backend: str) -> Tensor:
    return fused_sum_of_hinges(image, text, _DIAGONAL, 0.2, backend)


def _log_sum_exp(image: Tensor, text: Tensor, scale: Tensor, backend: str) -> Any:
    return fused_log_sum_exp(image, text, scale, None, None, backend)


def _sigmoid(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, backend: str) -> Tensor:
    return fused_sigmoid(image, text, scale, bias, _DIAGONAL, backend)


def _intra_modal(x: Tensor, backend: str, metric: str, mode: str = "paper") -> Tensor:
    bounds = 0.05, 0.5, False
    return fused_intra_modal(x, None, metric, mode, *bounds, backend)


def _kmeans(x: Tensor, start: Tensor, backend: str) -> Any:
    options = CLUSTERS, ITERATIONS, start, None
    return fused_kmeans(x, None, *options, backend)


def _plus_plus(x: Tensor, backend: str) -> Tensor:
    return fused_kmeans_plus_plus(x, None, CLUSTERS, None, backend)


def _synthesis(
    anchors: Tensor,
    members: Tensor,
    clusters: Tensor,
    backend: str,
    weights: str,
    detach: bool | None,  # None: the vectors
) -> Any:
    options = SynthesisOptions(CLUSTERS, 0.3, weights, 1e-4)
    inputs = anchors, members, clusters, None, None, options
    if detach is None:
        return fused_rbf_synthesis(*inputs, backend)
    return fused_rbf_synthesis_logits(*inputs, detach, backend)


# -- their CUDA kernels' launches ------------------------------------------------------------------

EXPONENTIALS = 200  # clocks to merge two sums of exponentials [E]


def aten(*names: str) -> list[Count]:
    """Count ATen's launches on small tensors."""
    return [Count(name, seconds=0.1e-6) for name in names]


def _half(batch: Batch, *names: str) -> list[Count]:
    """Count the conversions of 16-bit rows."""
    return aten(*names) if batch.size == 2 else []


def _hinges(batch: Batch, name: str) -> list[Count]:
    zeros = aten("zeros", "zeros") if name.startswith("hardest") else []
    scores = [cuda.distances(batch), cuda.score_reduction(f"{name}_kernel", batch)]
    return [*scores, *zeros, cuda.gather(batch, 3 * batch.N)]


def _sum(batch: Batch) -> list[Count]:
    forward = [cuda.distances(batch), cuda.score_reduction("sum_of_hinges_kernel", batch)]
    return [*forward, cuda.hinge_gradient(batch), cuda.row_gradient(batch, False)]


def _contrast(batch: Batch, name: str) -> list[Count]:
    scores = [cuda.distances(batch), cuda.score_reduction(name, batch, EXPONENTIALS)]
    return [*scores, cuda.score_gradient(batch), cuda.row_gradient(batch, True)]


def _added(batch: Batch, wide: int = 4) -> list[Count]:
    return [cuda.add_parts(batch, wide)] if batch.parts[0] > 1 else []


def _bounded(batch: Batch, metric: str, unit: bool = False) -> list[Count]:
    wide = batch._replace(size=4)
    made = [cuda.unit_rows("unit_rows_kernel", batch)] if unit else _half(batch, "to")
    if metric == "cosine":
        band = [cuda.distances(wide), cuda.stored_band(batch, batch.parts[0])]
        through = [cuda.unit_rows("unit_rows_gradient_kernel", batch)] if unit else []
        return [*made, *band, *(made if unit else []), cuda.stored_gradient(batch), *through]
    made += [cuda.distances(wide, 2), *_added(wide)]
    return [
        *made, cuda.stored_band(batch, 1), *made, cuda.stored_gradient(wide), *_half(batch, "to")
    ]  # fmt: skip


def _l1(batch: Batch) -> list[Count]:
    bounds = aten("full", "full", "ones")
    forward = [cuda.finite_rows(batch), *aten("zeros"), cuda.band(batch), cuda.add_panel(batch)]
    backward = [cuda.finite_rows(batch), *aten("mul"), cuda.distance_gradient(batch), *aten("cat")]
    return [*bounds, *forward, *backward, *_half(batch, "to")]


def _clusters(batch: Batch) -> list[Count]:
    return [cuda.distances(batch), *_added(batch), *aten("to"), cuda.kmeans(batch)]


def _starts(batch: Batch) -> list[Count]:
    drawn = aten("new_ones", "exponential_")
    return [*drawn, cuda.distances(batch, 2), cuda.kmeans_plus_plus(batch)]


def _synthetic(batch: Batch, kam: bool, logits: bool = False, detach: bool = False) -> list[Count]:
    made = [cuda.cluster_members(batch)]
    if kam:
        wide = batch._replace(size=8)
        squares = [*aten("to"), cuda.distances(wide, 2, wide=8), *_added(wide, 8)]
        made = [*squares, *made, cuda.kam_solve(batch)]
    gradients = [cuda.anchor_gradient(batch, kam, logits, detach)]
    gradients += aten("zeros_like") if detach else [cuda.member_gradient(batch, kam)]
    gradients += _half(batch, *(("to",) if detach else ("to", "to")))
    return [*made, cuda.synthesis(batch, kam, logits), *aten("zeros"), *made, *gradients]


def _of_band(metric: str, mode: str = "paper") -> Operator:
    unit = metric == "cosine" and mode != "official"
    launches = _l1 if metric == "l1" else partial(_bounded, metric=metric, unit=unit)
    return Operator(partial(_intra_modal, metric=metric, mode=mode), _one, launches)


def _of_synthesis(weights: str, detach: bool | None = None) -> Operator:
    logits = detach is not None
    launches = partial(_synthetic, kam=weights == "kam", logits=logits, detach=bool(detach))
    return Operator(partial(_synthesis, weights=weights, detach=detach), _clustered, launches)


OPERATORS: dict[str, Operator] = {
    "hardest_negatives": Operator(_hardest, sides, partial(_hinges, name="hardest_negatives")),
    "max_of_hinges": Operator(_max_of_hinges, sides, partial(_hinges, name="max_of_hinges")),
    "sum_of_hinges": Operator(_sum_of_hinges, sides, _sum),
    "log_sum_exp": Operator(
        _log_sum_exp, partial(_scaled, scalars=1), partial(_contrast, name="log_sum_exp_kernel")
    ),
    "sigmoid": Operator(
        _sigmoid, partial(_scaled, scalars=2), partial(_contrast, name="sigmoid_kernel")
    ),
    "intra_modal, cosine": _of_band("cosine"),
    "intra_modal, cosine, official": _of_band("cosine", "official"),
    "intra_modal, l2": _of_band("l2"),
    "intra_modal, l1": _of_band("l1"),
    "kmeans": Operator(_kmeans, _start, _clusters),
    "kmeans_plus_plus": Operator(_plus_plus, partial(_one, grad=False), _starts),
    "rbf_synthesis, attention": _of_synthesis("attention"),
    "rbf_synthesis, kam": _of_synthesis("kam"),
    "rbf_synthesis_logits, attention": _of_synthesis("attention", False),
    "rbf_synthesis_logits, kam": _of_synthesis("kam", False),
    "rbf_synthesis_logits, kam, detached": _of_synthesis("kam", True),
}
