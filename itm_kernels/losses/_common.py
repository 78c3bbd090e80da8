"""What every loss shares: the reduction, the common options, the logit scale."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from itm_kernels import _checks
from itm_kernels.backends import CHOICES

REDUCTIONS = ("none", "sum", "mean")


def check_options(function: str, reduction: object, backend: object) -> None:
    """Check the options that every loss takes."""
    _checks.option(function, "reduction", reduction, REDUCTIONS)
    _checks.option(function, "backend", backend, CHOICES)


def of_pairs(values: Tensor, absent: Tensor | None) -> Tensor:
    """Give texts that are negatives only the value 0, without gradient: they form no pair."""
    return values if absent is None else values.masked_fill(absent, 0)


def reduce(values: Tensor, reduction: str, absent: Tensor | None = None) -> Tensor:
    """Reduce one value per text to the sum, the mean over pairs, or leave it."""
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if absent is None:
        return values.mean()
    return values.sum() / absent.logical_not().sum().clamp_min(1)


class OptionsModule(nn.Module):
    """A Module that is nothing but a loss function with its options held as attributes."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._names = tuple(options)
        for name, value in options.items():
            setattr(self, name, value)

    @property
    def options(self) -> dict[str, Any]:
        """Return the options as the function's keyword arguments."""
        return {name: getattr(self, name) for name in self._names}

    def extra_repr(self) -> str:
        """Show the options."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class LogitScale(nn.Module):
    """A positive scale of logits, fixed or learnt as its logarithm (as CLIP does)."""

    def __init__(self, owner: str, value: float, learnable: bool) -> None:
        super().__init__()
        _checks.number(owner, "logit_scale", value, above=0)
        self.value = float(value)
        self.log = nn.Parameter(torch.tensor(math.log(value))) if learnable else None

    def forward(self) -> float | Tensor:
        """Return the scale, as a tensor with gradient when it is learnt."""
        return self.value if self.log is None else self.log.exp()

    def extra_repr(self) -> str:
        """Show the value that training starts from, or the fixed one."""
        return f"{self.value:g}, learnable={self.log is not None}"
