"""Hinges whose rows travel around a ring: memory of two blocks, whatever the number of ranks."""

from collections.abc import Callable

import torch
from torch import Tensor

from itm_kernels._policies import rows_at_once
from itm_kernels._positives import Pairs
from itm_kernels.distributed._fetch import fetch_rows
from itm_kernels.distributed._ring import Outputs, blocks, circulate, cut, slice_of
from itm_kernels.distributed._side import Side
from itm_kernels.losses.over_ranks._batch import Batch
from itm_kernels.ops._hardest_negatives import fused_hardest_negatives
from itm_kernels.reference._nan import nan_unless_finite, with_nan_gradient
from itm_kernels.reference._precision import wide

# The values [M] of the pairs of images [N, D] and texts [M, D].
Values = Callable[[Tensor, Tensor, Pairs], Tensor]
_NONE = torch.iinfo(torch.int64).max


def hinges_of_scores(
    positive: Tensor,  # [m]
    hardest_text: Tensor,  # [m], of the pair's image
    hardest_image: Tensor,  # [m]
    margin: float,
    positive_index: Tensor,  # [m]
) -> Tensor:  # [m]
    """Return both hinges of every pair; -inf is the score of an anchor without a negative."""
    text_hinge = (margin + hardest_text - positive).relu()
    image_hinge = (margin + hardest_image - positive).relu()
    loss = text_hinge + image_hinge + nan_unless_finite(positive)
    return with_nan_gradient(loss, positive_index)


def values_of_hardest_around(
    image: Tensor,  # [n, D]
    text: Tensor,  # [m, D]
    batch: Batch,
    margin: float,
    backend: str,
) -> Tensor:  # [m]
    """Return the hinges from the hardest negatives.

    Mining goes round once, without gradient. Then only the rows of positives and of hardest
    negatives travel, three per pair, and their gradients back.
    """
    positive_index = batch.pairs.positive
    assert positive_index is not None
    text_score, text_index, *of_images = _mined(image.detach(), text.detach(), batch, backend)
    paired = positive_index.clamp_min(0)
    mined = text_score[paired], text_index[paired], *of_images
    # As many parts on every rank, since rows are exchanged for each.
    most = max(batch.text.counts)
    at_once = rows_at_once(text, most)
    parts = [slice(first, first + at_once) for first in range(0, most, at_once)]
    values = [
        _values_of_mined(
            margin,
            batch,
            image,
            text,
            text[part],
            positive_index[part],
            *(of_pairs[part] for of_pairs in mined),
        )
        for part in parts
    ]
    return torch.cat(values)


def _values_of_mined(
    margin: float,
    batch: Batch,
    image: Tensor,  # [n, D]
    text: Tensor,  # [m, D]
    of_pairs: Tensor,  # [p, D], the texts of pairs
    positive_index: Tensor,  # [p]
    text_score: Tensor,  # [p], of the hardest text of the pair's image
    text_index: Tensor,  # [p]
    image_score: Tensor,  # [p]
    image_index: Tensor,  # [p]
) -> Tensor:  # [p]
    """Return the hinges of pairs, from the rows of their positives and hardest negatives."""
    of_pairs = wide(of_pairs)

    def scores(side: Side, rows: Tensor, index: Tensor, others: Tensor) -> Tensor:
        return (wide(fetch_rows(rows, index.clamp_min(0), side)) * others).sum(1)

    own = wide(fetch_rows(image, positive_index.clamp_min(0), batch.image))
    positive = (own * of_pairs).sum(1).masked_fill(positive_index < 0, torch.nan)
    of_text, of_image = (
        # A NaN of any negative is that of the maximum.
        torch.where(index < 0, -torch.inf, score).masked_fill(mined.isnan(), torch.nan)
        for score, index, mined in (
            (scores(batch.text, text, text_index, own), text_index, text_score),
            (scores(batch.image, image, image_index, of_pairs), image_index, image_score),
        )
    )
    return hinges_of_scores(positive, of_text, of_image, margin, positive_index)


