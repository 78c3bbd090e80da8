"""Sigmoid loss over all pairs, one value per text."""

from typing import Any

import torch
from torch import Tensor

from itm_kernels import reference
from itm_kernels._autocast import outside_autocast
from itm_kernels._pairs import Pairs
from itm_kernels.backends import resolve
from itm_kernels.ops._define import (
    GRADIENTS_AT_ONCE,
    RAW_ROWS,
    define,
    distinct,
    keeps_scores,
    operator,
    scores_empty,
    wide_empty,
)
from itm_kernels.ops.unit_rows import Sides
from itm_kernels.ops.unit_rows import run as unit_rows


def _forward_fake(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    positive: Tensor | None,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    keep_scores: bool,
    cosine: bool,
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
    cosine: bool,
) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (image, text, scale, bias))


def _total_fake(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    positive: Tensor | None,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    cosine: bool,
    gradients: bool,
) -> tuple[Tensor, ...]:
    of_rows = (
        wide_empty(rows, rows.shape[0] if gradients else 0, rows.shape[1]) for rows in (image, text)
    )
    of_scalars = (tensor.new_empty(()) for tensor in (scale, bias, scale))
    return wide_empty(image), *of_rows, *of_scalars


def _total_backward_fake(
    grad: Tensor,
    image: Tensor,
    text: Tensor,
    of_image: Tensor,
    of_text: Tensor,
    of_scale: Tensor,
    of_bias: Tensor,
    unit: Tensor,
    cosine: bool,
) -> tuple[Tensor, ...]:
    of_rows = (rows.new_empty(rows.shape) for rows in (image, text))
    return *of_rows, *(tensor.new_empty(()) for tensor in (of_scale, of_bias))


_INPUTS = (
    "Tensor image, Tensor text, Tensor scale, Tensor bias, Tensor? positive, Tensor? image_ids, "
    "Tensor? text_ids"
)
# scores [N, M] if kept, else [0, 0]: whatever spares a backend the product in its backward pass.
# cosine: rows come as they are, and scores are cosines; else dot products. Backends that take unit
# rows are handed those, and False (`_define.RAW_ROWS`).
define(
    "sigmoid_forward",
    f"({_INPUTS}, bool keep_scores, bool cosine) -> (Tensor loss, Tensor scores)",
    _forward_fake,
)
define(
    "sigmoid_backward",
    f"(Tensor grad, Tensor scores, {_INPUTS}, bool cosine) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward_fake,
)
# The sum over all texts, and what its gradients are made of: those of rows as a backend left them,
# to be finished in one pass that knows the gradient of the sum; [0, D], and nothing in the others,
# where no gradients are asked for. NaN, with its gradients, where a text's positive is -1.
define(
    "sigmoid_total_forward",
    f"({_INPUTS}, bool cosine, bool gradients) -> (Tensor total, Tensor of_image, "
    "Tensor of_text, Tensor of_scale, Tensor of_bias, Tensor unit)",
    _total_fake,
)
define(
    "sigmoid_total_backward",
    "(Tensor grad, Tensor image, Tensor text, Tensor of_image, Tensor of_text, Tensor of_scale, "
    "Tensor of_bias, Tensor unit, bool cosine) -> (Tensor, Tensor, Tensor, Tensor)",
    _total_backward_fake,
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
        cosine: bool,
    ) -> Tensor:
        made: tuple[Tensor, ...] = ()
        if cosine and namespace not in RAW_ROWS:
            made = Sides.of(namespace, image, text)
            image, text, cosine = made[2], made[3], False
        inputs = image, text, scale, bias, positive, image_ids, text_ids
        keep = keep and any(ctx.needs_input_grad) and keeps_scores(namespace, image, text)
        loss, scores = operator(namespace, "sigmoid_forward")(*inputs, keep, cosine)
        ctx.save_for_backward(scores, *inputs, *made)
        ctx.options = namespace, cosine
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        namespace, cosine = ctx.options
        scores, *inputs = ctx.saved_tensors
        sides, others, made = inputs[:2], inputs[2:7], inputs[7:]
        if made:
            sides = Sides.rows(namespace, made)
        backward = operator(namespace, "sigmoid_backward")
        *of_sides, of_scale, of_bias = backward(grad, scores, *sides, *others, cosine)
        if made:
            of_sides = Sides.gradients(namespace, of_sides, sides, made)
        return None, *of_sides, of_scale, of_bias, None, None, None, None, None


class SigmoidTotal(torch.autograd.Function):
    """The forward pass forms the gradients of the sum; the backward pass multiplies them."""

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
        cosine: bool,
    ) -> Tensor:
        inputs = image, text, scale, bias, positive, image_ids, text_ids
        total, *parts = operator(namespace, "sigmoid_total_forward")(*inputs, cosine, True)
        ctx.save_for_backward(image, text, *parts)
        ctx.options = namespace, cosine
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        namespace, cosine = ctx.options
        backward = operator(namespace, "sigmoid_total_backward")
        return None, *backward(grad, *ctx.saved_tensors, cosine), None, None, None, None


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
    cosine: bool = False,
) -> Tensor:  # [M]
    """Compute the sums of checked arguments, on behalf of a public function.

    `keep=False` keeps no scores for the backward pass: less memory, one product more. With `cosine`
    scores are cosines of rows as they come, else dot products.
    """
    sides = image.shape[0], text.shape[0]
    namespace = resolve(function, "sigmoid", image, backend, sides)
    # One step of autograd where one backend holds both operators: three take longer than they do.
    both = namespace is not None and resolve(function, "unit_rows", image, "auto") == namespace
    if cosine and namespace not in RAW_ROWS and not both:
        image, text = (unit_rows(rows, function, backend) for rows in (image, text))
        cosine = False
    if namespace is None:
        return reference.sigmoid(image, text, scale, bias, *pairs)
    return Sigmoid.apply(namespace, *distinct(image, text, scale, bias, *pairs), keep, cosine)


@outside_autocast
def whole(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    scale: Tensor,  # []
    bias: Tensor,  # []
    pairs: Pairs,
    function: str,
    backend: str,
    cosine: bool = False,
) -> Tensor | None:  # []
    """Compute the sum over all texts, where a backend forms its gradients with it.

    None where no backend does that: `run` has the texts' values. The gradients are NaN where the
    sum is because ids are wrong.
    """
    sides = image.shape[0], text.shape[0]
    namespace = resolve(function, "sigmoid", image, backend, sides)
    if namespace is None or namespace not in GRADIENTS_AT_ONCE:
        return None
    inputs = distinct(image, text, scale, bias, *pairs)
    floats = image, text, scale, bias
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in floats):
        return SigmoidTotal.apply(namespace, *inputs, cosine)
    return operator(namespace, "sigmoid_total_forward")(*inputs, cosine, False)[0]
