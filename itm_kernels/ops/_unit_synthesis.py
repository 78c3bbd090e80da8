"""Cosines of rows of any norm with constant synthetic vectors, for a loss.

Backends in `_policies.NORMALISES_ROWS` have this operator. For others, a loss normalises the rows
and calls `rbf_synthesis_logits`.
"""

from typing import Any

import torch
from torch import Tensor

from itm_kernels._autocast import outside_autocast
from itm_kernels._policies import NORMALISES_ROWS
from itm_kernels.backends import resolve
from itm_kernels.ops._define import define, distinct, torch_op, wide_empty
from itm_kernels.ops._rbf_synthesis import SynthesisLogits, SynthesisOptions


def _forward_fake(
    anchors: Tensor,
    members: Tensor,
    assignment: Tensor,
    anchor_ids: Tensor,
    member_ids: Tensor,
    num_clusters: int,
    sigma: float,
    weights: str,
    ridge: float,
    gradients: bool,
) -> tuple[Tensor, ...]:
    N, (M, D) = anchors.shape[0], members.shape
    cosine = wide_empty(anchors, N, num_clusters)
    valid = anchors.new_empty((N, num_clusters), dtype=torch.bool)
    sums = wide_empty(anchors, 2, N if gradients else 0, num_clusters)
    M = M if gradients else 0
    if cosine.dtype == torch.float64:
        return cosine, valid, sums, members.new_empty((1, M, D)), members.new_empty(0)
    rows = members.new_empty((2, M, D + -D % 16), dtype=torch.float16)
    return cosine, valid, sums, rows, wide_empty(members, M)


def _backward_fake(grad: Tensor, *inputs: Any) -> Tensor:
    anchors = inputs[4]
    return anchors.new_empty(anchors.shape)


_INPUTS = (
    "Tensor anchors, Tensor members, Tensor assignment, Tensor anchor_ids, Tensor member_ids, "
    "int num_clusters, float sigma, str weights, float ridge"
)
# Saved for the backward pass, and empty unless `gradients`: sums [2, N, K], products with the
# vectors and squares of them, and the rows whose sums they are, in the order and layout of a
# backend.
define(
    "unit_synthesis_forward",
    f"({_INPUTS}, bool gradients) -> "
    "(Tensor cosine, Tensor valid, Tensor sums, Tensor rows, Tensor factor)",
    _forward_fake,
    runs_with="rbf_synthesis_logits",
)
define(
    "unit_synthesis_backward",
    f"(Tensor grad, Tensor valid, Tensor sums, Tensor rows, Tensor factor, {_INPUTS}) -> Tensor",
    _backward_fake,
    runs_with="rbf_synthesis_logits",
)


class UnitSynthesisFunction(torch.autograd.Function):
    """Solves for the rows of the vectors once, and saves them for the gradient of the anchors."""

    @staticmethod
    def forward(
        ctx: Any,
        namespace: str,
        anchors: Tensor,
        members: Tensor,
        assignment: Tensor,
        anchor_ids: Tensor,
        member_ids: Tensor,
        *options: Any,
    ) -> tuple[Tensor, Tensor]:
        inputs = anchors, members, assignment, anchor_ids, member_ids
        forward = torch_op(namespace, "unit_synthesis_forward")
        cosine, valid, *kept = forward(*inputs, *options, ctx.needs_input_grad[1])
        ctx.mark_non_differentiable(valid)
        ctx.save_for_backward(valid, *kept, *inputs)
        ctx.options = namespace, options
        return cosine, valid

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        namespace, options = ctx.options
        backward = torch_op(namespace, "unit_synthesis_backward")
        grad_anchors = backward(grads[0], *ctx.saved_tensors, *options)
        return None, grad_anchors, *[None] * (4 + len(options))


def normalises_rows(anchors: Tensor, members: Tensor, backend: str) -> bool:
    """Return whether the backend that runs has this operator."""
    sides = anchors.shape[0], members.shape[0]
    return resolve("rbf_synthesis_logits", anchors, backend, sides) in NORMALISES_ROWS


@outside_autocast
def fused_unit_synthesis(
    anchors: Tensor,  # [N, D], not normalised
    members: Tensor,  # [M, D], without gradient
    assignment: Tensor,  # [M]
    anchor_ids: Tensor,  # [N]
    member_ids: Tensor,  # [M]
    options: SynthesisOptions,
    backend: str,
) -> SynthesisLogits:
    """Compute the cosines of checked arguments; requires `normalises_rows`."""
    sides = anchors.shape[0], members.shape[0]
    namespace = resolve("rbf_synthesis_logits", anchors, backend, sides)
    assert namespace is not None
    inputs = distinct(anchors, members.detach(), assignment, anchor_ids, member_ids)
    return SynthesisLogits(*UnitSynthesisFunction.apply(namespace, *inputs, *options))
