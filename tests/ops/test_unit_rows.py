"""Unit rows on every backend: sizes, precisions, strides, rows of norm 0, NaN and Inf."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from interpreted import beyond_finite
from itm_kernels import functional
from itm_kernels.ops._unit_rows import fused_unit_rows
from kernels import on

pytestmark = on("native", "triton")
Rows = Callable[[Tensor], Tensor]


@pytest.fixture
def unit(kernels: Any) -> Rows:
    return by_kernel


def by_kernel(x: Tensor) -> Tensor:
    return fused_unit_rows(x, "auto")


def by_torch(x: Tensor) -> Tensor:
    return normalize(x, dim=-1)


def result(function: Rows, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    rows = function(leaf)
    rows.backward(grad.to(rows.dtype))
    assert leaf.grad is not None
    return rows.detach(), leaf.grad


# D of one and several warps, or chunks, to a row, whole and ragged.
@pytest.mark.parametrize("N, D", [(1, 1), (2, 3), (33, 96), (9, 200), (127, 333), (5, 1000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rows_are_as_exact_as_normalize(unit: Rows, N: int, D: int, dtype: torch.dtype) -> None:
    torch.manual_seed(N)
    x, grad = torch.randn(N, D).to(dtype), torch.randn(N, D)
    truth = result(by_torch, x.double(), grad)
    eager = result(lambda t: by_torch(t.float()), x, grad)
    found = result(unit, x, grad)
    assert found[0].dtype == torch.float32
    assert found[1].dtype == dtype
    for ours, theirs, exact in zip(found, eager, truth, strict=True):
        allowed = 2 * (theirs - exact).norm() + torch.finfo(ours.dtype).eps * exact.norm()
        assert (ours - exact).norm() <= allowed
    for ours, exact in zip(result(unit, x.double(), grad), truth, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-13, atol=1e-13)


def test_rows_of_a_batch_and_with_strides(unit: Rows) -> None:
    x = torch.randn(3, 10, 14, dtype=torch.float64)
    for view in (x, x.mT, x[:, ::2, 1::3], x[:, :1].expand(3, 7, 14), x[:, 0], x[0, 0]):
        torch.testing.assert_close(unit(view), by_torch(view))


def test_gradients_with_strides(unit: Rows) -> None:
    x, grad = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    for upstream in (grad.T, grad[0, 0], grad[:, 0], grad[:5, :1]):
        upstream = upstream.expand(2, 5, 6)
        for ours, exact in zip(
            result(unit, x, upstream), result(by_torch, x, upstream), strict=True
        ):
            torch.testing.assert_close(ours, exact)


@beyond_finite
def test_rows_of_norm_zero_or_not_finite(unit: Rows) -> None:
    x = torch.tensor([[0.0, 0.0], [3e-13, 4e-13], [torch.nan, 1.0], [torch.inf, 1.0], [3.0, 4.0]])
    # The squares of 1e20 and 1e-25 are beyond fp32: norms are infinite and 0, as in normalize.
    long = torch.tensor([[1e20, 1.0], [1e-25, 2e-25]])
    for rows in (x.double(), x, long):
        upstream = torch.ones(len(rows), 2)
        found, (wanted, slope) = result(unit, rows, upstream), result(by_torch, rows, upstream)
        torch.testing.assert_close(found[0], wanted, equal_nan=True)
        # For rows of norm 0, which have no direction, torch returns 1e12 times the upstream one.
        slope[rows.norm(dim=-1) == 0] = 0
        torch.testing.assert_close(found[1], slope, equal_nan=True)


def test_unit_rows_are_differentiable_once(unit: Rows) -> None:
    x = torch.randn(3, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(unit(x).sin().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="unit_rows_backward has no derivative"):
        grad.sum().backward()
    loss = functional.info_nce_loss(x, x.detach().flip(0), backend="reference")
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    grad.square().sum().backward()
    assert x.grad is not None
    assert x.grad.norm() > 0


def test_rows_of_several_chunks_and_of_several_programs(unit: Rows) -> None:
    for N, D in ((3, 2500), (600, 33)):
        x, upstream = torch.randn(2, N, D, dtype=torch.float64)
        pairs = zip(result(unit, x, upstream), result(by_torch, x, upstream), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs)
