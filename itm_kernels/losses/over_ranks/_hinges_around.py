"""Hinges whose rows travel around a ring: memory of two blocks, whatever the number of ranks."""

from collections.abc import Callable

import torch
from torch import Tensor

from itm_kernels._policies import rows_at_once, scored_at_once
from itm_kernels._positives import Pairs
from itm_kernels.distributed._collectives import attached, gather_rows, maximum, scatter_rows
from itm_kernels.distributed._fetch import fetch_rows
from itm_kernels.distributed._ring import Outputs, blocks, circulate, parts_of
from itm_kernels.distributed._side import Side, local_index
from itm_kernels.losses.over_ranks._batch import Batch
from itm_kernels.losses.over_ranks._in_blocks import scores_of
from itm_kernels.ops._hardest_negatives import fused_hardest_negatives
from itm_kernels.reference._nan import nan_unless_finite, with_nan_gradient
from itm_kernels.reference._precision import wide

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


def values_of_scores_around(
    image: Tensor,  # [n, D]
    text: Tensor,  # [m, D]
    batch: Batch,
    margin: float,
    semihard: bool,  # the hardest of the negatives below the positive; otherwise all negatives
    backend: str,
) -> Tensor:  # [m]
    """Return the sums of hinges, or their maxima over semi-hard negatives, for one share of scores.

    The images of all ranks visit this rank's texts. Both kinds of hinges of a block come from its
    scores: those of own texts, and those of all pairs whose image is in the block, over own texts.
    The latter need the positive scores of all pairs, and are combined over ranks.
    """
    positive, image_ids, text_ids = batch.pairs
    assert positive is not None and image_ids is not None and text_ids is not None
    m, M, score = text.shape[0], batch.text.total, scores_of(backend)
    at_once = scored_at_once(text)
    excluded = -torch.inf if semihard else 0.0
    in_block = _pairs_by_image(batch)
    text = wide(text)
    s_positive = _positive_scores(image, text, batch, backend, at_once)
    bounds = s_positive.detach() if semihard else s_positive
    all_positive = gather_rows(bounds, batch.text)

    def term(scores: Tensor, same: Tensor, s_positive: Tensor, dim: int) -> Tensor:
        """Reduce scores over negatives along an axis; `s_positive` broadcasts to them."""
        if semihard:
            off = same | (scores >= s_positive)
            return scores.masked_fill(off, -torch.inf).max(dim).values
        return (margin + scores - s_positive).relu().masked_fill(same, 0).sum(dim)

    def of_block(
        block: Tensor, given: slice, text: Tensor, s_positive: Tensor, all_positive: Tensor
    ) -> Outputs:
        of_texts, of_pairs = (text.new_full((size,), excluded) for size in (m, M))
        if m and block.shape[0]:
            scores = score(wide(block), text, "dot")
            same = image_ids[given, None] == text_ids
            of_texts = term(scores, same, s_positive, 0)
            pairs = in_block(given)
            rows = slice(None) if batch.diagonal else batch.all_positive[pairs] - given.start
            among_texts = term(scores[rows], same[rows], all_positive[pairs, None], 1)
            of_pairs = of_pairs.index_copy(0, pairs, among_texts)
        both = of_texts, of_pairs
        return Outputs((), (), both) if semihard else Outputs((), both)

    kept = text, bounds, all_positive
    merged = circulate(of_block, batch.image, image, *kept, at_once=at_once)
    if semihard:
        of_texts, of_pairs = merged.maxima
        hardest_text = maximum(of_pairs, batch.text)[batch.text.own]
        return hinges_of_scores(s_positive, hardest_text, of_texts, margin, positive)
    of_texts, of_pairs = merged.sums
    loss = scatter_rows(of_pairs, batch.text) + of_texts
    return with_nan_gradient(loss + nan_unless_finite(s_positive), positive)


def _positive_scores(
    image: Tensor,  # [n, D]
    text: Tensor,  # [m, D], in fp32 or better
    batch: Batch,
    backend: str,
    at_once: int,
) -> Tensor:  # [m]
    """Return the score of every text of this rank with its image, NaN if it has none.

    Products of blocks compute it like all other scores, so that scores of equal rows are equal.
    """
    positive, score = batch.pairs.positive, scores_of(backend)
    assert positive is not None
    if not batch.diagonal:
        image = fetch_rows(image, positive.clamp_min(0), batch.image)
    if not text.shape[0]:
        return attached(text.new_empty(0), image, text)
    blocks = zip(wide(image).split(at_once), text.split(at_once), strict=True)
    scores = torch.cat([score(v, c, "dot").diagonal() for v, c in blocks])
    return scores.masked_fill(positive < 0, torch.nan)


def _pairs_by_image(batch: Batch) -> Callable[[slice], Tensor]:
    """Return a function that lists the pairs of the global batch whose images are in a block.

    With ids, the numbers of pairs per image are read on the host, once per call.
    """
    if batch.diagonal:
        return batch.all_positive.__getitem__
    ordered, order = batch.all_positive.sort(stable=True)
    images = torch.arange(batch.image.total + 1, device=order.device)
    first = torch.searchsorted(ordered, images).tolist()
    return lambda block: order[first[block.start] : first[block.stop]]