@torch.no_grad()
def _mined(
    image: Tensor, text: Tensor, batch: Batch, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scores and indices of the hardest text of every image and of images of own texts."""
    positive, image_ids, text_ids = batch.pairs
    assert positive is not None and image_ids is not None
    m, N = text.shape[0], batch.image.total
    score = wide(text.new_full((N,), -torch.inf))
    index = torch.full_like(score, -1, dtype=torch.int64)
    image_score = wide(text.new_full((m,), -torch.inf))
    image_index = torch.full_like(image_score, -1, dtype=torch.int64)
    for rank, block in blocks(image, batch.image):
        for own, part in cut(block, slice_of(batch.image, rank)):
            if not part.shape[0] or not m:
                continue
            outside = (positive < own.start) | (positive >= own.stop)
            local = (positive - own.start).masked_fill(outside, -1)
            pairs = Pairs(local, image_ids[own], text_ids)
            found = fused_hardest_negatives(part, text, pairs, backend)
            score[own] = found.text_score
            index[own] = torch.where(found.text_index < 0, -1, found.text_index + batch.text.first)
            at = torch.where(found.image_index < 0, -1, found.image_index + own.start)
            # Of equal scores the lowest index; NaN exceeds all.
            equal = (found.image_score == image_score) & (at >= 0)
            first = equal & ((at < image_index) | (image_index < 0))
            higher = (found.image_score > image_score) | found.image_score.isnan() | first
            image_score = torch.where(higher, found.image_score, image_score)
            image_index = torch.where(higher, at, image_index)
    side = batch.text
    most = side.all_reduce(score, "MAX")
    candidate = index.masked_fill((score != most) | (index < 0), _NONE)
    lowest = side.all_reduce(candidate, "MIN")
    lost = side.all_reduce(score.isnan().int(), "MAX").bool()  # a maximum may lose a NaN
    return (
        most.masked_fill(lost, torch.nan),
        lowest.masked_fill(lowest == _NONE, -1),
        *(
            image_score,
            image_index,
        ),
    )


def values_by_differences_around(
    of_block: Values,
    image: Tensor,  # [n, D]
    text: Tensor,  # [m, D]
    batch: Batch,
    additive: bool,  # terms of parts of the batch add up; otherwise the highest counts
) -> Tensor:  # [m]
    """Return the values as `_hinges` explains, for one block of the batch after another.

    L(P, T and B) of a block B of texts holds the term of images over T and B, and L(P and B, T) of
    a block of images that of texts over P and B. As maxima over blocks they give the terms over the
    whole batch. Of sums, L(P, T) is subtracted from each; L(P and P, T) tells its two terms apart.
    """
    positive, image_ids, text_ids = batch.pairs
    assert positive is not None and image_ids is not None and text_ids is not None
    m = text.shape[0]
    rows = positive.clamp_min(0)
    paired, paired_ids = fetch_rows(image, rows, batch.image), image_ids[rows]
    own = torch.arange(m, device=text.device).masked_fill(positive < 0, -1)

    def outputs(values: Tensor, both: Tensor) -> Outputs:
        return Outputs((), (values - both,)) if additive else Outputs((), (), (values,))

    def of(more: Tensor, more_ids: Tensor, paired: Tensor, text: Tensor) -> Tensor:
        """Return L(P and more images, T)."""
        if not m:
            return wide(text.new_empty(0))
        pairs = Pairs(own, torch.cat([paired_ids, more_ids]), text_ids)
        return of_block(torch.cat([paired, more]), text, pairs)

    def of_texts(
        block: Tensor, given: slice, paired: Tensor, text: Tensor, both: Tensor
    ) -> Outputs:
        inside = batch.text.own
        if not m or inside.start <= given.start < inside.stop:  # of T itself
            return outputs(both, both)
        nobody = own.new_full((block.shape[0],), -1)
        ids = torch.cat([text_ids, batch.all_text_ids[given]])
        pairs = Pairs(torch.cat([own, nobody]), paired_ids, ids)
        return outputs(of_block(paired, torch.cat([text, block]), pairs)[:m], both)

    def of_images(
        block: Tensor, given: slice, paired: Tensor, text: Tensor, both: Tensor
    ) -> Outputs:
        return outputs(of(block, image_ids[given], paired, text), both)

    both = of(paired[:0], paired_ids[:0], paired, text)
    kept = paired, text, both
    a = circulate(of_texts, batch.text, text, *kept)
    b = circulate(of_images, batch.image, image, *kept)
    over_texts, over_images = ((merged.sums or merged.maxima)[0] for merged in (a, b))
    if not additive:
        return over_texts + over_images - both
    return over_texts + over_images + 2 * both - of(paired, paired_ids, paired, text)
