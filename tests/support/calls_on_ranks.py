"""Calls of the loss functions on ranks, each rank with arguments of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from itm_kernels import functional
from itm_kernels.distributed import _side
from loss_cases import batch

Arguments = dict[str, Any]

# The losses of image and text rows that take a process group.
NAMES = [
    name
    for name in functional.__all__
    if {"group", "image", "text"} <= set(signature(getattr(functional, name)).parameters)
]
# Those with one value per pair and without draws.
OF_PAIRS = [name for name in NAMES if name not in ("imc_loss", "info_cmr_loss")]


def takes(name: str, option: str) -> bool:
    """Return whether a loss has an option."""
    return option in signature(getattr(functional, name)).parameters


def rows(dtype: torch.dtype = torch.float64, N: int = 3, D: int = 7) -> Arguments:
    """Return the rows of one rank."""
    image, text = batch(N, D, dtype)
    return {"image": image.detach(), "text": text.detach()}


def ids(image: list[int], text: list[int]) -> Arguments:
    """Return ids as arguments."""
    return {"image_ids": torch.tensor(image), "text_ids": torch.tensor(text)}


def call(group: Any, name: str, arguments: Arguments) -> float:
    """Call a loss with rows that the arguments may replace, and return its value."""
    given = {**rows(), "group": group, **arguments}
    return getattr(functional, name)(**given).sum().item()


def call_each(group: Any, name: str, each: list[Arguments]) -> float:
    """Call a loss with the arguments of this rank."""
    return call(group, name, each[group.rank()])


def call_own_loss(group: Any, names: list[str]) -> float:
    """Call the loss of this rank."""
    return call(group, names[group.rank()], {})


def call_with_gradient(group: Any, name: str, with_gradient: list[bool]) -> float:
    """Call a loss with rows that need a gradient on some ranks only."""
    image = rows()["image"].requires_grad_(with_gradient[group.rank()])
    return call(group, name, {"image": image})


def call_without_this_process(group: Any, name: str) -> float:
    """Call a loss with the group of the first rank only."""
    members = dist.new_group([0])
    return call(None, name, {"group": members})


def _value_and_gradients(name: str, group: Any, given: Arguments, scale: bool) -> list[Tensor]:
    image, text = (given[side].clone().requires_grad_() for side in ("image", "text"))
    inputs, more = [image, text], {}
    if scale:
        more["logit_scale"] = torch.tensor(7.0, dtype=image.dtype, requires_grad=True)
        inputs.append(more["logit_scale"])
    given = {**given, "image": image, "text": text, **more}
    torch.manual_seed(0)  # of draws
    value = getattr(functional, name)(**given, group=group)
    return [value.detach(), *torch.autograd.grad(value.sum(), inputs)]


def one_rank_and_no_group(group: Any, name: str, dtype: torch.dtype, options: Arguments) -> bool:
    """Return whether both give the same bits; a collective raises."""
    scale = "logit_scale" in signature(getattr(functional, name)).parameters
    given = {**rows(dtype, N=5), **options}
    expected = _value_and_gradients(name, None, given, scale)
    with _without_collectives():
        found = _value_and_gradients(name, group, given, scale)
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@contextmanager
def _without_collectives() -> Iterator[None]:
    """A context in which every exchange of `itm_kernels.distributed` raises."""
    names = ("_all_gather", "_reduce_scatter", "dist")
    kept = {name: getattr(_side, name) for name in names}
    try:
        for name in names:
            setattr(_side, name, None)
        yield
    finally:
        for name, value in kept.items():
            setattr(_side, name, value)
