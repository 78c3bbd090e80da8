"""The softmax over a batch that the contrastive losses share, in both directions."""

from typing import NamedTuple

import torch
from torch import Tensor

from itm_kernels._pairs import Pairs
from itm_kernels.ops.log_sum_exp import run as log_sum_exp
from itm_kernels.reference._rows import paired_scores


class Contrast(NamedTuple):
    """Per pair: the logit of the positive and the log of both denominators."""

    positive: Tensor  # [M]
    from_image: Tensor  # [M] log of the sum over texts
    from_text: Tensor  # [M] log of the sum over images

    def mean(self) -> Tensor:
        """Return the mean cross-entropy of both directions, one value per pair."""
        return (self.from_image + self.from_text) / 2 - self.positive


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
    """Compute both denominators, of the positive and of all pairs with different ids."""
    positive = scale * paired_scores(image, text, pairs.positive)
    row, column = log_sum_exp(
        image, text, scale, pairs.image_ids, pairs.text_ids, function, backend
    )
    if pairs.positive is None:
        return Contrast(positive, row, column)
    # With ids the operator leaves out all pairs that share one, the positive among them.
    return Contrast(
        positive,
        torch.logaddexp(positive, of_image(row, pairs)),
        torch.logaddexp(positive, column),
    )
