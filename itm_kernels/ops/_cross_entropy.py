"""Cross-entropy of positives among sums over negatives: a few values per pair.

Eager PyTorch needs a dozen small operations for it. At the papers' batch size of 128 they take
longer than the computation of all scores.
"""

from typing import Any

import torch
from torch import Tensor

from itm_kernels import reference
from itm_kernels._autocast import outside_autocast
from itm_kernels.ops._define import define, resolve_best, torch_op


def _forward_fake(positive: Tensor, negatives: Tensor, highest: Tensor, weight: float) -> Tensor:
    return positive.new_empty(positive.shape)


def _backward_fake(
    grad: Tensor, positive: Tensor, negatives: Tensor, highest: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    return positive.new_empty(positive.shape), negatives.new_empty(negatives.shape)


_INPUTS = "Tensor positive, Tensor negatives, Tensor highest, float weight"
define("cross_entropy_forward", f"({_INPUTS}) -> Tensor", _forward_fake)
define("cross_entropy_backward", f"(Tensor grad, {_INPUTS}) -> (Tensor, Tensor)", _backward_fake)


class CrossEntropyFunction(torch.autograd.Function):
    """Recomputes the softmax weights in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        namespace: str,
        positive: Tensor,
        negatives: Tensor,
        highest: Tensor,
        weight: float,
    ) -> Tensor:
        ctx.save_for_backward(positive, negatives, highest)
        ctx.options = namespace, weight
        return torch_op(namespace, "cross_entropy_forward")(positive, negatives, highest, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        namespace, weight = ctx.options
        backward = torch_op(namespace, "cross_entropy_backward")
        return None, *backward(grad, *ctx.saved_tensors, weight), None, None


@outside_autocast
def fused_cross_entropy(
    positive: Tensor,  # [M] logits, fp32 or fp64
    negatives: Tensor,  # [S, K, M] logs of K sums over negatives, for each of S sides
    highest: Tensor,  # [S, K, M] logits that the sums are relative to, without gradient
    weight: float,
    backend: str,
) -> Tensor:  # [M]
    """Return the sum of -log softmax of every positive over all sides, times a weight."""
    namespace = resolve_best("cross_entropy", positive, backend)
    if namespace is None:
        return reference.cross_entropy(positive, negatives, highest, weight)
    return CrossEntropyFunction.apply(namespace, positive, negatives, highest, weight)
