"""Cross-entropy of positives among logs of sums over their negatives."""

import torch
from torch import Tensor

from itm_kernels.reference._positives import show_not_finite


def cross_entropy(
    positive: Tensor,  # [M] logits
    negatives: Tensor,  # [S, K, M] logs of K sums over negatives, on each of S sides
    highest: Tensor,  # [S, K, M] what they are relative to
    weight: float,
) -> Tensor:  # [M]
    """Add -log softmax of the positive over all sides, times a weight.

    Negatives are taken relative to the positive before anything is added up: a small loss is then
    no difference of two large logarithms.
    """
    relative = negatives + (highest - positive)
    loss = torch.zeros_like(relative[:, 0])
    for others in relative.unbind(1):
        loss = torch.logaddexp(loss, others)
    return weight * loss.sum(0) + show_not_finite(positive)
