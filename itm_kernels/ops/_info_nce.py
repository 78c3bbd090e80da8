"""InfoNCE as one operator for small batches, from embeddings to the reduced loss."""

from typing import Any

import torch
from torch import Tensor

from itm_kernels import backends
from itm_kernels._autocast import outside_autocast
from itm_kernels._positives import Pairs
from itm_kernels.ops._define import define, distinct, scores_empty, torch_op, wide_empty


def _forward_fake(image: Tensor, text: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    keep_scores = inputs[-1]
    anchors = wide_empty(image, image.shape[0] + text.shape[0], 4)
    scores = scores_empty(keep_scores, image, text)
    return wide_empty(image), scores, anchors, wide_empty(image)


def _backward_fake(
    grad: Tensor,
    scores: Tensor,
    anchors: Tensor,
    grad_scale: Tensor,
    image: Tensor,
    text: Tensor,
    *inputs: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return image.new_empty(image.shape), text.new_empty(text.shape), wide_empty(image)


_INPUTS = (
    "Tensor image, Tensor text, Tensor? scale, float fixed_scale, Tensor? positive, "
    "Tensor? image_ids, Tensor? text_ids, float weight, bool cosine"
)
# total: weight times the sum of the cross-entropies of all pairs in both directions; NaN, like its
#   gradients, if the positive of a text is -1.
# scale: a tensor, or else None and the number fixed_scale; a tensor of it would cost a launch.
# cosine: scores are cosines of rows of any norm; otherwise dot products.
# scores [N, M], or [0, 0]: for the backward pass.
# anchors [N + M, 4], of rows and then columns: the highest logit of the negatives, the log of their
#   sum relative to it, the gradient of that log, and 1 / the norm of the row.
# grad_scale: the gradient of the total.
define(
    "info_nce_total_forward",
    f"({_INPUTS}, bool keep_scores) "
    "-> (Tensor total, Tensor scores, Tensor anchors, Tensor grad_scale)",
    _forward_fake,
)
define(
    "info_nce_total_backward",
    f"(Tensor grad, Tensor scores, Tensor anchors, Tensor grad_scale, {_INPUTS}) "
    "-> (Tensor, Tensor, Tensor)",
    _backward_fake,
)


class InfoNCETotalFunction(torch.autograd.Function):
    """The backward pass recomputes the softmax weights from the kept scores."""

    @staticmethod
    def forward(
        ctx: Any,
        namespace: str,
        image: Tensor,
        text: Tensor,
        scale: Tensor | None,
        fixed_scale: float,
        positive: Tensor | None,
        image_ids: Tensor | None,
        text_ids: Tensor | None,
        weight: float,
        cosine: bool,
    ) -> Tensor:
        inputs = image, text, scale, fixed_scale, positive, image_ids, text_ids, weight, cosine
        keep = any(ctx.needs_input_grad)
        total, *parts = torch_op(namespace, "info_nce_total_forward")(*inputs, keep)
        ctx.save_for_backward(*parts, image, text, scale, positive, image_ids, text_ids)
        ctx.options = namespace, fixed_scale, weight, cosine
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        namespace, fixed_scale, weight, cosine = ctx.options
        *given, scale, positive, image_ids, text_ids = ctx.saved_tensors
        grad_image, grad_text, grad_scale = torch_op(namespace, "info_nce_total_backward")(
            grad, *given, scale, fixed_scale, positive, image_ids, text_ids, weight, cosine
        )
        learnt = grad_scale if scale is not None else None
        return None, grad_image, grad_text, learnt, *(None,) * 6


@outside_autocast
def fused_info_nce_total(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    scale: float | Tensor,  # []
    pairs: Pairs,
    weight: float,  # of each direction in the loss of a pair
    mean: bool,  # over pairs; otherwise their sum
    backend: str,
    cosine: bool = True,  # scores are cosines of rows of any norm; otherwise dot products
) -> Tensor | None:  # []
    """Return the reduced loss, None if no backend has it as one operator.

    The loss and its gradients are NaN if a pair has no image.
    """
    sides = image.shape[0], text.shape[0]
    namespace = backends.resolve_total("info_nce_total", image, backend, sides)
    if namespace is None:
        return None
    weight = weight / sides[1] if mean else weight
    learnt, fixed = (scale, 0.0) if isinstance(scale, Tensor) else (None, scale)
    given = distinct(image, text, learnt, *pairs)
    return InfoNCETotalFunction.apply(namespace, *given[:3], fixed, *given[3:], weight, cosine)
