"""Which rows travel because a rank asks for them: counted from the data of a batch."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from counted_traffic import counting
from itm_kernels import losses
from itm_kernels.distributed import fetch
from itm_kernels.distributed._traffic import Fetched
from itm_kernels.mining import HardNegativeSampler
from spread_losses import Spread, inputs, own_slices


def count(requests: list[Tensor], counts: tuple[int, ...]) -> list[Fetched]:
    """Return for every rank what one fetch sends, from the rows that each rank asks for."""
    ends = torch.tensor(counts).cumsum(0)
    owners = [torch.searchsorted(ends, index, right=True) for index in requests]
    found = []
    for rank, own in enumerate(owners):
        others = [owner for r, owner in enumerate(owners) if r != rank]
        answered = sum(int((owner == rank).sum()) for owner in others)
        found.append(Fetched(int((own != rank).sum()), answered))
    return found


def together(*fetches: list[Fetched]) -> list[Fetched]:
    """Return for every rank what several fetches send."""
    return [
        Fetched(sum(f.asked for f in own), sum(f.answered for f in own), len(own))
        for own in zip(*fetches, strict=True)
    ]


def of_hinges(spread: Spread, hardest: bool) -> list[Fetched]:
    """Return the rows of positives and, if asked for, of the hardest negatives of every pair."""
    image, text, ids = inputs(spread)
    texts = spread.texts or spread.images
    image_ids = ids.get("image_ids", torch.arange(len(image)))
    text_ids = ids.get("text_ids", torch.arange(len(text)))
    same = image_ids[:, None] == text_ids
    positive = same.int().argmax(0)
    negatives = (image.double() @ text.double().T).masked_fill(same, -torch.inf)
    index = [(positive, spread.images)]
    if hardest:
        index.append((negatives.argmax(1)[positive], texts))
        index.append((negatives.argmax(0), spread.images))
    return together(*(count(list(rows.split(texts)), counts) for rows, counts in index))


class Matched(NamedTuple):
    """Bytes that a rank sends for `ITMLoss`, and the rows that its model asks for."""

    forward: float
    backward: float
    images: Tensor
    texts: Tensor


def matched_on_rank(group: Any, spread: Spread) -> Matched:
    """Compute `ITMLoss` with a model that fetches its rows."""
    image, text, ids = inputs(spread)
    v, c = own_slices(spread, group.rank())
    own = {"image_ids": ids["image_ids"][v], "text_ids": ids["text_ids"][c]} if ids else {}
    image, text = image[v].clone().requires_grad_(), text[c].clone().requires_grad_()
    asked: list[Tensor] = []

    def match(i: Tensor, t: Tensor) -> Tensor:
        asked.extend((i, t))
        return (fetch(image, i, group=group) * fetch(text, t, group=group)).sum(1)

    criterion = losses.ITMLoss(sampler=HardNegativeSampler("hardest"), group=group)
    with counting(group.size(), group.rank()) as counter:
        loss = criterion(image, text, match, **own)
        forward = counter.take()
        loss.backward()
        return Matched(forward, counter.take(), *asked)
