"""Losses with random draws over ranks: what every rank runs."""

from typing import Any

import torch
from torch import Tensor

from itm_kernels.losses import InfoCMRLoss
from spread_losses import Spread, inputs


def info_cmr(group: Any, spread: Spread, seeds: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the loss with one seed per rank, and the next number of the rank's generator."""
    rank = 0 if group is None else group.rank()
    image, text, _ = inputs(spread)
    if group is not None:
        first = sum(spread.images[:rank])
        image, text = (x[first : first + spread.images[rank]] for x in (image, text))
    torch.manual_seed(seeds[rank])
    criterion = InfoCMRLoss(num_clusters=3, num_noise=4, group=group)
    return criterion(image, text), torch.rand(())
