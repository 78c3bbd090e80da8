"""Sum of hinges, one value per pair."""

from typing import Any

import torch
from torch import Tensor

from itm_kernels import reference
from itm_kernels._autocast import outside_autocast
from itm_kernels._pairs import Pairs
from itm_kernels.backends import resolve
from itm_kernels.ops._define import define, distinct, operator, wide_empty


def _forward_fake(
    image: Tensor,
    text: Tensor,
    positive: Tensor | None,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    margin: float,
) -> Tensor:
    return wide_empty(text, text.shape[0])


def _backward_fake(
    grad: Tensor,
    image: Tensor,
    text: Tensor,
    positive: Tensor | None,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    margin: float,
) -> tuple[Tensor, Tensor]:
    return image.new_empty(image.shape), text.new_empty(text.shape)


_INPUTS = (
    "Tensor image, Tensor text, Tensor? positive, Tensor? image_ids, Tensor? text_ids, float margin"
)
define("sum_of_hinges_forward", f"({_INPUTS}) -> Tensor", _forward_fake)
define("sum_of_hinges_backward", f"(Tensor grad, {_INPUTS}) -> (Tensor, Tensor)", _backward_fake)


class SumOfHinges(torch.autograd.Function):
    """Recomputes tiles of scores in the backward pass."""

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
        ctx.save_for_backward(*inputs)
        ctx.options = namespace, margin
        return operator(namespace, "sum_of_hinges_forward")(*inputs, margin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        namespace, margin = ctx.options
        backward = operator(namespace, "sum_of_hinges_backward")
        return None, *backward(grad, *ctx.saved_tensors, margin), None, None, None, None


@outside_autocast
def run(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    pairs: Pairs,
    margin: float,
    function: str,
    backend: str,
) -> Tensor:  # [M]
    """Compute the hinges of checked arguments, on behalf of a public function."""
    pairs_of_rows = image.shape[0] * text.shape[0]
    namespace = resolve(function, "sum_of_hinges", image, backend, pairs_of_rows)
    if namespace is None:
        return reference.sum_of_hinges(image, text, *pairs, margin)
    return SumOfHinges.apply(namespace, *distinct(image, text, *pairs), margin)
