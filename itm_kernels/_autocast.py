"""Losses keep their precision inside an autocast region."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def is_on(tensor: Tensor) -> bool:
    """Return whether autocast is on for the device type of a tensor."""
    device = tensor.device.type
    # Devices without autocast, meta among them, refuse to be asked whether it is on.
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def outside_autocast(
    function: Callable[Concatenate[Tensor, P], R],
) -> Callable[Concatenate[Tensor, P], R]:
    """Run a function of tensors with autocast off, on the device type of the first one."""

    @wraps(function)
    def run(tensor: Tensor, *args: P.args, **kwargs: P.kwargs) -> R:
        if not is_on(tensor):
            return function(tensor, *args, **kwargs)
        with torch.autocast(tensor.device.type, enabled=False):
            return function(tensor, *args, **kwargs)

    return cast(Callable[Concatenate[Tensor, P], R], run)
