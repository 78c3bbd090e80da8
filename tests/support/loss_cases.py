"""Every loss of the package behind one signature, for the tests that hold for all of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from itm_kernels import backends, losses
from itm_kernels.distributed import fetch
from itm_kernels.mining import HardNegativeSampler


class Case(NamedTuple):
    """A Module and how a batch of image and text embeddings is put into it."""

    name: str
    build: Callable[[str], nn.Module]  # backend -> Module
    apply: Callable[..., Tensor]  # module, image, text, ids -> loss
    takes_ids: bool = True

    def loss(
        self, image: Tensor, text: Tensor, backend: str = "reference", **ids: Tensor
    ) -> Tensor:
        """Build the Module and apply it; losses that draw do so from the same seed."""
        torch.manual_seed(0)
        return self.apply(self.build(backend), image, text, **ids)


def plain(module: nn.Module, image: Tensor, text: Tensor, **ids: Tensor) -> Tensor:
    return module(image, text, **ids)


def constraint(module: nn.Module, image: Tensor, text: Tensor, **ids: Tensor) -> Tensor:
    image_ids, text_ids = ids.get("image_ids"), ids.get("text_ids")
    return module(image, ids=image_ids) + module(text, ids=text_ids)


def matching(module: nn.Module, image: Tensor, text: Tensor, **ids: Tensor) -> Tensor:
    def match(i: Tensor, t: Tensor) -> Tensor:
        # Gathered rows, as a fusion model takes them.
        images, texts = fetch(image, i, group=module.group), fetch(text, t, group=module.group)
        return (images * texts).sum(1)

    return module(image, text, match, **ids)


def views(module: nn.Module, image: Tensor, text: Tensor) -> Tensor:
    return module(torch.stack([image, image + text]), torch.stack([text, text - image]))


def fused(module: nn.Module, image: Tensor, text: Tensor) -> Tensor:
    # Half a text: at D = 1 a sum of both may be 0, and the gradient of a row of norm 0 is 1e12
    # times the rounding error, which may be 0 or 2e-16.
    return module(torch.stack([image, text, image + text / 2]))


def ito(module: nn.Module, image: Tensor, text: Tensor) -> Tensor:
    return module(image[None], text[None], torch.stack([image, text]))


def itm(backend: str) -> nn.Module:
    # The hardest: backends draw differently.
    return losses.ITMLoss(sampler=HardNegativeSampler("hardest", backend=backend))


CASES = [
    Case("sum_of_hinges", lambda b: losses.SumOfHingesLoss(backend=b), plain),
    Case("max_of_hinges", lambda b: losses.MaxOfHingesLoss(backend=b), plain),
    Case("semihard", lambda b: losses.MaxOfHingesLoss(mining="semihard", backend=b), plain),
    *(
        Case(
            f"constraint-{mode}-{metric}",
            lambda b, mode=mode, metric=metric: losses.IntraModalConstraint(
                metric, mode=mode, lower=0.1, upper=0.9, thresholds="per_row", backend=b
            ),
            constraint,
        )
        for mode in ("official", "paper", "repel")
        for metric in ("cosine", "l1", "l2", "sqeuclidean")
    ),
    Case("imc", lambda b: losses.IMCLoss(backend=b), plain),
    Case("imc-l1", lambda b: losses.IMCLoss(metric="l1", backend=b), plain),
    Case("info_cmr", lambda b: losses.InfoCMRLoss(num_clusters=3, num_noise=5, backend=b), plain),
    Case(
        "info_cmr-attached",
        lambda b: losses.InfoCMRLoss(
            num_clusters=2,
            num_noise=3,
            sigma=0.5,
            clustering="per_anchor",
            weights="attention",
            detach=False,
            backend=b,
        ),
        plain,
    ),
    Case("info_nce", lambda b: losses.InfoNCELoss(learnable=True, backend=b), plain),
    Case("sigmoid", lambda b: losses.SigmoidLoss(learnable=True, backend=b), plain),
    Case("itm", itm, matching),
    Case("multi_view", lambda b: losses.MultiViewAlignmentLoss(backend=b), views, False),
    Case("fusion", lambda b: losses.FusionContrastiveLoss(backend=b), fused, False),
    Case("ito", lambda b: losses.ITOLoss(backend=b), ito, False),
]
BY_NAME = {case.name: case for case in CASES}


def batch(
    N: int = 5, D: int = 7, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return unit rows, as the encoders of these losses produce them."""
    generator = torch.Generator().manual_seed(seed)
    # The same numbers on every device.
    rows = torch.randn(2, N, D, generator=generator, dtype=torch.float64, device="cpu")
    unit = torch.nn.functional.normalize(rows, dim=-1)
    image, text = unit.to(torch.get_default_device(), dtype)
    return image.clone().requires_grad_(), text.clone().requires_grad_()


def unrelated_rows(N: int = 16, D: int = 512) -> tuple[Tensor, Tensor]:
    """Return unit rows whose cosines are near 0: the default band of IMC selects no pair."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    rows = torch.randn(2, N, D, generator=generator, device="cpu")
    image, text = torch.nn.functional.normalize(rows, dim=-1)
    return image.requires_grad_(), text


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)


def is_the_derivative(function: Callable[..., Any], inputs: Any) -> bool:
    """Compare a gradient with finite differences, in fp64.

    Of every entry; in Triton's interpreter, where calls take a second, along random directions.
    """
    return torch.autograd.gradcheck(function, inputs, fast_mode=backends.INTERPRETED)
