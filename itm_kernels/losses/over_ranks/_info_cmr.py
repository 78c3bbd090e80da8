"""InfoCMR over the ranks of a process group.

A rank computes the negatives of its own images and texts. All ranks cluster the gathered members of
a side alike, from the same draws. The logits of an image's negatives are then sent to the ranks of
its texts: K + 1 numbers per image.
"""

from typing import Any

import torch
from torch import Tensor

from itm_kernels import _checks
from itm_kernels._options import Unmatched
from itm_kernels.distributed._agreement import Agreement
from itm_kernels.distributed._collectives import gather_rows
from itm_kernels.distributed._generators import like_first_rank
from itm_kernels.distributed._side import Side
from itm_kernels.losses._contrast import (
    Embeddings,
    LogSums,
    cross_entropy,
    gather_image,
    log_sums_of_noise,
    log_sums_of_synthetic,
)
from itm_kernels.losses._info_cmr_by_parts import Negatives, checked_negatives, logits_of
from itm_kernels.losses._logit_scale import checked_scale
from itm_kernels.losses._module import check_options
from itm_kernels.losses._reduction import zero_absent
from itm_kernels.losses.over_ranks._batch import Batch, find_pairs, reduce_over_ranks
from itm_kernels.losses.over_ranks._info_nce import contrast_over_ranks
from itm_kernels.losses.over_ranks._log_sums import gathered
from itm_kernels.ops._log_sum_exp import as_scalar


def info_cmr_over_ranks(
    image: Tensor,  # [n, D]
    text: Tensor,  # [m, D]
    scales: tuple[Any, Any, Any],  # logit_scale, temperature, max_scale
    extra: Negatives,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    unmatched: Unmatched,
    reduction: str,
    backend: str,
    agreement: Agreement,
) -> Tensor:
    """Compute `info_cmr_loss` of the global batch."""
    with agreement:
        image, text = _checks.rows_of_a_rank(image=image, text=text)
        extra = checked_negatives(extra)
        check_options(reduction, backend)
        scale = checked_scale(image, *scales)
        _checks.id_pair(("image_ids", "text_ids"), (image_ids, text_ids), (image, text))
        agreement.describe(
            "info_cmr_loss",
            {"image": image, "text": text},
            {"image_ids": image_ids, "text_ids": text_ids},
            logit_scale=scale,
            max_scale=scales[2],
            **extra.options._asdict(),
            clustering=extra.clustering,
            detach=extra.detach,
            num_noise=extra.num_noise,
            draw=extra.draw,
            generator_on=extra.generator.device.type if extra.generator else image.device.type,
            unmatched=unmatched,
            reduction=reduction,
        )
    batch = find_pairs(agreement, image, text, image_ids, text_ids, unmatched)
    image, text, scale = agreement.entering(image, text, as_scalar(scale, image))
    if extra.draw and (extra.options.num_clusters or extra.num_noise):
        generator = like_first_rank(extra.generator, image.device, batch.text)
        extra = extra._replace(generator=generator)
    values = _values(Embeddings(image, backend), Embeddings(text, backend), scale, batch, extra)
    return reduce_over_ranks(values, reduction, batch.text, batch.number)


def _values(
    image: Embeddings,  # [n, D]
    text: Embeddings,  # [m, D]
    scale: Tensor,  # []
    batch: Batch,
    extra: Negatives,
) -> Tensor:  # [m]
    """Return the loss of this rank's pairs, and 0 for texts without one."""
    options, clustering, detach, num_noise, generator, draw = extra
    pairs, v_ids, c_ids = batch.pairs, batch.pairs.image_ids, batch.all_text_ids
    assert v_ids is not None
    v, c = _with_a_row(image), _with_a_row(text)
    images = gathered(image, batch.image) if options.num_clusters else None
    others: list[tuple[LogSums, LogSums]] = []  # of the rows of v and of c
    if images is not None:
        members = text.raw.detach() if detach else text.raw
        texts = gathered(Embeddings(members, text.backend), batch.text)
        logits = logits_of(v, c, options, clustering, detach, generator, draw)
        cosines = (
            logits(v, _own_ids(v_ids, batch.image), texts, c_ids),
            logits(c, _own_ids(c_ids, batch.text), images, v_ids),
        )
        of_v, of_c = (log_sums_of_synthetic(scale, *found) for found in cosines)
        others.append((of_v, of_c))
    if num_noise and draw:
        of_v, of_c = log_sums_of_noise((v, c), num_noise, generator, scale)
        others.append((of_v, of_c))
    # Last, so that a ring's backward pass comes before all other gradients are held.
    positive, *negatives = contrast_over_ranks(image, text, scale, batch, images)
    from_image, from_text = ([logs] for logs in negatives)
    n, m = image.raw.shape[0], text.raw.shape[0]
    for of_images, of_texts in others:
        everyone = LogSums(*(gather_rows(part[:n], batch.image) for part in of_images))
        from_image.append(gather_image(everyone, pairs))
        from_text.append(LogSums(*(part[:m] for part in of_texts)))
    values = cross_entropy(positive, from_image, from_text, 1.0, image.backend)
    return zero_absent(values, batch.absent)


def _with_a_row(rows: Embeddings) -> Embeddings:
    """Return the rows, or a zero row for none: operators need one, and all ranks draw alike."""
    raw = rows.raw
    if raw.shape[0]:
        return rows
    return Embeddings(torch.cat([raw, raw.new_zeros(1, raw.shape[1])]), rows.backend)


def _own_ids(ids: Tensor, side: Side) -> Tensor:
    """Return the ids of `_with_a_row`."""
    own = ids[side.own]
    return own if own.shape[0] else ids[:1]
