"""Losses as functions of embeddings only, where a training step passes more arguments."""

from torch import Tensor

from benchmarks.rivals.eager import SCALE
from itm_kernels import losses, mining

_ITM = losses.ITMLoss(sampler=mining.HardNegativeSampler("hardest"))
_ITO = losses.ITOLoss(SCALE, learnable=False)


def itm(image: Tensor, text: Tensor) -> Tensor:
    """Return image-text matching on the hardest negatives; dot products replace a fusion model."""

    def match(i: Tensor, t: Tensor) -> Tensor:
        return (image.index_select(0, i) * text.index_select(0, t)).sum(1)

    return _ITM(image, text, match)


def ito(images: Tensor, texts: Tensor, fused: Tensor) -> Tensor:
    """Return ITO over views `[V, N, D]` and fused vectors."""
    return _ITO(images, texts, fused)
