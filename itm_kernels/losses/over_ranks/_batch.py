"""The pairs of a global batch, as a rank sees them."""

from typing import NamedTuple

import torch
from torch import Tensor

from itm_kernels import _positives
from itm_kernels._policies import goes_round
from itm_kernels._positives import Pairs
from itm_kernels._public import UnnamedValueError
from itm_kernels.distributed._agreement import Agreement
from itm_kernels.distributed._collectives import total
from itm_kernels.distributed._side import Side


class Batch(NamedTuple):
    """Sides and pairs of a global batch of N images and M texts; this rank holds n and m of them.

    Without ids, indices in the global batch serve as ids.
    """

    image: Side
    text: Side
    pairs: Pairs  # positive [m], image_ids [N], text_ids [m]
    absent: Tensor | None  # [m] bool: texts that are only negatives
    mistaken: Tensor | None  # [m] bool: texts with invalid ids that could not be read
    number: int | Tensor  # of pairs
    all_text_ids: Tensor  # [M]
    all_positive: Tensor  # [M]
    ring: bool  # whether rows travel around a ring, instead of being gathered
    diagonal: bool = False  # whether pairs are the rows of the same index, on the same rank


def find_pairs(
    agreement: Agreement,
    image: Tensor,  # [n, D]
    text: Tensor,  # [m, D]
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    unmatched: str = "error",
) -> Batch:
    """Find the positive image of every text of the global batch.

    Every rank matches all ids, so that all ranks raise the same error.

    Raises:
        ValueError: as `_positives.match`; or without ids, a rank's images and texts differ in rows.
    """
    v, c = agreement.sides["image"], agreement.sides["text"]
    device, ring = image.device, goes_round(agreement.exchange, v.total, image)
    if image_ids is None or text_ids is None:
        for rank, (n, m) in enumerate(zip(v.counts, c.counts, strict=True)):
            if n != m:
                raise UnnamedValueError(
                    f"rank {rank} has {n} images and {m} texts; without ids they are pairs: pass "
                    "image_ids and text_ids on all ranks for unequal numbers"
                )
        everyone = torch.arange(v.total, device=device)
        own = everyone[c.own]
        pairs = Pairs(own, everyone, own)
        return Batch(v, c, pairs, None, None, c.total, everyone, everyone, ring, True)
    ids = [side.gather(t.to(device, torch.int64)) for side, t in ((v, image_ids), (c, text_ids))]
    images, texts = (image.new_empty(()).expand(side.total, 1) for side in (v, c))  # for shapes
    found = _positives.match(images, texts, ids[0], ids[1], unmatched)
    positive = found.pairs.positive
    assert positive is not None
    number: int | Tensor = c.total
    if found.absent is not None:
        number = found.absent.logical_not().sum().clamp_min(1)
    absent, mistaken = (
        None if mask is None else mask[c.own] for mask in (found.absent, found.mistaken)
    )
    pairs = Pairs(positive[c.own], ids[0], ids[1][c.own])
    return Batch(v, c, pairs, absent, mistaken, number, ids[1], positive, ring)


def reduce_over_ranks(values: Tensor, reduction: str, side: Side, number: int | Tensor) -> Tensor:
    """Reduce one value per own row to the sum or mean of the global batch.

    The result has the same bits on every rank; "none" returns the values.
    """
    if reduction == "none":
        return values
    found = total(values.sum(), side)
    return found if reduction == "sum" else found / number
