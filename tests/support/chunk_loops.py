"""Encoders and loops over chunks, for the tests of `itm_kernels.chunked`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

EXACT = dict(rtol=1e-12, atol=1e-12)


def perceptron(*, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(6, 8), nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 8), nn.Linear(8, 4)
    return nn.Sequential(*layers).double()


def rows(n: int = 10, *, grad: bool = True) -> Tensor:
    return torch.randn(n, 6, dtype=torch.double, requires_grad=grad)


def in_a_loop(encoder: Callable[[Tensor], Tensor], x: Tensor, chunk_size: int) -> Tensor:
    return torch.cat([encoder(part) for part in x.split(chunk_size)])


def gradients(out: Tensor, *of: Tensor) -> list[Tensor]:
    weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return list(torch.autograd.grad((out * weight).tanh().sum(), of))
