"""A backend in eager PyTorch with the contract of every operator, to test the layer above.

Like a compiled backend, it is called by the dispatcher, has no autograd, and gets only what the
schema of an operator passes and saves. Gradients are those of the recomputed formula, unless the
contract is to use saved indices.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import eager_contrast
import eager_hinges
import eager_scores
import eager_synthesis
import info_cmr_problems
from itm_kernels import backends, reference
from itm_kernels.ops import _define
from itm_kernels.ops._ranks import fused_ranks, row_keys

NAMESPACE = "itm_eager"


def differentiate(
    formula: Callable[..., Any], inputs: list[Any], wrt: list[int], grads: list[Tensor]
) -> tuple[Tensor, ...]:
    """Recompute a formula and return its vector-Jacobian product for some of its inputs.

    Kernels run below autograd, which is a state of the thread; a new thread has autograd.
    """

    def product() -> tuple[Tensor, ...]:
        leaves = list(inputs)
        for i in wrt:
            leaves[i] = inputs[i].detach().requires_grad_()
        outputs = formula(*leaves)
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)[: len(grads)]
        return torch.autograd.grad(
            outputs, [leaves[i] for i in wrt], grads, allow_unused=True, materialize_grads=True
        )

    with ThreadPoolExecutor(1) as pool:
        return tuple(grad.contiguous().clone() for grad in pool.submit(product).result())


def intra_modal_forward(x, ids, metric, mode, lower, upper, per_row, keep_mask):
    row = reference.intra_modal(x, ids, metric, mode, lower, upper, per_row)
    low, high = torch.full_like(row, lower), torch.full_like(row, upper)
    norm = torch.ones_like(row)
    if mode == "official" and metric == "cosine":
        low, high = torch.full_like(row, upper), torch.full_like(row, 1 - lower)
    elif mode == "official":
        distance = reference.similarity(x, x, metric)
        norm = distance.norm(dim=1).clamp_min(1e-12)
        ranked = (distance / norm[:, None]).sort(1).values
        ranked = ranked if per_row else ranked[:1].expand_as(ranked)
        beyond = torch.full_like(row, torch.inf)
        low, high = (
            ranked[:, round(bound * len(x))].clone() if round(bound * len(x)) < len(x) else beyond
            for bound in (lower, upper)
        )
    mask = torch.zeros(*((len(x), (len(x) + 31) // 32) if keep_mask else (0, 0)), dtype=torch.int32)
    return row, low, high.clone(), norm, mask  # not read: this backend recomputes


def intra_modal_backward(grad, x, ids, row, low, high, norm, mask, metric, mode):
    def banded(x: Tensor) -> Tensor:
        """Return sums over the pairs inside the saved bounds, as a kernel that recomputes tiles."""
        values = reference.similarity(x, x, "dot" if _raw(metric, mode) else metric)
        if metric == "cosine" and mode != "official":
            values = 1 - values
        if mode == "official" and metric != "cosine":
            values = values / values.norm(dim=1, keepdim=True).clamp_min(1e-12)
        outside = (values <= low[:, None]) | (
            torch.tensor(mode != "repel") & (values >= high[:, None])
        )
        own = torch.arange(len(x)) if ids is None else ids
        if mode == "repel":
            values = (high[:, None] - values).relu()
        return values.masked_fill(outside | (own[:, None] == own), 0).sum(1)

    found = differentiate(banded, [x], [0], [grad.to(row.dtype)])[0]
    # An infinite row is outside every band, and its sum and its gradient are NaN.
    return found + (0 * row[:, None]).to(x.dtype) if _raw(metric, mode) else found


def _raw(metric: str, mode: str) -> bool:
    return metric == "cosine" and mode == "official"


def sample_negatives(image, text, image_ids, text_ids, strategy, temperature, seed):
    generator = torch.Generator().manual_seed(int(seed[0]))
    return reference.sample_negatives(
        image, text, image_ids, text_ids, strategy, temperature, generator
    )


def keeping(formula: Callable[..., Any]) -> Callable[..., Any]:
    """Return the forward kernel of an operator whose last argument is whether to keep scores."""

    def forward(*arguments: Any) -> Any:
        *inputs, keep = arguments
        found = formula(*inputs)
        x, y = (rows.to(torch.promote_types(rows.dtype, torch.float32)) for rows in inputs[:2])
        scores = x @ y.T if keep else x.new_empty(0, 0)  # not read: this backend recomputes
        return *([found] if isinstance(found, Tensor) else found), scores

    return forward


def recomputing(
    formula: Callable[..., Any], outputs: int, wrt: list[int], saved: int = 0
) -> Callable[..., Any]:
    """Return the backward kernel of an operator that recomputes everything from its inputs."""

    def backward(*arguments: Any) -> Any:
        grads, inputs = list(arguments[:outputs]), list(arguments[outputs + saved :])
        found = differentiate(formula, inputs, wrt, grads)
        return found if len(found) > 1 else found[0]

    return backward


def of_cosines(formula: Callable[..., Any], inputs: list[Any], cosine: bool) -> Any:
    """Apply a formula to the rows, or to unit rows with cosine."""
    sides = [reference.unit_rows(rows) if cosine else rows for rows in inputs[:2]]
    return formula(*sides, *inputs[2:])


def sigmoid(*arguments: Any) -> Tensor:
    *inputs, cosine = arguments
    return of_cosines(reference.sigmoid, inputs, cosine)


def sigmoid_forward(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, keep, cosine = arguments
    return of_cosines(keeping(reference.sigmoid), [*inputs, keep], cosine)


def info_cmr_total_forward(image, text, learnt, *arguments: Any) -> tuple[Tensor, ...]:
    *drawn_and_ids, scale = arguments[:7]
    *options, gradients = arguments[7:]
    wide = torch.promote_types(image.dtype, torch.float32)
    scale = torch.tensor(scale) if learnt is None else learnt
    case = info_cmr_problems.Problem(image, text, scale.to(wide), *drawn_and_ids)
    total = info_cmr_problems.formula(case, info_cmr_problems.Options(*options)).to(wide)
    N, M, Z = len(image), len(text), 0 if case.noise is None else len(case.noise)
    kept = ((N, M + Z), (N + Z, M), (2, N + M)) if gradients else ((0, M + Z), (0, M), (2, 0))
    return total, *(total.new_zeros(shape) for shape in (*kept, ()))


def info_cmr_total_backward(
    grad, image, text, noise, of_image, of_text, of_rows, of_scale
) -> tuple[Tensor, ...]:
    others = [torch.cat([rows, noise]) for rows in (text, image)]
    along, inverse = (of.split([len(image), len(text)]) for of in of_rows)
    of_unit = of_image @ others[0], of_text.T @ others[1]
    of_rows = [
        grad * inverse[i][:, None] * (of_unit[i] - (along[i] * inverse[i])[:, None] * rows)
        for i, rows in enumerate((image, text))
    ]
    return *of_rows, grad * of_scale


def log_sum_exp(*arguments: Any) -> Any:
    *inputs, cosine = arguments
    return of_cosines(reference.log_sum_exp, inputs, cosine)


def log_sum_exp_forward(*arguments: Any) -> Any:
    *inputs, cosine, keep = arguments
    return of_cosines(keeping(reference.log_sum_exp), [*inputs, keep], cosine)


def late_interaction_forward(context, query, *inputs: Any) -> tuple[Tensor, Tensor]:
    *inputs, keep = inputs
    kept = (len(context), *query.shape[:2]) if keep else (0, 0, 0)
    winners = torch.zeros(kept, dtype=torch.int16)  # not read: this backend recomputes
    return reference.late_interaction(context, query, *inputs), winners


def cross_attention_forward(context, query, *inputs: Any) -> tuple[Tensor, Tensor]:
    *inputs, keep = inputs
    scores = reference.cross_attention(context, query, *inputs)
    kept = (*context.shape[:2], *query.shape[:2]) if keep else (0, 0, 0, 0)
    return scores, scores.new_zeros(kept)


def similarity(x: Tensor, y: Tensor, metric: str) -> Tensor:
    return reference.similarity(x, y, metric).to(x.dtype)


def unit_rows_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    rows = reference.unit_rows(x)
    return rows, x.to(rows.dtype).norm(dim=-1)


def unit_rows_backward(grad: Tensor, rows: Tensor, length: Tensor, dtype: torch.dtype) -> Tensor:
    return differentiate(reference.unit_rows, [rows * length[..., None]], [0], [grad])[0].to(dtype)


KERNELS: dict[str, Callable[..., Any]] = {
    "similarity_forward": similarity,
    "similarity_backward": recomputing(similarity, 1, [0, 1]),
    **eager_hinges.KERNELS,
    "sum_of_hinges_forward": keeping(reference.sum_of_hinges),
    "sum_of_hinges_backward": recomputing(reference.sum_of_hinges, 1, [0, 1], saved=1),
    "intra_modal_forward": intra_modal_forward,
    "intra_modal_backward": intra_modal_backward,
    "log_sum_exp_forward": log_sum_exp_forward,
    "log_sum_exp_backward": recomputing(log_sum_exp, 3, [0, 1, 2], saved=5),
    "sigmoid_forward": sigmoid_forward,
    "sigmoid_backward": recomputing(sigmoid, 1, [0, 1, 2, 3], saved=1),
    **eager_contrast.kernels(differentiate),
    "info_cmr_total_forward": info_cmr_total_forward,
    "info_cmr_total_backward": info_cmr_total_backward,
    "rbf_synthesis_forward": keeping(reference.rbf_synthesis),
    "rbf_synthesis_backward": recomputing(reference.rbf_synthesis, 1, [0, 1], saved=1),
    "rbf_synthesis_logits_forward": keeping(reference.rbf_synthesis_logits),
    "rbf_synthesis_logits_backward": recomputing(
        reference.rbf_synthesis_logits, 1, [0, 1], saved=1
    ),
    "unit_synthesis_forward": eager_synthesis.forward,
    "unit_synthesis_backward": recomputing(eager_synthesis.formula, 1, [0], saved=4),
    "late_interaction_forward": late_interaction_forward,
    "late_interaction_backward": recomputing(reference.late_interaction, 1, [0, 1], saved=1),
    "cross_attention_forward": cross_attention_forward,
    "cross_attention_backward": recomputing(reference.cross_attention, 1, [0, 1], saved=1),
    **eager_scores.kernels(differentiate),
    "unit_rows_forward": unit_rows_forward,
    "unit_rows_backward": unit_rows_backward,
    "cross_entropy_forward": reference.cross_entropy,
    "cross_entropy_backward": recomputing(reference.cross_entropy, 1, [0, 1]),
    "kmeans": reference.kmeans,
    "kmeans_plus_plus": reference.kmeans_plus_plus,
    "sample_negatives": sample_negatives,
    "ranks_forward": reference.ranks,
    "middle_ranks": partial(fused_ranks, backend="reference"),
    "row_keys": partial(row_keys, backend="reference"),
}


def _register() -> None:
    for definition in _define.DEFINITIONS:
        _define.define_in(NAMESPACE, definition)
        kernel = KERNELS[definition.name]

        def run(*arguments: Any, kernel: Callable[..., Any] = kernel) -> Any:
            found = kernel(*arguments)
            # The output of an operator must not be a view of an input.
            copy = [t.clone() for t in ([found] if isinstance(found, Tensor) else found)]
            return copy[0] if isinstance(found, Tensor) else tuple(copy)

        torch.library.impl(f"{NAMESPACE}::{definition.name}", "CPU", run)


_register()


@contextmanager
def as_native() -> Iterator[None]:
    """Replace the compiled backend on the CPU by this one."""
    kernels = {"cpu": frozenset(backends.OPERATORS), "cuda": frozenset()}
    with (
        patch.dict(backends.NAMESPACES, native=NAMESPACE),
        patch.dict(backends.NATIVE_KERNELS, kernels),
        patch.object(backends, "NOT_BUILT", ""),
    ):
        yield
