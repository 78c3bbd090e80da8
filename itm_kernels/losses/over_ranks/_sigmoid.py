"""Sigmoid loss over the ranks of a process group."""

from typing import Any

from torch import Tensor

from itm_kernels import _checks
from itm_kernels._options import Unmatched
from itm_kernels._positives import Pairs
from itm_kernels.distributed._agreement import Agreement
from itm_kernels.distributed._collectives import attached, gather_rows
from itm_kernels.distributed._ring import Outputs, circulate
from itm_kernels.distributed._side import local_index
from itm_kernels.losses._logit_scale import checked_scale
from itm_kernels.losses._module import check_options
from itm_kernels.losses._reduction import nan_where_mistaken
from itm_kernels.losses.over_ranks._batch import Batch, find_pairs, reduce_over_ranks
from itm_kernels.ops._log_sum_exp import as_scalar
from itm_kernels.ops._sigmoid import fused_sigmoid


def sigmoid_over_ranks(
    image: Tensor,  # [n, D]
    text: Tensor,  # [m, D]
    scales: tuple[Any, Any, Any, float],  # logit_scale, temperature, max_scale and the default
    logit_bias: float | Tensor,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    unmatched: Unmatched,
    reduction: str,
    backend: str,
    agreement: Agreement,
) -> Tensor:
    """Compute `sigmoid_loss` of the global batch: a text's value needs no other rank's texts."""
    with agreement:
        image, text = _checks.rows_of_a_rank(image=image, text=text)
        _checks.scalar("logit_bias", logit_bias)
        check_options(reduction, backend)
        scale = checked_scale(image, *scales)
        _checks.id_pair(("image_ids", "text_ids"), (image_ids, text_ids), (image, text))
        agreement.describe(
            "sigmoid_loss",
            {"image": image, "text": text},
            {"image_ids": image_ids, "text_ids": text_ids},
            logit_scale=scale,
            max_scale=scales[2],
            logit_bias=logit_bias,
            unmatched=unmatched,
            reduction=reduction,
        )
    batch = find_pairs(agreement, image, text, image_ids, text_ids, unmatched)
    scale, bias = as_scalar(scale, image), as_scalar(logit_bias, image)
    image, text, scale, bias = agreement.entering(image, text, scale, bias)
    pairs = batch.pairs
    assert pairs.positive is not None and pairs.image_ids is not None
    if batch.absent is not None:
        # N is out of range: such a text has no positive, and its value sums over all images.
        nobody = pairs.positive.masked_fill(batch.absent, batch.image.total)
        pairs = pairs._replace(positive=nobody)
    if batch.ring:
        values = _values_around(image, text, scale, bias, pairs, batch, backend)
    else:
        images = gather_rows(image, batch.image)
        values = _values(images, text, scale, bias, pairs, backend)
    values = nan_where_mistaken(values, batch.mistaken, text.T)
    return reduce_over_ranks(values, reduction, batch.text, batch.number)


def _values(
    images: Tensor, text: Tensor, scale: Tensor, bias: Tensor, pairs: Pairs, backend: str
) -> Tensor:  # [m]
    if text.shape[0] and images.shape[0]:
        return fused_sigmoid(images, text, scale, bias, pairs, backend, cosine=True)
    none = scale.new_zeros(text.shape[0])
    return attached(none, images, text, scale, bias)


def _values_around(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    pairs: Pairs,
    batch: Batch,
    backend: str,
) -> Tensor:  # [m]
    """Return the values; the images of all ranks visit this rank one block after another."""
    positive, image_ids, text_ids = pairs
    assert positive is not None and image_ids is not None

    def of_block(images: Tensor, own: slice, text: Tensor, scale: Tensor, bias: Tensor) -> Outputs:
        here = local_index(positive, own, images.shape[0]).masked_fill(positive < 0, -1)
        of = Pairs(here, image_ids[own], text_ids)
        return Outputs((), (_values(images, text, scale, bias, of, backend),))

    return circulate(of_block, batch.image, image, text, scale, bias).sums[0]
