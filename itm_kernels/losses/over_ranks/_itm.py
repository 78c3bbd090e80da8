"""Image-text matching over the ranks of a process group.

A rank mines the negatives of its own images and texts, among gathered embeddings without gradient.
The caller's model classifies them with rows that it fetches; sums and counts are exchanged.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from itm_kernels import _checks
from itm_kernels._public import UnnamedTypeError
from itm_kernels.distributed._agreement import Agreement
from itm_kernels.distributed._generators import of_this_rank
from itm_kernels.distributed._side import Side
from itm_kernels.losses._matching import (
    check_match,
    check_matching_options,
    checked_labels,
    checked_negatives,
    cross_entropy_of_labels,
    labels_of_pairs,
    match_pairs,
)
from itm_kernels.losses.over_ranks._batch import Batch, find_pairs, reduce_over_ranks
from itm_kernels.mining import HardNegatives, HardNegativeSampler


def labels_over_ranks(
    logits: Tensor,  # [p], [p, 1] or [p, 2]
    labels: Tensor,  # [p]
    exists: Tensor | None,  # [p]
    reduction: str,
    label_smoothing: float,
    agreement: Agreement,
) -> Tensor:
    """Compute `itm_loss` of the pairs of all ranks."""
    with agreement:
        check_matching_options(reduction, label_smoothing)
        logits, labels, exists = checked_labels(logits, labels, exists, least=0)
        agreement.describe(
            "itm_loss",
            {"logits": logits[:, None] if logits.dim() == 1 else logits},
            reduction=reduction,
            label_smoothing=float(label_smoothing),
        )
    (logits,) = agreement.entering(logits)
    return _cross_entropy(
        (logits, labels, exists), reduction, label_smoothing, agreement.sides["logits"]
    )


def itm_over_ranks(
    image: Tensor,  # [n, D]
    text: Tensor,  # [m, D]
    match: Callable[[Tensor, Tensor], Tensor],
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    negatives: HardNegatives | None,
    generator: torch.Generator | None,
    sampler: HardNegativeSampler,
    reduction: str,
    label_smoothing: float,
    agreement: Agreement,
) -> Tensor:
    """Compute `ITMLoss` of the global batch."""
    with agreement:
        check_match(match)
        image, text = _checks.rows_of_a_rank(image=image, text=text)
        _checks.id_pair(("image_ids", "text_ids"), (image_ids, text_ids), (image, text))
        _checks.generator(generator)
        check_matching_options(reduction, label_smoothing)
        if negatives is not None:
            negatives = checked_negatives(negatives, image, text)
        elif not isinstance(sampler, HardNegativeSampler):
            raise UnnamedTypeError(
                "with a group, sampler must be a mining.HardNegativeSampler, got "
                f"{_checks.describe(sampler)}; pass its negatives with negatives="
            )
        of_sampler = (
            {}
            if negatives is not None
            else {"strategy": sampler.strategy, "temperature": sampler.temperature}
        )
        agreement.describe(
            "ITMLoss",
            {"image": image, "text": text},
            {"image_ids": image_ids, "text_ids": text_ids},
            negatives="given" if negatives is not None else None,
            **of_sampler,
            reduction=reduction,
            label_smoothing=float(label_smoothing),
        )
    batch = find_pairs(agreement, image, text, image_ids, text_ids)
    v, c, matched = batch.image, batch.text, batch.pairs.positive
    assert matched is not None
    if v.total == c.total == 1:
        negatives = None
    elif negatives is None:
        negatives = _mine(sampler, image.detach(), text.detach(), batch, generator)
    images, texts = (side.indices(image.device) for side in (v, c))
    logits, found = match_pairs(match, images, texts, matched, negatives, least=0)
    (logits,) = agreement.entering(logits)
    inputs = labels_of_pairs(logits, found, text.shape[0])
    return _cross_entropy(inputs, reduction, label_smoothing, c)


def _mine(
    sampler: HardNegativeSampler,
    image: Tensor,  # [n, D]
    text: Tensor,  # [m, D]
    batch: Batch,
    generator: torch.Generator | None,
) -> HardNegatives:
    """Return the negatives of this rank's rows, as indices of the global batch."""
    v_ids, c_ids = batch.pairs.image_ids, batch.all_text_ids
    assert v_ids is not None
    images, texts = batch.image.gather(image), batch.text.gather(text)
    if sampler.strategy != "hardest":
        generator = of_this_rank(generator, image.device, batch.text)
    how = sampler.temperature, generator
    text_index = image_index = c_ids.new_empty(0)
    if image.shape[0]:
        found = sampler.draw(image, texts, v_ids[batch.image.own], c_ids, *how)
        text_index = found.text_index
    if text.shape[0]:
        found = sampler.draw(images, text, v_ids, c_ids[batch.text.own], *how)
        image_index = found.image_index
    return HardNegatives(text_index, image_index)


def _cross_entropy(
    inputs: tuple[Tensor, Tensor, Tensor],  # logits, labels, and which rows exist
    reduction: str,
    label_smoothing: float,
    side: Side,  # any rows of the batch
) -> Tensor:
    values = cross_entropy_of_labels(*inputs, "none", label_smoothing)
    if reduction != "mean":
        return reduce_over_ranks(values, reduction, side, 1)
    number = side.all_reduce(inputs[2].sum()).clamp_min(1)
    return reduce_over_ranks(values, "mean", side, number)
