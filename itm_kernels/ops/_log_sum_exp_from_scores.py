"""Row and column log-sum-exp of a score matrix that the model computes itself.

In plain PyTorch the passes over the matrix and its gradient move 43 times its bytes. A kernel reads
it once in the forward pass, and once in the backward pass, which writes the gradient.
"""

from typing import Any

import torch
from torch import Tensor

from itm_kernels import reference
from itm_kernels._autocast import outside_autocast
from itm_kernels.ops._define import define, distinct, resolve_best, torch_op, wide_empty
from itm_kernels.ops._log_sum_exp import RelativeSums


def _forward_fake(scores: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    N, M = scores.shape
    return tuple(wide_empty(scores, size) for size in (N, M, M, N, M))


def _backward_fake(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    scores, scale = inputs[7:9]  # after three gradients and four sums
    return scores.new_empty(scores.shape), scale.new_empty(scale.shape)


_INPUTS = "Tensor scores, Tensor scale, Tensor x_ids, Tensor y_ids, Tensor positive"
# As log_sum_exp, of scores [N, M] with any strides. Pairs that share an id are excluded.
define(
    "log_sum_exp_from_scores_forward",
    f"({_INPUTS}) -> (Tensor row, Tensor column, Tensor positive_logits, Tensor row_highest, "
    "Tensor column_highest)",
    _forward_fake,
)
define(
    "log_sum_exp_from_scores_backward",
    "(Tensor grad_row, Tensor grad_column, Tensor grad_positive, Tensor row, Tensor column, "
    f"Tensor row_highest, Tensor column_highest, {_INPUTS}) -> (Tensor, Tensor)",
    _backward_fake,
)


class LogSumExpFromScoresFunction(torch.autograd.Function):
    """Recomputes softmax weights from the scores and the saved log-sum-exp."""

    @staticmethod
    def forward(
        ctx: Any,
        namespace: str,
        scores: Tensor,
        scale: Tensor,
        *pairs: Tensor,
    ) -> tuple[Tensor, ...]:
        inputs = scores, scale, *pairs
        found = torch_op(namespace, "log_sum_exp_from_scores_forward")(*inputs)
        row, column, _, row_highest, column_highest = found
        ctx.mark_non_differentiable(row_highest, column_highest)
        ctx.set_materialize_grads(False)  # the maxima have none
        ctx.save_for_backward(row, column, row_highest, column_highest, *inputs)
        ctx.namespace = namespace
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        row, column, *_ = saved = ctx.saved_tensors
        of_sums = [
            torch.zeros_like(like) if grad is None else grad
            for grad, like in zip(grads, (row, column, column), strict=False)
        ]
        backward = torch_op(ctx.namespace, "log_sum_exp_from_scores_backward")
        return None, *backward(*of_sums, *saved), None, None, None


@outside_autocast
def fused_log_sum_exp_from_scores(
    scores: Tensor,  # [N, M]
    scale: Tensor,  # []
    x_ids: Tensor,  # [N]
    y_ids: Tensor,  # [M]
    positive: Tensor,  # [M] row with the same id, -1 for none
    backend: str,
) -> RelativeSums:
    """Compute `log_sum_exp` of given scores, relative to the highest logits."""
    inputs = scores, scale, x_ids, y_ids, positive
    namespace = resolve_best("log_sum_exp_from_scores", scores, backend)
    if namespace is None:
        return RelativeSums(*reference.log_sum_exp_from_scores(*inputs))
    return RelativeSums(*LogSumExpFromScoresFunction.apply(namespace, *distinct(*inputs)))
