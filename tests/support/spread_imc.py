"""IMC over ranks: what a rank runs."""

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from itm_kernels import functional
from itm_kernels.losses import _band


class Found(NamedTuple):
    """Loss and gradients of a rank."""

    value: Tensor
    image: Tensor
    text: Tensor
    warnings: list[str]


def imc_on_rank(
    group: Any,
    rows: tuple[Tensor, Tensor],  # [N, D], [M, D]
    ids: tuple[Tensor, Tensor],  # [N], [M]
    counts: tuple[tuple[int, ...], tuple[int, ...]],  # of images and texts on every rank
    options: dict[str, Any],
) -> Found:
    """Compute IMC of this rank's rows; without a group, of all rows."""
    own = [slice(None)] * 2
    if group is not None:
        r = group.rank()
        own = [slice(sum(c[:r]), sum(c[: r + 1])) for c in counts]
        options = {**options, "group": group, "gradients": "sum"}
    image, text = (x[o].clone().requires_grad_() for x, o in zip(rows, own, strict=True))
    image_ids, text_ids = (i[o] for i, o in zip(ids, own, strict=True))
    _band._warned.clear()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        given = {"image_ids": image_ids, "text_ids": text_ids, **options}
        value = functional.imc_loss(image, text, **given)
    value.backward()
    grads = (x.grad if x.grad is not None else torch.zeros_like(x) for x in (image, text))
    return Found(value.detach(), *grads, [str(w.message) for w in told])
