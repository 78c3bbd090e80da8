"""Cross-entropy of positives, given the logs of sums over their negatives."""

import torch
from torch import Tensor

from itm_kernels.reference._nan import nan_unless_finite


def cross_entropy(
    positive: Tensor,  # [M] logits
    negatives: Tensor,  # [S, K, M] logs of K sums over negatives, for each of S sides
    highest: Tensor,  # [S, K, M] logits that the sums are relative to
    weight: float,
) -> Tensor:  # [M]
    """Return the sum of -log softmax of every positive over all sides, times a weight.

    Negatives are computed relative to the positive before the sums, so that a small loss is not a
    difference of two large logarithms.
    """
    relative = negatives + (highest - positive)
    loss = torch.zeros_like(relative[:, 0])
    for others in relative.unbind(1):
        loss = torch.logaddexp(loss, others)
    return weight * loss.sum(0) + nan_unless_finite(positive)
