"""Whole contrastive losses in eager PyTorch, for eager_backend.py."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from itm_kernels import reference


def number(tensor: Tensor | None, value: float, like: Tensor) -> Tensor:
    wide = torch.promote_types(like.dtype, torch.float32)
    return torch.tensor(value, dtype=wide) if tensor is None else tensor


def info_nce(image, text, scale, positive, image_ids, text_ids, weight, cosine) -> Tensor:
    sides = [reference.unit_rows(rows) if cosine else rows for rows in (image, text)]
    if image_ids is None:
        image_ids = text_ids = positive = torch.arange(len(text))
    row, column, own, row_highest, column_highest = reference.log_sum_exp(
        *sides, scale, image_ids, text_ids, positive
    )
    i = positive.clamp_min(0)
    negatives, highest = (
        torch.stack(both)[:, None] for both in ((row[i], column), (row_highest[i], column_highest))
    )
    return reference.cross_entropy(own, negatives, highest, weight).sum()


def sigmoid(image, text, scale, bias, positive, image_ids, text_ids, weight, cosine) -> Tensor:
    sides = [reference.unit_rows(rows) if cosine else rows for rows in (image, text)]
    return (weight * reference.sigmoid(*sides, scale, bias, positive, image_ids, text_ids)).sum()


# The backward pass recomputes everything, so the saved tensors are zeros.
def info_nce_total_forward(image, text, scale, fixed_scale, *others) -> tuple[Tensor, ...]:
    *options, keep = others
    total = info_nce(image, text, number(scale, fixed_scale, image), *options)
    N, M = (len(rows) * keep for rows in (image, text))
    scores, anchors = total.new_zeros(N, M), total.new_zeros(len(image) + len(text), 4)
    return total, scores, anchors, torch.zeros_like(total)


def sigmoid_total_forward(
    image, text, scale, fixed_scale, bias, fixed_bias, *others
) -> tuple[Tensor, ...]:
    *options, at_once, keep = others
    scalars = number(scale, fixed_scale, image), number(bias, fixed_bias, image)
    total = sigmoid(image, text, *scalars, *options)
    of_rows = (total.new_zeros(len(rows) * at_once, rows.shape[1]) for rows in (image, text))
    of_scalars = (torch.zeros_like(total) for _ in range(2))
    N, M = (len(rows) * keep for rows in (image, text))
    kept = total.new_zeros(N, M), total.new_zeros(N + M, 1)
    unit = total.new_ones(()) if at_once else total.new_ones(0)
    return total, *of_rows, *of_scalars, *kept, unit


def kernels(differentiate: Callable[..., tuple[Tensor, ...]]) -> dict[str, Callable[..., Any]]:
    """Return the operators; gradients are those of `differentiate(formula, inputs, wrt, grads)`."""

    def info_nce_backward(grad, scores, anchors, of_scale, image, text, scale, fixed, *options):
        inputs = [image, text, number(scale, fixed, image), *options]
        return differentiate(info_nce, inputs, [0, 1, 2], [grad])

    def sigmoid_backward(grad, *given):
        image, text, scale, fixed_scale, bias, fixed_bias, *options = given[7:]
        scalars = number(scale, fixed_scale, image), number(bias, fixed_bias, image)
        found = differentiate(sigmoid, [image, text, *scalars, *options], [0, 1, 2, 3], [grad])
        positive = options[0]
        if positive is None or not (positive < 0).any():
            return found
        return tuple(grad * torch.nan for grad in found)  # wrong ids make the gradients NaN

    return {
        "info_nce_total_forward": info_nce_total_forward,
        "info_nce_total_backward": info_nce_backward,
        "sigmoid_total_forward": sigmoid_total_forward,
        "sigmoid_total_backward": sigmoid_backward,
    }
