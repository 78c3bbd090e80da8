"""Sum of hinges of a score matrix that the model computes itself.

In plain PyTorch the passes over a square matrix and its gradient move 40 times its bytes, and with
five texts per image, whose rows of scores are repeated, 130 times. A kernel moves 3 times as many.
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


def _backward_fake(grad: Tensor, loss: Tensor, scores: Tensor, *inputs: Any) -> Tensor:
    return scores.new_empty(scores.shape)


_INPUTS = "Tensor scores, Tensor? positive, Tensor? image_ids, Tensor? text_ids, float margin"
define("sum_of_hinges_from_scores_forward", f"({_INPUTS}) -> Tensor", _forward_fake)
define(
    "sum_of_hinges_from_scores_backward",
    f"(Tensor grad, Tensor loss, {_INPUTS}) -> Tensor",
    _backward_fake,
)


class SumOfHingesFromScoresFunction(torch.autograd.Function):
    """The backward pass finds the active hinges again.

    The loss says which pairs have a gradient of NaN.
    """

    @staticmethod
    def forward(ctx: Any, namespace: str, *inputs: Any) -> Tensor:
        *tensors, margin = inputs
        loss = torch_op(namespace, "sum_of_hinges_from_scores_forward")(*inputs)
        ctx.save_for_backward(loss, *tensors)
        ctx.options = namespace, margin
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        namespace, margin = ctx.options
        backward = torch_op(namespace, "sum_of_hinges_from_scores_backward")
        return None, backward(grad, *ctx.saved_tensors, margin), None, None, None, None


@outside_autocast
def fused_sum_of_hinges_from_scores(
    scores: Tensor,  # [N, M]
    pairs: Pairs,
    margin: float,
    backend: str,
) -> Tensor:  # [M]
    """Compute the hinges of checked arguments."""
    namespace = resolve_best("sum_of_hinges_from_scores", scores, backend)
    if namespace is None:
        return reference.sum_of_hinges_from_scores(scores, *pairs, margin)
    return SumOfHingesFromScoresFunction.apply(namespace, *distinct(scores, *pairs), margin)
