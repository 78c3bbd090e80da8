"""IMC, the max of hinges with bands of cosines on both sides, as one operator for small batches."""

from typing import Any

import torch
from torch import Tensor

from itm_kernels import backends
from itm_kernels._autocast import outside_autocast
from itm_kernels._positives import Pairs
from itm_kernels.ops._define import define, distinct, index_empty, wide_empty
from itm_kernels.ops._max_of_hinges import HingesTotalFunction


def _forward_fake(image: Tensor, text: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    N, M = image.shape[0], text.shape[0]
    hardest_text = image.new_empty((N,), dtype=torch.int32)
    masks = (image.new_empty((n, (n + 31) // 32), dtype=torch.int32) for n in (N, M))
    indices = index_empty(text, M), index_empty(text, M)
    return wide_empty(text), *indices, hardest_text, wide_empty(image, N), *masks


def _backward_fake(
    grad: Tensor, image: Tensor, text: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor]:
    return image.new_empty(image.shape), text.new_empty(text.shape)


# total: the sum of all hinges, plus weight times the mean row sum of cosines in the official band,
#   upper < S < 1 - lower, for each side. A pair without an image makes it NaN, as well as the
#   gradients of its text and of the first image.
# text_index, image_index [M]: as in max_of_hinges_forward.
# hardest_text int32 [N]: of every image; violations [N]: how many of its pairs violate the margin
#   with it.
# masks int32 [N, ceil(N / 32)] and [M, ceil(M / 32)]: the pairs inside the band, and the diagonal
#   entry of a row whose sum is not finite. The gradient multiplies rows by these counts and bits.
define(
    "imc_total_forward",
    "(Tensor image, Tensor text, Tensor? positive, Tensor? image_ids, Tensor? text_ids, "
    "float margin, float lower, float upper, float weight) -> (Tensor total, Tensor text_index, "
    "Tensor image_index, Tensor hardest_text, Tensor violations, Tensor image_mask, "
    "Tensor text_mask)",
    _forward_fake,
)
define(
    "imc_total_backward",
    "(Tensor grad, Tensor image, Tensor text, Tensor? positive, Tensor text_index, "
    "Tensor image_index, Tensor hardest_text, Tensor violations, Tensor image_mask, "
    "Tensor text_mask, float weight) -> (Tensor, Tensor)",
    _backward_fake,
)


@outside_autocast
def fused_imc_total(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    pairs: Pairs,
    margin: float,
    lower: float,
    upper: float,
    weight: float,
    backend: str,
) -> Tensor | None:  # []
    """Return the loss with the official band of cosines, None if no backend has it as one operator.

    The loss and its gradients are NaN if a pair has no image.
    """
    operator, sides = "imc_total", (image.shape[0], text.shape[0])
    namespace = backends.resolve_total(operator, image, backend, sides)
    if namespace is None:
        return None
    given = distinct(image, text, *pairs)
    return HingesTotalFunction.apply(namespace, operator, *given, margin, lower, upper, weight)
