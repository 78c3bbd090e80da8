"""Sigmoid loss: every pair of a batch is a binary classification."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from itm_kernels.reference._nan import nan_unless_finite
from itm_kernels.reference._positives import is_positive, positive_scores, same_id
from itm_kernels.reference._precision import wide


def sigmoid(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    scale: Tensor,  # []
    bias: Tensor,  # []
    positive: Tensor | None,  # [M]
    image_ids: Tensor | None,  # [N]
    text_ids: Tensor | None,  # [M]
) -> Tensor:  # [M]
    """Sum -log sigmoid of z (scale s + bias) over the images of every text; z is 1 or -1.

    Pairs that share an id but are not the positive are excluded.
    """
    scores = wide(image) @ wide(text).T
    return sigmoid_from_scores(scores, scale, bias, positive, image_ids, text_ids)


def sigmoid_from_scores(
    scores: Tensor,  # [N, M]
    scale: Tensor,  # []
    bias: Tensor,  # []
    positive: Tensor | None,  # [M]
    image_ids: Tensor | None,  # [N]
    text_ids: Tensor | None,  # [M]
) -> Tensor:  # [M]
    """Do the same for a given score matrix."""
    logits = scale * wide(scores) + bias
    matched = is_positive(logits, positive)
    ignored = same_id(logits, image_ids, text_ids) & ~matched
    # Not softplus: that of torch is linear from 20 on, with an error of 2e-9 in fp64.
    loss = -logsigmoid(torch.where(matched, logits, -logits)).masked_fill(ignored, 0).sum(0)
    return loss + nan_unless_finite(positive_scores(logits, positive))
