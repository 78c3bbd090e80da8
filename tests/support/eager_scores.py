"""Losses of score matrices in eager PyTorch, for eager_backend.py."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eager_hinges import hinge
from itm_kernels import reference


def max_of_hinges_forward(scores, positive, image_ids, text_ids, margin, semihard):
    pairs = positive, image_ids, text_ids
    loss = reference.max_of_hinges_from_scores(scores, *pairs, margin, semihard)
    scores = scores.to(loss.dtype)
    if image_ids is None:
        image_ids = text_ids = positive = torch.arange(len(loss))
    negatives = scores.masked_fill(image_ids[:, None] == text_ids, -torch.inf)
    s_positive = scores[positive, torch.arange(len(loss))]
    found = (
        hinge(side, s_positive, margin, semihard) for side in (negatives[positive], negatives.T)
    )
    nan = loss.isnan() & (positive >= 0)
    return loss, *(index.masked_fill(nan, -2) for index in found)


def max_of_hinges_backward(grad, positive, text_index, image_index, N, dtype):
    j = torch.arange(len(grad))
    i = j if positive is None else positive
    found = torch.zeros(N, len(grad), dtype=torch.float64)
    for rows, columns, active in (
        (i, text_index.clamp_min(0), text_index >= 0),
        (image_index.clamp_min(0), j, image_index >= 0),
    ):
        share = grad.double() * active
        found.index_put_((rows, columns), share, accumulate=True)
        found.index_put_((i, j), -share, accumulate=True)
    nan = torch.zeros_like(grad.double()).masked_fill(text_index == -2, torch.nan)
    found.index_put_((i, j), nan, accumulate=True)
    return found.to(dtype)


def kernels(differentiate: Callable[..., tuple[Tensor, ...]]) -> dict[str, Callable[..., Any]]:
    """Return the kernels; backward passes recompute the formula."""

    def log_sum_exp_backward(*arguments: Any) -> tuple[Tensor, ...]:
        grads, inputs = list(arguments[:3]), list(arguments[7:])
        return differentiate(reference.log_sum_exp_from_scores, inputs, [0, 1], grads)

    def sigmoid_backward(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        return differentiate(reference.sigmoid_from_scores, list(inputs), [0, 1, 2], [grad])

    def sum_of_hinges_backward(grad: Tensor, loss: Tensor, *inputs: Any) -> Tensor:
        formula = reference.sum_of_hinges_from_scores
        return differentiate(formula, list(inputs), [0], [grad])[0]

    return {
        "log_sum_exp_from_scores_forward": reference.log_sum_exp_from_scores,
        "log_sum_exp_from_scores_backward": log_sum_exp_backward,
        "sigmoid_from_scores_forward": reference.sigmoid_from_scores,
        "sigmoid_from_scores_backward": sigmoid_backward,
        "sum_of_hinges_from_scores_forward": reference.sum_of_hinges_from_scores,
        "sum_of_hinges_from_scores_backward": sum_of_hinges_backward,
        "max_of_hinges_from_scores_forward": max_of_hinges_forward,
        "max_of_hinges_from_scores_backward": max_of_hinges_backward,
    }
