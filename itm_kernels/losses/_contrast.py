"""The softmax over a batch that the contrastive losses share, in both directions."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from itm_kernels._pairs import Pairs
from itm_kernels.ops.cross_entropy import run as run_cross_entropy
from itm_kernels.ops.log_sum_exp import run as log_sum_exp
from itm_kernels.reference._rows import paired_scores


class Contrast(NamedTuple):
    """Per pair: the logit of the positive, and the log of the negatives' sum on both sides."""

    positive: Tensor  # [M]
    from_image: Tensor  # [M] log of the sum over texts with another id
    from_text: Tensor  # [M] log of the sum over images with another id


def cross_entropy(
    positive: Tensor,  # [M]
    from_image: Sequence[Tensor],  # [M] each: logs of sums over negatives of the image
    from_text: Sequence[Tensor],  # as many of the text
    weight: float,
    function: str,
    backend: str,
) -> Tensor:  # [M]
    """Return -log softmax of the positive, the two directions added, times a weight."""
    negatives = torch.stack([*from_image, *from_text]).unflatten(0, (2, len(from_image)))
    return run_cross_entropy(positive, negatives, weight, function, backend)


def of_image(values: Tensor, pairs: Pairs) -> Tensor:
    """Take, for every pair `[M]`, the value of its image from `[N]`."""
    return values if pairs.positive is None else values[pairs.positive.clamp_min(0)]


def contrast(
    image: Tensor,  # [N, D], scored as it is
    text: Tensor,  # [M, D]
    scale: Tensor,  # []
    pairs: Pairs,
    function: str,
    backend: str,
) -> Contrast:
    """Compute the logit of every positive and both sums over negatives."""
    image_ids, text_ids = pairs.image_ids, pairs.text_ids
    if image_ids is None:
        image_ids = text_ids = torch.arange(image.shape[0], device=image.device)
    row, column = log_sum_exp(image, text, scale, image_ids, text_ids, function, backend)
    positive = scale * paired_scores(image, text, pairs.positive)
    return Contrast(positive, of_image(row, pairs), column)


def mean_cross_entropy(
    image: Tensor,  # [N, D], scored as it is
    text: Tensor,  # [M, D]
    scale: Tensor,  # []
    pairs: Pairs,
    function: str,
    backend: str,
) -> Tensor:  # [M]
    """Return the mean cross-entropy of both directions, one value per pair."""
    positive, from_image, from_text = contrast(image, text, scale, pairs, function, backend)
    return cross_entropy(positive, [from_image], [from_text], 0.5, function, backend)
