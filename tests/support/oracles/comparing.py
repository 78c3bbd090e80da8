"""Comparisons of the package's results with those of an oracle or a formula."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def tensor(values: object, requires_grad: bool = False) -> Tensor:
    """Builds an fp64 tensor."""
    return torch.tensor(values, dtype=torch.float64, requires_grad=requires_grad)


def close(actual: Tensor, expected: object, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    """Asserts equality in fp64, by default up to the rounding of another order of summation."""
    wanted = torch.as_tensor(np.asarray(expected, dtype=np.float64))
    torch.testing.assert_close(actual.detach(), wanted, rtol=rtol, atol=atol)


def same(actual: Callable[..., Tensor], expected: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Asserts equal values and equal gradients of all inputs that require one."""
    tolerance = 1e-10 if inputs[0].dtype == torch.float64 else 2e-5
    found, wanted = actual(*inputs), expected(*inputs)
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    leaves = [x for x in inputs if x.requires_grad]
    for left, right in zip(
        torch.autograd.grad(found, leaves), torch.autograd.grad(wanted, leaves), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)
