"""Sigmoid loss over all pairs, one value per text."""

from typing import Any

import torch
from torch import Tensor

from itm_kernels import reference
from itm_kernels._autocast import outside_autocast
from itm_kernels._pairs import Pairs
from itm_kernels.backends import resolve
from itm_kernels.ops._define import (
    define,
    distinct,
    keeps_scores,
    operator,
    scores_empty,
    wide_empty,
)


def _forward_fake(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    positive: Tensor | None,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    keep_scores: bool,
) -> tuple[Tensor, Tensor]:
    return wide_empty(text, text.shape[0]), scores_empty(keep_scores, image, text)


def _backward_fake(
    grad: Tensor,
    scores: Tensor,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    positive: Tensor | None,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (image, text, scale, bias))


_INPUTS = (
    "Tensor image, Tensor text, Tensor scale, Tensor bias, Tensor? positive, Tensor? image_ids, "
    "Tensor? text_ids"
)
# scores [N, M] if kept, else [0, 0]: whatever spares a backend the product in its backward pass.
define(
    "sigmoid_forward",
    f"({_INPUTS}, bool keep_scores) -> (Tensor loss, Tensor scores)",
    _forward_fake,
)
define(
    "sigmoid_backward",
    f"(Tensor grad, Tensor scores, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward_fake,
)


class Sigmoid(torch.autograd.Function):
    """The backward pass reads scores where they were kept, or recomputes tiles of them."""

    @staticmethod
    def forward(
        ctx: Any,
        namespace: str,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor,
        positive: Tensor | None,
        image_ids: Tensor | None,
        text_ids: Tensor | None,
        keep: bool,
    ) -> Tensor:
        inputs = image, text, scale, bias, positive, image_ids, text_ids
        keep = keep and any(ctx.needs_input_grad) and keeps_scores(namespace, image, text)
        loss, scores = operator(namespace, "sigmoid_forward")(*inputs, keep)
        ctx.save_for_backward(scores, *inputs)
        ctx.namespace = namespace
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        backward = operator(ctx.namespace, "sigmoid_backward")
        return None, *backward(grad, *ctx.saved_tensors), None, None, None, None


@outside_autocast
def run(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    scale: Tensor,  # []
    bias: Tensor,  # []
    pairs: Pairs,
    function: str,
    backend: str,
    keep: bool = True,
) -> Tensor:  # [M]
    """Compute the sums of checked arguments, on behalf of a public function.

    `keep=False` keeps no scores for the backward pass: less memory, one product more.
    """
    sides = image.shape[0], text.shape[0]
    namespace = resolve(function, "sigmoid", image, backend, sides)
    if namespace is None:
        return reference.sigmoid(image, text, scale, bias, *pairs)
    return Sigmoid.apply(namespace, *distinct(image, text, scale, bias, *pairs), keep)
