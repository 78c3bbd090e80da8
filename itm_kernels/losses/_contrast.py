"""The softmax over a batch that the contrastive losses share, in both directions."""

from typing import NamedTuple

import torch
from torch import Tensor

from itm_kernels._pairs import Pairs
from itm_kernels.ops.log_sum_exp import run as log_sum_exp
from itm_kernels.reference._pairs import show_not_finite
from itm_kernels.reference._rows import paired_scores


class Contrast(NamedTuple):
    """Per pair: the logit of the positive, and the log of the negatives' sum on both sides."""

    positive: Tensor  # [M]
    from_image: Tensor  # [M] log of the sum over texts with another id
    from_text: Tensor  # [M] log of the sum over images with another id

    def mean(self) -> Tensor:
        """Return the mean cross-entropy of both directions, one value per pair."""
        to_text = cross_entropy(self.positive, self.from_image)
        return (to_text + cross_entropy(self.positive, self.from_text)) / 2


def cross_entropy(positive: Tensor, *negatives: Tensor) -> Tensor:
    """Return -log softmax of the positive `[M]`, given logs of sums over negatives `[M]`.

    Negatives are taken relative to the positive before anything is added up: a small loss is then
    no difference of two large logarithms.
    """
    loss = torch.zeros_like(positive)
    for other in negatives:
        loss = torch.logaddexp(loss, other - positive)
    return loss + show_not_finite(positive)


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
