"""Losses with random draws over ranks: what every rank runs."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from itm_kernels.distributed import fetch
from itm_kernels.functional import itm_loss
from itm_kernels.losses import InfoCMRLoss, ITMLoss
from itm_kernels.mining import HardNegatives
from spread_losses import Spread, inputs


def part(group: Any, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Return this rank's rows of a tensor; all of them without a group."""
    return rows if group is None else rows.split(counts)[group.rank()]


def info_cmr(group: Any, spread: Spread, seeds: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the loss with one seed per rank, and the next number of the rank's generator."""
    rank = 0 if group is None else group.rank()
    image, text, _ = inputs(spread)
    image, text = (part(group, x, spread.images) for x in (image, text))
    torch.manual_seed(seeds[rank])
    criterion = InfoCMRLoss(num_clusters=3, num_noise=4, group=group)
    return criterion(image, text), torch.rand(())


class Matching(NamedTuple):
    """A batch of image-text matching over ranks."""

    image: Tensor  # [N, D]
    text: Tensor  # [M, D]
    image_ids: Tensor
    text_ids: Tensor
    images: tuple[int, ...]  # rows of every rank
    texts: tuple[int, ...]
    negatives: HardNegatives | None = None


def mined(group: Any, batch: Matching, sampler: Any) -> tuple[Tensor, HardNegatives]:
    """Return the loss of a rank, and the negatives that its match function was called with."""
    image, image_ids = (part(group, x, batch.images) for x in (batch.image, batch.image_ids))
    text, text_ids = (part(group, x, batch.texts) for x in (batch.text, batch.text_ids))
    given = batch.negatives
    if given is not None:
        sides = zip(given, (batch.images, batch.texts), strict=True)
        given = HardNegatives(*(part(group, index, counts) for index, counts in sides))
    called: list[HardNegatives] = []

    def match(i: Tensor, t: Tensor) -> Tensor:
        n, m = len(image), len(text)
        called.append(HardNegatives(t[m : m + n], i[m + n :]))
        return (fetch(image, i, group=group) * fetch(text, t, group=group)).sum(1)

    torch.manual_seed(0)
    criterion = ITMLoss(sampler=sampler, group=group)
    ids = {"image_ids": image_ids, "text_ids": text_ids}
    return criterion(image, text, match, negatives=given, **ids), called[0]


def labelled(
    group: Any, logits: Tensor, labels: Tensor, exists: Tensor, counts: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Return `itm_loss` with gradients for a trainer that sums them, and the gradient."""
    logits, labels, exists = (part(group, x, counts) for x in (logits, labels, exists))
    logits = logits.clone().requires_grad_()
    loss = itm_loss(logits, labels, exists=exists, group=group, gradients="sum")
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def fetched(
    group: Any, rows: Tensor, counts: tuple[int, ...], indices: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Return the rows that this rank asks for, and the gradient of its own rows."""
    own = part(group, rows, counts).clone().requires_grad_()
    index = torch.cat(indices) if group is None else indices[group.rank()]
    found = fetch(own, index, group=group)
    return found.detach(), torch.autograd.grad(found.square().sum(), own)[0]
