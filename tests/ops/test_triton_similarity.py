"""Gradients of one matrix of similarities or distances: products of half-precision weights."""

import pytest
import torch
from torch import Tensor

from itm_kernels import ops
from kernels import MARKS

pytestmark = MARKS["triton"]
EPS = torch.finfo(torch.float32).eps


# 150 x 120 numbers take weights of one part (`_products`), 65 x 33 of two.
@pytest.mark.parametrize(("N", "M", "D"), [(150, 140, 120), (33, 65, 33)])
@pytest.mark.parametrize("metric", ["cosine", "l2", "sqeuclidean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_of_one_matrix_is_at_most_twice_the_references(
    N: int, M: int, D: int, metric: str, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(N)
    x, y, grad = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((1, N, D), (M, D), (1, M, N))
    )
    # Equal rows, near ones, whose squares cancel, and rows of lengths from .1 to 10.
    y[:5], y[5:9] = x[0, 3:8], x[0, 9:13] * 1.01
    y[20:30] *= torch.logspace(-1, 1, 10)[:, None]
    x, y, grad = x.to(dtype), y.to(dtype), grad.to(dtype).mT  # columns side by side

    def results(dtype: torch.dtype, backend: str) -> list[Tensor]:
        sides = [side.detach().to(dtype, copy=True).requires_grad_() for side in (x, y)]
        found = ops.similarity(*sides, metric, backend=backend)
        return [side.double() for side in torch.autograd.grad(found, sides, grad.to(dtype))]

    exact = results(torch.float64, "reference")
    eager, found = results(dtype, "reference"), results(dtype, "triton")
    for wanted, theirs, ours in zip(exact, eager, found, strict=True):
        size = max(1.0, wanted.abs().max().item())
        allowed = 2 * (theirs - wanted).abs().max() + 64 * EPS * size
        assert (ours - wanted).abs().max() <= allowed


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_fp64_and_gradients_of_every_size(metric: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 37, generator=generator, dtype=torch.float64) for n in (40, 30))
    grad = torch.randn(40, 30, generator=generator, dtype=torch.float64)
    grad *= torch.logspace(-12, 3, 40)[:, None]
    found, wanted = (
        torch.autograd.grad(ops.similarity(*sides, metric, backend=backend), sides, grad)
        for backend in ("triton", "reference")
        for sides in [[x.clone().requires_grad_(), y.clone().requires_grad_()]]
    )
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
