"""Disabling autocast around the losses, which choose their own precision."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


# Looked up at import: torch.compile of torch 2.11 cannot trace `is_autocast_available`.
_AVAILABLE = {
    device: torch.amp.is_autocast_available(device)
    for device in ("cpu", "cuda", "hpu", "meta", "mps", "mtia", "xpu")
}


def is_on(tensor: Tensor) -> bool:
    """Return whether autocast is on for the device type of a tensor."""
    device = tensor.device.type
    available = _AVAILABLE.get(device)
    if available is None:
        available = torch.amp.is_autocast_available(device)
    # is_autocast_enabled raises for devices without autocast, such as meta.
    return available and torch.is_autocast_enabled(device)


def outside_autocast(
    function: Callable[Concatenate[Tensor, P], R],
) -> Callable[Concatenate[Tensor, P], R]:
    """Decorate a function to run without autocast on the device type of its first argument."""

    @wraps(function)
    def run(tensor: Tensor, *args: P.args, **kwargs: P.kwargs) -> R:
        if not is_on(tensor):
            return function(tensor, *args, **kwargs)
        with torch.autocast(tensor.device.type, enabled=False):
            return function(tensor, *args, **kwargs)

    return cast(Callable[Concatenate[Tensor, P], R], run)
