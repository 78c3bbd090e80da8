"""Reduction of one value per text to the sum or to the mean over pairs."""

import torch
from torch import Tensor


def zero_absent(values: Tensor, absent: Tensor | None) -> Tensor:
    """Set the values of texts that are only negatives to 0, without gradient."""
    return values if absent is None else values.masked_fill(absent, 0)


def nan_where_mistaken(
    values: Tensor,  # [M]
    mistaken: Tensor | None,  # [M] bool
    first: Tensor,  # [N, D], or scores [N, M]
    text: Tensor | None = None,  # [M, D]
) -> Tensor:  # [M]
    """Make the gradient NaN where the loss is NaN because ids that could not be read are wrong.

    NaN times one entry of every input is added for every such text, so the gradient reaches it.
    """
    if mistaken is None:
        return values
    nan = torch.zeros_like(values).masked_fill(mistaken, torch.nan)
    entries = (first[0],) if text is None else (first[0, 0], text[:, 0])
    for entry in entries:
        values = values + nan * entry
    return values


def reduce(values: Tensor, reduction: str, absent: Tensor | None = None) -> Tensor:
    """Reduce one value per text to the sum or to the mean over pairs; "none" returns the values."""
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if absent is None:
        return values.mean()
    return mean_over_pairs(values.sum(), values.shape[0], absent)


def mean_over_pairs(total: Tensor, texts: int, absent: Tensor | None) -> Tensor:
    """Return a sum over texts divided by the number of pairs."""
    return total / (texts if absent is None else absent.logical_not().sum().clamp_min(1))
