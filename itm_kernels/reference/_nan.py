"""Propagation of NaN and infinite scores to losses and gradients that would hide them."""

import torch
from torch import Tensor


def nan_unless_finite(scores: Tensor) -> Tensor:
    """Return 0 for a finite score and NaN otherwise, to be added to a loss.

    A pair without negatives has no term with its positive score, and [-inf]+ = 0 hides an infinite
    one.
    """
    return 0 * scores


def with_nan_gradient(
    loss: Tensor,  # [M]
    positive: Tensor | None = None,  # [M]
) -> Tensor:  # [M]
    """Return a loss whose gradient is NaN for every pair whose loss is NaN.

    The gradient of a hinge would be finite if its rows are. A text without an image is not a pair:
    its NaN has no gradient, so that a loss may exclude it.
    """
    nan = loss.isnan() if positive is None else loss.isnan() & (positive >= 0)
    return loss * torch.where(nan, torch.nan, 1.0)
