"""IMC over the ranks of a process group: max of hinges plus the constraint of both modalities.

The rows of both sides are gathered once, for all terms. With the ring, only those of official
distances are gathered.
"""

from typing import Any

from torch import Tensor

from itm_kernels import _checks
from itm_kernels._options import Metric, Mode, Thresholds, Unmatched
from itm_kernels.distributed._agreement import Agreement
from itm_kernels.distributed._collectives import gather_rows, total
from itm_kernels.losses._band import check_constraint, default_reduction
from itm_kernels.losses._module import check_options
from itm_kernels.losses._reduction import nan_where_mistaken, zero_absent
from itm_kernels.losses.over_ranks._batch import find_pairs
from itm_kernels.losses.over_ranks._hinges import values_of_hardest
from itm_kernels.losses.over_ranks._hinges_around import values_of_hardest_around
from itm_kernels.losses.over_ranks._intra_modal import (
    constraint_values,
    gathers,
    warn_of_empty_bands,
)


def imc_over_ranks(
    image: Tensor,  # [n, D]
    text: Tensor,  # [m, D]
    margin: float,
    metric: Metric,
    lower: float,
    upper: float,
    weight: float,
    mode: Mode,
    thresholds: Thresholds,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    unmatched: Unmatched,
    backend: str,
    agreement: Agreement,
) -> Tensor:
    """Compute `imc_loss` of the global batch."""
    with agreement:
        image, text = _checks.rows_of_a_rank(image=image, text=text)
        _checks.number("margin", margin)
        check_constraint(metric, lower, upper, weight, mode, thresholds)
        check_options("sum", backend)
        _checks.id_pair(("image_ids", "text_ids"), (image_ids, text_ids), (image, text))
        bounds: dict[str, Any] = {"metric": metric, "mode": mode, "lower": lower, "upper": upper}
        agreement.describe(
            "imc_loss",
            {"image": image, "text": text},
            {"image_ids": image_ids, "text_ids": text_ids},
            **{**bounds, "lower": float(lower), "upper": float(upper)},
            margin=float(margin),
            weight=float(weight),
            thresholds=thresholds,
            unmatched=unmatched,
        )
    batch = find_pairs(agreement, image, text, image_ids, text_ids, unmatched)
    image, text = agreement.entering(image, text)
    images, texts = image, text
    if gathers(metric, mode, batch.ring):
        images, texts = gather_rows(image, batch.image), gather_rows(text, batch.text)
    per_row = thresholds == "per_row"
    options = metric, mode, float(lower), float(upper), per_row, backend, batch.ring
    image_side, text_side, all_image_ids = batch.image, batch.text, batch.pairs.image_ids
    assert all_image_ids is not None
    of_images = constraint_values(images, all_image_ids, image_side, *options)
    of_texts = constraint_values(texts, batch.all_text_ids, text_side, *options)
    sides = {"image": (of_images, image_side), "text": (of_texts, text_side)}
    # After the constraints, so that the backward pass first frees the negatives that hinges hold.
    if batch.ring:
        hinges = values_of_hardest_around(image, text, batch, float(margin), backend)
    else:
        hinges = values_of_hardest(images, text, batch, float(margin), backend)
    hinges = nan_where_mistaken(zero_absent(hinges, batch.absent), batch.mistaken, text.T)
    warn_of_empty_bands("imc_loss", sides, weight, **bounds)
    loss = hinges.sum()
    for values, side in sides.values():
        number = side.total if default_reduction(mode) == "mean" else 1
        loss = loss + float(weight) / number * values.sum()
    return total(loss, text_side)
