"""Sigmoid loss over all pairs, one value per text."""

from typing import Any

import torch
from torch import Tensor

from itm_kernels import backends, reference
from itm_kernels._autocast import outside_autocast
from itm_kernels._policies import GRADIENTS_IN_FORWARD, NORMALISES_ROWS, keeps_scores
from itm_kernels._positives import Pairs
from itm_kernels.backends import resolve
from itm_kernels.ops._define import (
    define,
    distinct,
    scores_empty,
    torch_op,
    wide_empty,
)
from itm_kernels.ops._unit_rows import UnitSides, fused_unit_rows


def _forward_fake(image: Tensor, text: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
    keep_scores = inputs[-2]
    return wide_empty(text, text.shape[0]), scores_empty(keep_scores, image, text)


def _backward_fake(
    grad: Tensor,
    scores: Tensor,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    *inputs: Any,
) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (image, text, scale, bias))


def _total_fake(image: Tensor, text: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    gradients, keep_scores = inputs[-2:]
    sides = image.shape[0], text.shape[0]
    grad_rows = (
        wide_empty(rows, rows.shape[0] if gradients else 0, rows.shape[1]) for rows in (image, text)
    )
    grad_scalars = (wide_empty(image) for _ in range(2))
    inverses = wide_empty(image, sum(sides) if keep_scores else 0, 1)
    scores = scores_empty(keep_scores, image, text)
    unit = wide_empty(image) if gradients else wide_empty(image, 0)
    return wide_empty(image), *grad_rows, *grad_scalars, scores, inverses, unit


def _total_backward_fake(grad: Tensor, *given: Any) -> tuple[Tensor, ...]:
    image, text = given[7:9]
    grad_rows = (rows.new_empty(rows.shape) for rows in (image, text))
    return *grad_rows, wide_empty(image), wide_empty(image)


_INPUTS = (
    "Tensor image, Tensor text, Tensor scale, Tensor bias, Tensor? positive, Tensor? image_ids, "
    "Tensor? text_ids"
)
# scores [N, M] if kept, otherwise [0, 0]: with them a backward pass needs no product for scores.
# cosine: scores are cosines of rows of any norm; otherwise dot products. Backends that are not in
# `_policies.NORMALISES_ROWS` get unit rows and False.
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
_TOTAL_INPUTS = (
    "Tensor image, Tensor text, Tensor? scale, float fixed_scale, Tensor? bias, float fixed_bias, "
    "Tensor? positive, Tensor? image_ids, Tensor? text_ids, float weight, bool cosine"
)
_TOTAL_PARTS = (
    "Tensor grad_image, Tensor grad_text, Tensor grad_scale, Tensor grad_bias, Tensor scores, "
    "Tensor inverses, Tensor unit"
)
# total: weight times the sum over all texts; NaN, like its gradients, if a text's positive is -1.
# scale, bias: tensors, or else None and the number beside it; a tensor of it would cost a launch.
# gradients: grad_image and grad_text are unfinished gradients of rows, with the factor unit; the
#   backward pass finishes them in one pass with the gradient of the total. Otherwise [0, D], [0].
# keep_scores: scores [N, M] and the inverse norms of all rows [N + M, 1], for a backend that forms
#   gradients from them. Otherwise [0, 0] and [0, 1].
define(
    "sigmoid_total_forward",
    f"({_TOTAL_INPUTS}, bool gradients, bool keep_scores) -> (Tensor total, {_TOTAL_PARTS})",
    _total_fake,
    triton_file="sigmoid",
)
define(
    "sigmoid_total_backward",
    f"(Tensor grad, {_TOTAL_PARTS}, {_TOTAL_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)",
    _total_backward_fake,
)


class SigmoidFunction(torch.autograd.Function):
    """The backward pass reads kept scores, or recomputes tiles of them."""

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
        saved: tuple[Tensor, ...] = ()
        if cosine and namespace not in NORMALISES_ROWS:
            saved = UnitSides.forward(namespace, image, text)
            image, text, cosine = saved[2], saved[3], False
        inputs = image, text, scale, bias, positive, image_ids, text_ids
        keep = keep and any(ctx.needs_input_grad) and keeps_scores(namespace, image, text)
        loss, scores = torch_op(namespace, "sigmoid_forward")(*inputs, keep, cosine)
        ctx.save_for_backward(scores, *inputs, *saved)
        ctx.options = namespace, cosine
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        namespace, cosine = ctx.options
        scores, *inputs = ctx.saved_tensors
        sides, others, saved = inputs[:2], inputs[2:7], inputs[7:]
        if saved:
            sides = UnitSides.rows(namespace, saved)
        backward = torch_op(namespace, "sigmoid_backward")
        *grad_sides, grad_scale, grad_bias = backward(grad, scores, *sides, *others, cosine)
        if saved:
            grad_sides = UnitSides.backward(namespace, grad_sides, sides, saved)
        return None, *grad_sides, grad_scale, grad_bias, None, None, None, None, None


class SigmoidTotalFunction(torch.autograd.Function):
    """The forward pass forms the gradients of the sum, or keeps scores for the backward pass.

    The backward pass finishes them with the gradient of the sum.
    """

    @staticmethod
    def forward(
        ctx: Any,
        namespace: str,
        image: Tensor,
        text: Tensor,
        scale: Tensor | None,
        fixed_scale: float,
        bias: Tensor | None,
        fixed_bias: float,
        positive: Tensor | None,
        image_ids: Tensor | None,
        text_ids: Tensor | None,
        weight: float,
        cosine: bool,
    ) -> Tensor:
        inputs = image, text, scale, fixed_scale, bias, fixed_bias, positive, image_ids, text_ids
        wanted = any(ctx.needs_input_grad)
        in_forward = wanted and namespace in GRADIENTS_IN_FORWARD
        total, *parts = torch_op(namespace, "sigmoid_total_forward")(
            *inputs, weight, cosine, in_forward, wanted and not in_forward
        )
        ctx.save_for_backward(*parts, image, text, scale, bias, positive, image_ids, text_ids)
        ctx.options = namespace, fixed_scale, fixed_bias, weight, cosine
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        namespace, fixed_scale, fixed_bias, *options = ctx.options
        *given, scale, bias, positive, image_ids, text_ids = ctx.saved_tensors
        *grad_rows, grad_scale, grad_bias = torch_op(namespace, "sigmoid_total_backward")(
            grad,
            *(*given, scale, fixed_scale, bias, fixed_bias),
            *(positive, image_ids, text_ids, *options),
        )
        grad_scale = None if scale is None else grad_scale
        grad_bias = None if bias is None else grad_bias
        return None, *grad_rows, grad_scale, None, grad_bias, *(None,) * 6


@outside_autocast
def fused_sigmoid(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    scale: Tensor,  # []
    bias: Tensor,  # []
    pairs: Pairs,
    backend: str,
    keep: bool = True,
    cosine: bool = False,
) -> Tensor:  # [M]
    """Compute the sums over images of checked arguments.

    `keep=False` keeps no scores for the backward pass, which saves memory and costs one product.
    With `cosine`, scores are cosines of rows of any norm, otherwise dot products.
    """
    sides = image.shape[0], text.shape[0]
    namespace = resolve("sigmoid", image, backend, sides)
    # One autograd function if one backend has both operators: three functions would take longer
    # than their kernels.
    both = namespace is not None and resolve("unit_rows", image, "auto") == namespace
    if cosine and namespace not in NORMALISES_ROWS and not both:
        image, text = (fused_unit_rows(rows, backend) for rows in (image, text))
        cosine = False
    if namespace is None:
        return reference.sigmoid(image, text, scale, bias, *pairs)
    return SigmoidFunction.apply(
        namespace, *distinct(image, text, scale, bias, *pairs), keep, cosine
    )


@outside_autocast
def fused_sigmoid_total(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    scale: float | Tensor,  # []
    bias: float | Tensor,  # []
    pairs: Pairs,
    mean: bool,  # over texts; otherwise their sum
    backend: str,
    cosine: bool = False,
) -> Tensor | None:  # []
    """Return the reduced loss, None if no backend has it as one operator.

    `fused_sigmoid` returns one value per text. A NaN loss from wrong ids has NaN gradients.
    """
    sides = image.shape[0], text.shape[0]
    namespace = backends.resolve_total("sigmoid_total", image, backend, sides)
    if namespace is None:
        return None
    learnt, numbers = zip(
        *((t, 0.0) if isinstance(t, Tensor) else (None, t) for t in (scale, bias)), strict=True
    )
    given = distinct(image, text, *learnt, *pairs)
    scalars = given[2], numbers[0], given[3], numbers[1]
    inputs = *given[:2], *scalars, *given[4:], 1 / sides[1] if mean else 1.0, cosine
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given[:4]):
        return SigmoidTotalFunction.apply(namespace, *inputs)
    return torch_op(namespace, "sigmoid_total_forward")(*inputs, False, False)[0]
