"""The hardest negative of every anchor, as scores and indices."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from itm_kernels import _checks, _positives, reference
from itm_kernels._autocast import outside_autocast
from itm_kernels._options import Backend
from itm_kernels._public import public
from itm_kernels.backends import resolve
from itm_kernels.ops._define import define, distinct, index_empty, torch_op, wide_empty


class HardestNegatives(NamedTuple):
    """Scores of positives and hardest negatives; -inf and -1 where an anchor has no negative."""

    positive: Tensor  # [M]
    text_score: Tensor  # [N]
    text_index: Tensor  # [N] int64
    image_score: Tensor  # [M]
    image_index: Tensor  # [M] int64


def _forward_fake(image: Tensor, text: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    N, M = image.shape[0], text.shape[0]
    return (
        wide_empty(text, M),
        wide_empty(text, N),
        index_empty(text, N),
        wide_empty(text, M),
        index_empty(text, M),
    )


def _backward_fake(
    grad_positive: Tensor,
    grad_text_score: Tensor,
    grad_image_score: Tensor,
    image: Tensor,
    text: Tensor,
    *inputs: Any,
) -> tuple[Tensor, Tensor]:
    return image.new_empty(image.shape), text.new_empty(text.shape)


define(
    "hardest_negatives_forward",
    "(Tensor image, Tensor text, Tensor? positive, Tensor? image_ids, Tensor? text_ids) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward_fake,
)
define(
    "hardest_negatives_backward",
    "(Tensor grad_positive, Tensor grad_text_score, Tensor grad_image_score, Tensor image, "
    "Tensor text, Tensor? positive, Tensor text_index, Tensor image_index) -> (Tensor, Tensor)",
    _backward_fake,
)


class HardestNegativesFunction(torch.autograd.Function):
    """Propagates the gradient of every score to the two rows that it compares."""

    @staticmethod
    def forward(
        ctx: Any,
        namespace: str,
        image: Tensor,
        text: Tensor,
        positive: Tensor | None,
        image_ids: Tensor | None,
        text_ids: Tensor | None,
    ) -> tuple[Tensor, ...]:
        forward = torch_op(namespace, "hardest_negatives_forward")
        found = HardestNegatives(*forward(image, text, positive, image_ids, text_ids))
        ctx.mark_non_differentiable(found.text_index, found.image_index)
        ctx.save_for_backward(image, text, positive, found.text_index, found.image_index)
        ctx.namespace = namespace
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_positive, grad_text_score, _, grad_image_score, _ = grads
        backward = torch_op(ctx.namespace, "hardest_negatives_backward")
        grad_image, grad_text = backward(
            grad_positive, grad_text_score, grad_image_score, *ctx.saved_tensors
        )
        return None, grad_image, grad_text, None, None, None


@outside_autocast
def fused_hardest_negatives(
    image: Tensor, text: Tensor, pairs: _positives.Pairs, backend: str
) -> HardestNegatives:
    """Compute `hardest_negatives` of checked arguments."""
    sides = image.shape[0], text.shape[0]
    namespace = resolve("hardest_negatives", image, backend, sides)
    if namespace is None:
        return HardestNegatives(*reference.hardest_negatives(image, text, *pairs))
    return HardestNegatives(
        *HardestNegativesFunction.apply(namespace, *distinct(image, text, *pairs))
    )


@public
def hardest_negatives(
    image: Tensor,
    text: Tensor,
    *,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    backend: Backend = "auto",
) -> HardestNegatives:
    """Find the negative text with the highest score of every image, and the image of every text.

    Args:
        image: `[N, D]`, not normalised: scores are dot products.
        text: `[M, D]`; M = N without ids.
        image_ids: `[N]` integers; pairs that share an id are not negatives.
        text_ids: `[M]` integers, each the id of exactly one image.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.

    Returns:
        `HardestNegatives`; scores are differentiable, and fp32 for fp16 and bf16 inputs. An
        anchor without negatives has score -inf and index -1; a score that overflows to -inf is
        still a negative. Among equal computed scores the lowest index is returned. The scores of
        copies of a row may differ in the last bit, most often in fp64, whose products round the
        last columns and rows of a matrix differently; the index is then that of any copy.

    Raises:
        TypeError: an argument is not a floating-point tensor, or ids are not integers.
        ValueError: invalid shapes, devices or ids.
        RuntimeError: the requested backend cannot run here.

    >>> import torch
    >>> scores = torch.tensor([[0.8, 0.7, 0.65], [0.3, 0.6, 0.55], [0.75, 0.2, 0.5]])
    >>> hardest_negatives(scores, torch.eye(3)).text_index
    tensor([1, 2, 0])
    """
    image, text = _checks.embeddings(image=image, text=text)
    pairs = _positives.resolve(image, text, image_ids, text_ids)
    return fused_hardest_negatives(image, text, pairs, backend)
