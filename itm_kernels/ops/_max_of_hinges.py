"""Max of hinges, one value per pair; the forward pass saves the indices of hardest negatives."""

from typing import Any

import torch
from torch import Tensor

from itm_kernels import backends, reference
from itm_kernels._autocast import outside_autocast
from itm_kernels._positives import Pairs
from itm_kernels.backends import resolve
from itm_kernels.ops._define import define, distinct, index_empty, torch_op, wide_empty


def _forward_fake(image: Tensor, text: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    M = text.shape[0]
    return wide_empty(text, M), index_empty(text, M), index_empty(text, M)


def _backward_fake(
    grad: Tensor, image: Tensor, text: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor]:
    return image.new_empty(image.shape), text.new_empty(text.shape)


def _total_fake(image: Tensor, text: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    M = text.shape[0]
    return wide_empty(text), index_empty(text, M), index_empty(text, M)


# text_index, image_index [M]: the hardest negative of pair j, -1 if its hinge is not active; both
# -2 if the loss of the pair is NaN, in which case the gradient of its two rows is NaN.
define(
    "max_of_hinges_forward",
    "(Tensor image, Tensor text, Tensor? positive, Tensor? image_ids, Tensor? text_ids, "
    "float margin, bool semihard) -> (Tensor loss, Tensor text_index, Tensor image_index)",
    _forward_fake,
)
define(
    "max_of_hinges_backward",
    "(Tensor grad, Tensor image, Tensor text, Tensor? positive, Tensor text_index, "
    "Tensor image_index) -> (Tensor, Tensor)",
    _backward_fake,
)
# total: weight times the sum over all pairs. A pair without an image makes it NaN, as well as the
# gradients of its text and of the first image.
define(
    "max_of_hinges_total_forward",
    "(Tensor image, Tensor text, Tensor? positive, Tensor? image_ids, Tensor? text_ids, "
    "float margin, bool semihard, float weight) "
    "-> (Tensor total, Tensor text_index, Tensor image_index)",
    _total_fake,
)
define(
    "max_of_hinges_total_backward",
    "(Tensor grad, Tensor image, Tensor text, Tensor? positive, Tensor text_index, "
    "Tensor image_index, float weight) -> (Tensor, Tensor)",
    _backward_fake,
)


class MaxOfHingesFunction(torch.autograd.Function):
    """The gradient gathers the rows at the saved indices, without scores `[N, M]`."""

    @staticmethod
    def forward(
        ctx: Any,
        namespace: str,
        image: Tensor,
        text: Tensor,
        positive: Tensor | None,
        *others: Any,
    ) -> Tensor:
        forward = torch_op(namespace, "max_of_hinges_forward")
        loss, *indices = forward(image, text, positive, *others)
        ctx.save_for_backward(image, text, positive, *indices)
        ctx.namespace = namespace
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        backward = torch_op(ctx.namespace, "max_of_hinges_backward")
        grad_image, grad_text = backward(grad, *ctx.saved_tensors)
        return None, grad_image, grad_text, None, None, None, None, None


class HingesTotalFunction(torch.autograd.Function):
    """As `MaxOfHingesFunction`, for one value, of `max_of_hinges_total` or `imc_total`.

    The backward pass takes the last option of the forward pass, the weight.
    """

    @staticmethod
    def forward(
        ctx: Any,
        namespace: str,
        operator: str,
        image: Tensor,
        text: Tensor,
        positive: Tensor | None,
        *others: Any,
    ) -> Tensor:
        forward = torch_op(namespace, f"{operator}_forward")
        total, *found = forward(image, text, positive, *others)
        ctx.save_for_backward(image, text, positive, *found)
        ctx.options = namespace, operator, others[-1], len(others)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        namespace, operator, weight, others = ctx.options
        backward = torch_op(namespace, f"{operator}_backward")
        return None, None, *backward(grad, *ctx.saved_tensors, weight), *[None] * (1 + others)


@outside_autocast
def fused_max_of_hinges(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    pairs: Pairs,
    margin: float,
    semihard: bool,
    backend: str,
) -> Tensor:  # [M]
    """Compute the hinges of checked arguments."""
    sides = image.shape[0], text.shape[0]
    namespace = resolve("max_of_hinges", image, backend, sides)
    if namespace is None:
        return reference.max_of_hinges(image, text, *pairs, margin, semihard)
    return MaxOfHingesFunction.apply(namespace, *distinct(image, text, *pairs), margin, semihard)


@outside_autocast
def fused_max_of_hinges_total(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    pairs: Pairs,
    margin: float,
    semihard: bool,
    weight: float,
    backend: str,
) -> Tensor | None:  # []
    """Return the sum over pairs times a weight, None if no backend has it as one operator.

    The loss and its gradients are NaN if a pair has no image.
    """
    sides = image.shape[0], text.shape[0]
    operator = "max_of_hinges_total"
    namespace = backends.resolve_total(operator, image, backend, sides)
    if namespace is None:
        return None
    given = distinct(image, text, *pairs)
    return HingesTotalFunction.apply(namespace, operator, *given, margin, semihard, weight)
