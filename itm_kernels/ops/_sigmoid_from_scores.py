"""Sigmoid loss of a score matrix that the model computes itself.

In plain PyTorch the passes over the matrix and its gradient move 43 times its bytes, a kernel 3.
"""

from typing import Any

import torch
from torch import Tensor

from itm_kernels import reference
from itm_kernels._autocast import outside_autocast
from itm_kernels._positives import Pairs
from itm_kernels.ops._define import define, distinct, resolve_best, torch_op, wide_empty


def _forward_fake(scores: Tensor, *inputs: Any) -> Tensor:
    return wide_empty(scores, scores.shape[1])


def _backward_fake(
    grad: Tensor, scores: Tensor, scale: Tensor, bias: Tensor, *inputs: Any
) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (scores, scale, bias))


_INPUTS = (
    "Tensor scores, Tensor scale, Tensor bias, Tensor? positive, Tensor? image_ids, "
    "Tensor? text_ids"
)
define("sigmoid_from_scores_forward", f"({_INPUTS}) -> Tensor", _forward_fake)
define(
    "sigmoid_from_scores_backward",
    f"(Tensor grad, {_INPUTS}) -> (Tensor, Tensor, Tensor)",
    _backward_fake,
)


class SigmoidFromScoresFunction(torch.autograd.Function):
    """The backward pass recomputes the logits from the scores."""

    @staticmethod
    def forward(ctx: Any, namespace: str, *inputs: Tensor | None) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.namespace = namespace
        return torch_op(namespace, "sigmoid_from_scores_forward")(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        backward = torch_op(ctx.namespace, "sigmoid_from_scores_backward")
        return None, *backward(grad, *ctx.saved_tensors), None, None, None


@outside_autocast
def fused_sigmoid_from_scores(
    scores: Tensor,  # [N, M]
    scale: Tensor,  # []
    bias: Tensor,  # []
    pairs: Pairs,
    backend: str,
) -> Tensor:  # [M]
    """Compute the sums over images of checked arguments."""
    namespace = resolve_best("sigmoid_from_scores", scores, backend)
    if namespace is None:
        return reference.sigmoid_from_scores(scores, scale, bias, *pairs)
    return SigmoidFromScoresFunction.apply(namespace, *distinct(scores, scale, bias, *pairs))
