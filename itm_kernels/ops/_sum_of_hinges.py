"""Sum of hinges, one value per pair."""

from typing import Any

import torch
from torch import Tensor

from itm_kernels import reference
from itm_kernels._autocast import outside_autocast
from itm_kernels._policies import keeps_scores
from itm_kernels._positives import Pairs
from itm_kernels.backends import resolve
from itm_kernels.ops._define import (
    define,
    distinct,
    scores_empty,
    torch_op,
    wide_empty,
)


def _forward_fake(image: Tensor, text: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
    keep_scores = inputs[-1]
    return wide_empty(text, text.shape[0]), scores_empty(keep_scores, image, text)


def _backward_fake(
    grad: Tensor, scores: Tensor, image: Tensor, text: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor]:
    return image.new_empty(image.shape), text.new_empty(text.shape)


_INPUTS = (
    "Tensor image, Tensor text, Tensor? positive, Tensor? image_ids, Tensor? text_ids, float margin"
)
# scores [N, M] if kept, otherwise [0, 0]: with them a backward pass needs no product for scores.
define(
    "sum_of_hinges_forward",
    f"({_INPUTS}, bool keep_scores) -> (Tensor loss, Tensor scores)",
    _forward_fake,
)
define(
    "sum_of_hinges_backward",
    f"(Tensor grad, Tensor scores, {_INPUTS}) -> (Tensor, Tensor)",
    _backward_fake,
)


class SumOfHingesFunction(torch.autograd.Function):
    """The backward pass reads kept scores, or recomputes tiles of them."""

    @staticmethod
    def forward(
        ctx: Any,
        namespace: str,
        image: Tensor,
        text: Tensor,
        positive: Tensor | None,
        image_ids: Tensor | None,
        text_ids: Tensor | None,
        margin: float,
    ) -> Tensor:
        inputs = image, text, positive, image_ids, text_ids
        keep = any(ctx.needs_input_grad) and keeps_scores(namespace, image, text)
        loss, scores = torch_op(namespace, "sum_of_hinges_forward")(*inputs, margin, keep)
        ctx.save_for_backward(scores, *inputs)
        ctx.options = namespace, margin
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        namespace, margin = ctx.options
        backward = torch_op(namespace, "sum_of_hinges_backward")
        return None, *backward(grad, *ctx.saved_tensors, margin), None, None, None, None


@outside_autocast
def fused_sum_of_hinges(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    pairs: Pairs,
    margin: float,
    backend: str,
) -> Tensor:  # [M]
    """Compute the hinges of checked arguments."""
    sides = image.shape[0], text.shape[0]
    namespace = resolve("sum_of_hinges", image, backend, sides)
    if namespace is None:
        return reference.sum_of_hinges(image, text, *pairs, margin)
    return SumOfHingesFunction.apply(namespace, *distinct(image, text, *pairs), margin)
