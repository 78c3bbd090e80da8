"""Sum and max of hinges over the ranks of a process group.

`_values_by_differences` needs no operator of its own. For this rank's pairs, a hinge loss is a term
of images, over all texts, plus a term of texts, over all images. With P the images of the pairs and
T their texts, three calls of the operator of one process give

    L(P, all texts) + L(all images, T) - L(P, T),

in which the terms over a part of the batch cancel, whatever function of the scores they are. Two
times this rank's share of the scores is computed. In a ring, `values_of_scores_around` computes one
share, in blocks of scores that are held.
"""

from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from itm_kernels import _checks
from itm_kernels._options import Mining, Unmatched
from itm_kernels._positives import Pairs
from itm_kernels.distributed._agreement import Agreement
from itm_kernels.distributed._collectives import attached, gather_rows, maximum
from itm_kernels.losses._module import check_options
from itm_kernels.losses._reduction import nan_where_mistaken, zero_absent
from itm_kernels.losses.over_ranks._batch import Batch, find_pairs, reduce_over_ranks
from itm_kernels.losses.over_ranks._hinges_around import (
    hinges_of_scores,
    values_of_hardest_around,
    values_of_scores_around,
)
from itm_kernels.ops._hardest_negatives import fused_hardest_negatives
from itm_kernels.ops._max_of_hinges import fused_max_of_hinges
from itm_kernels.ops._sum_of_hinges import fused_sum_of_hinges
from itm_kernels.reference._precision import wide

# The values [M] of the pairs of images [N, D] and texts [M, D].
Values = Callable[[Tensor, Tensor, Pairs], Tensor]


def hinges_over_ranks(
    function: str,
    image: Tensor,  # [n, D]
    text: Tensor,  # [m, D]
    margin: float,
    mining: str | None,  # None: the sum over all negatives
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    unmatched: Unmatched,
    reduction: str,
    backend: str,
    agreement: Agreement,
) -> Tensor:
    """Compute `sum_of_hinges_loss` or `max_of_hinges_loss` of the global batch."""
    with agreement:
        image, text = _checks.rows_of_a_rank(image=image, text=text)
        _checks.number("margin", margin)
        if mining is not None:
            _checks.option("mining", mining, get_args(Mining))
        check_options(reduction, backend)
        _checks.id_pair(("image_ids", "text_ids"), (image_ids, text_ids), (image, text))
        agreement.describe(
            function,
            {"image": image, "text": text},
            {"image_ids": image_ids, "text_ids": text_ids},
            margin=float(margin),
            mining=mining,
            unmatched=unmatched,
            reduction=reduction,
        )
    batch = find_pairs(agreement, image, text, image_ids, text_ids, unmatched)
    image, text = agreement.entering(image, text)
    values = hinge_values(image, text, batch, float(margin), mining, backend)
    values = nan_where_mistaken(zero_absent(values, batch.absent), batch.mistaken, text.T)
    return reduce_over_ranks(values, reduction, batch.text, batch.number)


def hinge_values(
    image: Tensor,  # [n, D]
    text: Tensor,  # [m, D]
    batch: Batch,
    margin: float,
    mining: str | None,
    backend: str,
) -> Tensor:  # [m]
    """Return the hinges of this rank's pairs."""
    if batch.ring and mining == "hardest":
        return values_of_hardest_around(image, text, batch, margin, backend)
    if batch.ring:
        semihard = mining == "semihard"
        return values_of_scores_around(image, text, batch, margin, semihard, backend)
    images = gather_rows(image, batch.image)
    if mining == "hardest":
        return values_of_hardest(images, text, batch, margin, backend)

    def of_block(v: Tensor, c: Tensor, pairs: Pairs) -> Tensor:
        if mining is None:
            return fused_sum_of_hinges(v, c, pairs, margin, backend)
        return fused_max_of_hinges(v, c, pairs, margin, True, backend)

    return _values_by_differences(of_block, images, gather_rows(text, batch.text), text, batch)


def values_of_hardest(
    images: Tensor,  # [N, D]
    text: Tensor,  # [m, D]
    batch: Batch,
    margin: float,
    backend: str,
) -> Tensor:  # [m]
    """Return the hinges from the hardest negatives, for one share of the scores."""
    positive_index = batch.pairs.positive
    assert positive_index is not None
    if not text.shape[0]:
        none = wide(images.new_full((images.shape[0],), -torch.inf))
        return maximum(attached(none, images, text), batch.text)[:0]
    found = fused_hardest_negatives(images, text, batch.pairs, backend)
    hardest_text = maximum(found.text_score, batch.text)[positive_index.clamp_min(0)]
    return hinges_of_scores(found.positive, hardest_text, found.image_score, margin, positive_index)


def _values_by_differences(
    of_block: Values,
    images: Tensor,  # [N, D]
    texts: Tensor,  # [M, D]
    text: Tensor,  # [m, D]
    batch: Batch,
) -> Tensor:  # [m]
    positive, image_ids, text_ids = batch.pairs
    assert positive is not None and image_ids is not None
    if not text.shape[0]:
        return attached(wide(text.new_empty(0)), images, texts, text)
    rows = positive.clamp_min(0)
    paired, paired_ids = images[rows], image_ids[rows]
    own = torch.arange(text.shape[0], device=text.device)
    own = torch.where(positive < 0, -1, own)
    among_all = torch.full_like(batch.all_positive, -1)
    among_all[batch.text.own] = own
    of_images = of_block(paired, texts, Pairs(among_all, paired_ids, batch.all_text_ids))
    of_texts = of_block(images, text, batch.pairs)
    both = of_block(paired, text, Pairs(own, paired_ids, text_ids))
    return of_images[batch.text.own] + of_texts - both
