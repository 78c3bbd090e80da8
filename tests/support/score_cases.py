"""Every loss of a score matrix behind one signature, for the tests that hold for all of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from itm_kernels import losses

# Three images and five texts, one of them without an image.
IDS = {"image_ids": torch.tensor([3, 1, 2]), "text_ids": torch.tensor([2, 1, 9, 3, 1])}


class Scored(NamedTuple):
    """A loss, and how a score matrix and pooled embeddings are put into it."""

    build: Callable[..., nn.Module]
    apply: Callable[..., Tensor]  # module, scores, image, text, ids
    normalises: bool = True  # its scores of embeddings are cosines


def from_scores(module: Any, scores: Tensor, image: Tensor, text: Tensor, **ids: Any) -> Tensor:
    return module.from_scores(scores, **ids)


def with_pooled(module: Any, scores: Tensor, image: Tensor, text: Tensor, **ids: Any) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return module.from_scores(scores, image=image, text=text, generator=generator, **ids)


def with_rows(module: Any, scores: Tensor, image: Tensor, text: Tensor, **ids: Any) -> Tensor:
    return module.from_scores(scores, image, text, **ids)


def imc(reduction: str = "sum", **options: Any) -> nn.Module:
    return losses.IMCLoss(lower=0.02, upper=-0.9, **options)


def info_cmr(**options: Any) -> nn.Module:
    return losses.InfoCMRLoss(num_clusters=2, num_noise=3, **options)


def info_cmr_of_scores(**options: Any) -> nn.Module:
    return losses.InfoCMRLoss(num_clusters=0, num_noise=0, **options)


CASES = {
    "sum_of_hinges": Scored(losses.SumOfHingesLoss, from_scores, False),
    "max_of_hinges": Scored(losses.MaxOfHingesLoss, from_scores, False),
    "imc": Scored(imc, with_rows, False),
    "info_nce": Scored(lambda **o: losses.InfoNCELoss(learnable=True, **o), from_scores),
    "sigmoid": Scored(lambda **o: losses.SigmoidLoss(learnable=True, **o), from_scores),
    "info_cmr": Scored(lambda **o: info_cmr(learnable=True, **o), with_pooled),
    "info_cmr-scores": Scored(info_cmr_of_scores, from_scores),
}


def rows(
    N: int = 3, M: int = 5, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return embeddings of images and texts around one direction."""
    generator = torch.Generator().manual_seed(seed)
    found = 0.5 + torch.randn(N + M, 7, generator=generator, dtype=torch.float64)
    image, text = found.to(dtype).split((N, M))
    return image.clone().requires_grad_(), text.clone().requires_grad_()


def scores_of(image: Tensor, text: Tensor, cosine: bool) -> Tensor:
    return normalize(image) @ normalize(text).T if cosine else image @ text.T
