"""Hinge losses of given rows over ranks: what every rank runs."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from itm_kernels import functional


class Rows(NamedTuple):
    """A global batch, and the numbers of images and texts of every rank."""

    image: Tensor
    text: Tensor
    image_ids: Tensor
    text_ids: Tensor
    images: tuple[int, ...]
    texts: tuple[int, ...]


def gradients(
    rows: Rows, name: str, v: slice, c: slice, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the values and the gradients of two slices of the rows, with factors per pair."""
    image, text = rows.image[v].clone().requires_grad_(), rows.text[c].clone().requires_grad_()
    ids = {"image_ids": rows.image_ids[v], "text_ids": rows.text_ids[c]}
    values = getattr(functional, name)(image, text, **ids, reduction="none", **options)
    factors = 1.0 + torch.arange(rows.text.shape[0], dtype=values.dtype)[c]
    grads = torch.autograd.grad((factors * values).sum(), [image, text])
    return values.detach(), *grads


def on_rank(group: Any, rows: Rows, name: str, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return those of a rank."""
    v, c = (
        slice(sum(counts[: group.rank()]), sum(counts[: group.rank() + 1]))
        for counts in (rows.images, rows.texts)
    )
    return gradients(rows, name, v, c, group=group, gradients="sum", **options)
