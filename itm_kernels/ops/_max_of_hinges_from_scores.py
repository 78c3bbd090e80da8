"""Max of hinges of a score matrix that the model computes itself.

In plain PyTorch the passes over a square matrix and its gradient move 20 times its bytes, and with
five texts per image, whose rows of scores are repeated, 58 times. A kernel reads the matrix once
(twice for semi-hard negatives), and writes the gradient once.
"""

from typing import Any

import torch
from torch import Tensor

from itm_kernels import reference
from itm_kernels._autocast import outside_autocast
from itm_kernels._positives import Pairs
from itm_kernels.ops._define import (
    define,
    distinct,
    index_empty,
    resolve_best,
    torch_op,
    wide_empty,
)


def _forward_fake(scores: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    M = scores.shape[1]
    return wide_empty(scores, M), index_empty(scores, M), index_empty(scores, M)


def _backward_fake(grad: Tensor, *inputs: Any) -> Tensor:
    N, dtype = inputs[-2:]
    return grad.new_empty((N, grad.shape[0]), dtype=dtype)


# text_index, image_index [M]: as those of max_of_hinges.
define(
    "max_of_hinges_from_scores_forward",
    "(Tensor scores, Tensor? positive, Tensor? image_ids, Tensor? text_ids, float margin, "
    "bool semihard) -> (Tensor loss, Tensor text_index, Tensor image_index)",
    _forward_fake,
)
define(
    "max_of_hinges_from_scores_backward",
    "(Tensor grad, Tensor? positive, Tensor text_index, Tensor image_index, SymInt N, "
    "ScalarType dtype) -> Tensor",
    _backward_fake,
)


class MaxOfHingesFromScoresFunction(torch.autograd.Function):
    """The backward pass writes at the saved indices and does not read the scores."""

    @staticmethod
    def forward(
        ctx: Any, namespace: str, scores: Tensor, positive: Tensor | None, *others: Any
    ) -> Tensor:
        forward = torch_op(namespace, "max_of_hinges_from_scores_forward")
        loss, *indices = forward(scores, positive, *others)
        ctx.save_for_backward(positive, *indices)
        ctx.options = namespace, scores.shape[0], scores.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        namespace, *like = ctx.options
        backward = torch_op(namespace, "max_of_hinges_from_scores_backward")
        return None, backward(grad, *ctx.saved_tensors, *like), *(None,) * 5


@outside_autocast
def fused_max_of_hinges_from_scores(
    scores: Tensor,  # [N, M]
    pairs: Pairs,
    margin: float,
    semihard: bool,
    backend: str,
) -> Tensor:  # [M]
    """Compute the hinges of checked arguments."""
    namespace = resolve_best("max_of_hinges_from_scores", scores, backend)
    if namespace is None:
        return reference.max_of_hinges_from_scores(scores, *pairs, margin, semihard)
    inputs = *distinct(scores, *pairs), margin, semihard
    return MaxOfHingesFromScoresFunction.apply(namespace, *inputs)
