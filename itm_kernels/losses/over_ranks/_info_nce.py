"""InfoNCE over the ranks of a process group."""

from typing import Any

from torch import Tensor

from itm_kernels import _checks
from itm_kernels._options import Unmatched
from itm_kernels.distributed._agreement import Agreement
from itm_kernels.losses._contrast import Contrast, Embeddings, LogSums, cross_entropy, gather_image
from itm_kernels.losses._logit_scale import checked_scale
from itm_kernels.losses._module import check_options
from itm_kernels.losses._reduction import zero_absent
from itm_kernels.losses.over_ranks._batch import Batch, find_pairs, reduce_over_ranks
from itm_kernels.losses.over_ranks._log_sums import (
    gathered,
    log_sums_around,
    log_sums_of_columns,
    with_all_columns,
)
from itm_kernels.ops._log_sum_exp import as_scalar


def info_nce_over_ranks(
    image: Tensor,  # [n, D]
    text: Tensor,  # [m, D]
    scales: tuple[Any, Any, Any],  # logit_scale, temperature, max_scale
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    unmatched: Unmatched,
    reduction: str,
    backend: str,
    agreement: Agreement,
) -> Tensor:
    """Compute `info_nce_loss` of the global batch."""
    with agreement:
        image, text = _checks.rows_of_a_rank(image=image, text=text)
        check_options(reduction, backend)
        scale = checked_scale(image, *scales)
        _checks.id_pair(("image_ids", "text_ids"), (image_ids, text_ids), (image, text))
        agreement.describe(
            "info_nce_loss",
            {"image": image, "text": text},
            {"image_ids": image_ids, "text_ids": text_ids},
            logit_scale=scale,
            max_scale=scales[2],
            unmatched=unmatched,
            reduction=reduction,
        )
    batch = find_pairs(agreement, image, text, image_ids, text_ids, unmatched)
    image, text, scale = agreement.entering(image, text, as_scalar(scale, image))
    v, c = Embeddings(image, backend), Embeddings(text, backend)
    positive, *negatives = contrast_over_ranks(v, c, scale, batch)
    from_image, from_text = ([logs] for logs in negatives)
    values = cross_entropy(positive, from_image, from_text, 0.5, backend)
    values = zero_absent(values, batch.absent)
    return reduce_over_ranks(values, reduction, batch.text, batch.number)


def contrast_over_ranks(
    image: Embeddings,  # [n, D]
    text: Embeddings,  # [m, D]
    scale: Tensor,  # []
    batch: Batch,
    images: Embeddings | None = None,  # [N, D], if the caller has gathered them
) -> Contrast:
    """Compute what `contrast` does, for this rank's texts in the global batch."""
    positive, image_ids, text_ids = batch.pairs
    assert positive is not None and image_ids is not None and text_ids is not None
    ids = image_ids, text_ids, positive
    if batch.ring and images is None:
        found = log_sums_around(image, text, scale, *ids, batch.image)
    else:
        everyone = gathered(image, batch.image) if images is None else images
        found = log_sums_of_columns(everyone, text, scale, *ids)
    found = with_all_columns(found, batch.text)
    from_image = gather_image(LogSums(found.row, found.row_highest), batch.pairs)
    from_text = LogSums(found.column, found.column_highest)
    return Contrast(zero_absent(found.positive, batch.absent), from_image, from_text)
