"""Hinges whose rows travel around a ring: memory of two blocks, whatever the number of ranks."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from itm_kernels._policies import rows_at_once
from itm_kernels._positives import Pairs
from itm_kernels.distributed._fetch import fetch_rows
from itm_kernels.distributed._ring import Outputs, blocks, circulate, parts_of
from itm_kernels.distributed._side import Side, local_index
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
        for own, part in parts_of(block, batch.image.slice_of(rank)):
            if not part.shape[0] or not m:
                continue
            pairs = Pairs(local_index(positive, own, -1), image_ids[own], text_ids)
            found = fused_hardest_negatives(part, text, pairs, backend)
            score[own] = found.text_score
            index[own] = torch.where(found.text_index < 0, -1, found.text_index + batch.text.first)
            at = torch.where(found.image_index < 0, -1, found.image_index + own.start)
            # Among equal scores the lowest index is kept; NaN exceeds all scores.
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
    a block of images that of texts over P and B. Minus L(P, T), they give the sums over B. Maxima
    over all blocks are those over the whole batch, plus the other term of L(P, T). On CPUs the
    pairs (P, T) are as few at once as the rows of a block.
    """
    positive, image_ids, text_ids = batch.pairs
    assert positive is not None and image_ids is not None and text_ids is not None
    m = text.shape[0]
    rows = positive.clamp_min(0)
    paired, paired_ids = fetch_rows(image, rows, batch.image), image_ids[rows]
    own = torch.arange(m, device=text.device).masked_fill(positive < 0, -1)
    at_once = rows_at_once(text, m)

    def outputs(values: list[Tensor], both: Tensor) -> Outputs:
        found = torch.cat(values)
        return Outputs((), (found - both,)) if additive else Outputs((), (), (found,))

    def parts() -> Iterator[tuple[slice, Tensor]]:
        """Yield pairs, and the images of their texts among their own."""
        for first in range(0, max(1, m), at_once):
            part = slice(first, first + at_once)
            yield part, torch.where(own[part] < 0, -1, own[part] - first)

    def split(rows: Tensor) -> tuple[Tensor, ...]:
        return rows.split(at_once)  # one gradient, where slices would have one of all rows each

    def value(v: Tensor, c: Tensor, pairs: Pairs) -> Tensor:
        return of_block(v, c, pairs) if m else wide(c.new_empty(0))

    def of_texts(
        block: Tensor, given: slice, paired: Tensor, text: Tensor, both: Tensor
    ) -> Outputs:
        nobody = own.new_full((block.shape[0],), -1)
        values = []
        for (part, index), v, c in zip(parts(), split(paired), split(text), strict=True):
            ids = torch.cat([text_ids[part], batch.all_text_ids[given]])
            pairs = Pairs(torch.cat([index, nobody]), paired_ids[part], ids)
            found = value(v, torch.cat([c, block]), pairs)
            values.append(found[: index.shape[0]])
        return outputs(values, both)

    def of_images(
        block: Tensor, given: slice, paired: Tensor, text: Tensor, both: Tensor
    ) -> Outputs:
        values = []
        for (part, index), v, c in zip(parts(), split(paired), split(text), strict=True):
            pairs = Pairs(index, torch.cat([paired_ids[part], image_ids[given]]), text_ids[part])
            values.append(value(torch.cat([v, block]), c, pairs))
        return outputs(values, both)

    both = torch.cat(
        [
            value(v, c, Pairs(index, paired_ids[part], text_ids[part]))
            for (part, index), v, c in zip(parts(), split(paired), split(text), strict=True)
        ]
    )
    kept = paired, text, both
    a = circulate(of_texts, batch.text, text, *kept)
    b = circulate(of_images, batch.image, image, *kept)
    over_texts, over_images = ((merged.sums or merged.maxima)[0] for merged in (a, b))
    total = over_texts + over_images
    return total if additive else total - both
