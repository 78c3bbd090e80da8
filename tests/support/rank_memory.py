"""Peak memory of a rank: what a loss and its backward pass add to a process that is warm."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from itm_kernels import losses

Step = Callable[[Any, Tensor, Tensor], Tensor]  # of a group, images and texts


def _plain(build: Callable[..., Any], **options: Any) -> Step:
    def step(group: Any, image: Tensor, text: Tensor) -> Tensor:
        return build(**options, group=group, exchange="ring")(image, text)

    return step


def _with_ids(build: Callable[..., Any], **options: Any) -> Step:
    """Return a step whose texts have their images on other ranks, two texts an image."""

    def step(group: Any, image: Tensor, text: Tensor) -> Tensor:
        n, N = image.shape[0], group.size() * image.shape[0]
        own = torch.arange(n) + group.rank() * n
        criterion = build(**options, group=group, exchange="ring")
        return criterion(image, text, image_ids=own, text_ids=(own * 7 + 3) % N // 2)

    return step


def _constraint(**options: Any) -> Step:
    def step(group: Any, image: Tensor, text: Tensor) -> Tensor:
        criterion = losses.IntraModalConstraint(**options, group=group, exchange="ring")
        return criterion(image) + 0 * text.sum()

    return step


def _views(group: Any, image: Tensor, text: Tensor) -> Tensor:
    """Return the alignment of two views a side, of half the rows."""
    images, texts = (rows.unflatten(0, (2, -1)) for rows in (image, text))
    return losses.MultiViewAlignmentLoss(group=group, exchange="ring")(images, texts)


def _fused(group: Any, image: Tensor, text: Tensor) -> Tensor:
    """Return the loss of two views of half the rows, which are the images."""
    criterion = losses.FusionContrastiveLoss(group=group, exchange="ring")
    return criterion(image.unflatten(0, (2, -1))) + 0 * text.sum()


def _ito(group: Any, image: Tensor, text: Tensor) -> Tensor:
    """Return the loss of one view a side, of half the rows; the texts are two fused views."""
    images, texts = image.unflatten(0, (2, -1)).split(1)
    criterion = losses.ITOLoss(group=group, exchange="ring")
    return criterion(images, texts, text.unflatten(0, (2, -1)))


# Every loss whose rows go round.
STEPS: dict[str, Step] = {
    "sum_of_hinges": _plain(losses.SumOfHingesLoss),
    "sum_of_hinges-ids": _with_ids(losses.SumOfHingesLoss),
    "max_of_hinges": _plain(losses.MaxOfHingesLoss),
    "semihard": _plain(losses.MaxOfHingesLoss, mining="semihard"),
    "info_nce": _plain(losses.InfoNCELoss),
    "sigmoid": _plain(losses.SigmoidLoss),
    "info_cmr": _plain(losses.InfoCMRLoss, num_clusters=0),
    "imc": _plain(losses.IMCLoss),
    "imc-repel-l2": _plain(losses.IMCLoss, mode="repel", metric="l2", lower=0.1, upper=2.0),
    **{
        f"constraint-{mode}-{metric}": _constraint(
            metric=metric, mode=mode, lower=0.1, upper=0.5 if mode == "official" else 100.0
        )
        for mode in ("official", "paper", "repel")
        for metric in ("cosine", "l1", "l2", "sqeuclidean")
        if mode != "official" or metric == "cosine"
    },
    "multi_view": _views,
    "fusion": _fused,
    "ito": _ito,
}


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def peak(group: Any, name: str, rows: int, D: int) -> int:
    """Return the bytes that a step adds at its peak, gradients of the rows included."""
    shared = torch.randn(D, generator=torch.Generator().manual_seed(0))  # cosines are about 0.6
    generator = torch.Generator().manual_seed(1 + group.rank())
    noise = (torch.randn(rows, D, generator=generator) for _ in range(2))
    image, text = (
        torch.nn.functional.normalize(1.2 * shared + own).requires_grad_() for own in noise
    )
    step = STEPS[name]
    step(group, image[:64], text[:64]).backward()  # threads and libraries are loaded
    image.grad = text.grad = None
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _resident("VmRSS")
    step(group, image, text).backward()
    return _resident("VmHWM") - before
