"""The softmax over a batch that the contrastive losses share, in both directions."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from itm_kernels._pairs import Pairs
from itm_kernels.losses._common import of_pairs
from itm_kernels.ops.cross_entropy import run as run_cross_entropy
from itm_kernels.ops.log_sum_exp import run as log_sum_exp


class Logs(NamedTuple):
    """Logs of sums over negatives, in two numbers: their sum has lost the digits of a loss."""

    relative: Tensor  # [M] or [M, K]
    highest: Tensor  # of the same shape, without gradient


class Contrast(NamedTuple):
    """Per pair: the logit of the positive, and the log of the negatives' sum on both sides.

    The positive is an entry of the scores that were summed: equal rows have equal logits.
    """

    positive: Tensor  # [M]
    from_image: Logs  # [M] of the sum over texts with another id
    from_text: Logs  # [M] of the sum over images with another id


def cross_entropy(
    positive: Tensor,  # [M]
    from_image: Sequence[Logs],  # of sums over negatives of the image
    from_text: Sequence[Logs],  # as many of the text
    weight: float,
    function: str,
    backend: str,
) -> Tensor:  # [M]
    """Return -log softmax of the positive, the two directions added, times a weight."""
    negatives, highest = (
        torch.cat([one[None] if one.dim() == 1 else one.T for one in of_all]).unflatten(0, (2, -1))
        for of_all in zip(*from_image, *from_text, strict=True)
    )
    return run_cross_entropy(positive, negatives, highest, weight, function, backend)


def ids_of(pairs: Pairs, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ids of both sides; the pairs of a diagonal are numbered."""
    if pairs.image_ids is None or pairs.text_ids is None:
        own = torch.arange(image.shape[0], device=image.device)
        return own, own
    return pairs.image_ids, pairs.text_ids


def of_image(logs: Logs, pairs: Pairs) -> Logs:
    """Take, for every pair `[M, ...]`, what belongs to its image from `[N, ...]`."""
    if pairs.positive is None:
        return logs
    rows = pairs.positive.clamp_min(0)
    return Logs(*(values[rows] for values in logs))


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
    ids = ids_of(pairs, image)
    own = ids[1] if pairs.positive is None else pairs.positive  # a diagonal's numbers are its rows
    found = log_sum_exp(image, text, scale, *ids, function, backend, own)
    # A text without an image has NaN here: 0 in its place keeps NaN out of every gradient.
    positive = of_pairs(found.positive, absent)
    from_image = of_image(Logs(found.row, found.row_highest), pairs)
    return Contrast(positive, from_image, Logs(found.column, found.column_highest))


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
