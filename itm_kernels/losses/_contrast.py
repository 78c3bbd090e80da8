"""The softmax over a batch that the contrastive losses share, in both directions."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from itm_kernels._pairs import Pairs
from itm_kernels.losses._common import of_pairs
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
    from_image: Sequence[Tensor],  # [M] or [M, K]: logs of sums over negatives of the image
    from_text: Sequence[Tensor],  # as many of the text
    weight: float,
    function: str,
    backend: str,
) -> Tensor:  # [M]
    """Return -log softmax of the positive, the two directions added, times a weight."""
    sums = [logs[None] if logs.dim() == 1 else logs.T for logs in (*from_image, *from_text)]
    negatives = torch.cat(sums).unflatten(0, (2, -1))
    return run_cross_entropy(positive, negatives, weight, function, backend)


def ids_of(pairs: Pairs, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ids of both sides; the pairs of a diagonal are numbered."""
    if pairs.image_ids is None or pairs.text_ids is None:
        own = torch.arange(image.shape[0], device=image.device)
        return own, own
    return pairs.image_ids, pairs.text_ids


def of_image(values: Tensor, pairs: Pairs) -> Tensor:
    """Take, for every pair `[M, ...]`, the values of its image from `[N, ...]`."""
    return values if pairs.positive is None else values[pairs.positive.clamp_min(0)]


def contrast(
    image: Tensor,  # [N, D], scored as it is
    text: Tensor,  # [M, D]
    scale: Tensor,  # []
    pairs: Pairs,
    function: str,
    backend: str,
    absent: Tensor | None = None,  # [M] bool: texts that are negatives only
) -> Contrast:
    """Compute the logit of every positive and both sums over negatives."""
    row, column = log_sum_exp(image, text, scale, *ids_of(pairs, image), function, backend)
    # A text without an image scores NaN here. 0 takes its place before the scale multiplies it: NaN
    # would reach the gradient of the scale.
    positive = scale * of_pairs(paired_scores(image, text, pairs.positive), absent)
    return Contrast(positive, of_image(row, pairs), column)


def mean_cross_entropy(
    image: Tensor,  # [N, D], scored as it is
    text: Tensor,  # [M, D]
    scale: Tensor,  # []
    pairs: Pairs,
    function: str,
    backend: str,
    absent: Tensor | None = None,  # [M] bool: texts that are negatives only
) -> Tensor:  # [M]
    """Return the mean cross-entropy of both directions, one value per pair."""
    positive, *negatives = contrast(image, text, scale, pairs, function, backend, absent)
    from_image, from_text = ([logs] for logs in negatives)
    return of_pairs(cross_entropy(positive, from_image, from_text, 0.5, function, backend), absent)
