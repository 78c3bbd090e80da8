"""Compiled unit rows: sizes, precisions, strides, rows without a length."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from compiled import needs_extension
from itm_kernels import functional
from itm_kernels.ops.unit_rows import run

pytestmark = needs_extension


def native(x: Tensor) -> Tensor:
    return run(x, "test", "native")


def result(function, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    rows = function(leaf)
    rows.backward(grad.to(rows.dtype))
    return rows.detach(), leaf.grad


@pytest.mark.parametrize("N, D", [(1, 1), (2, 3), (33, 96), (127, 333), (5, 1000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_native_is_as_exact_as_normalize(N: int, D: int, dtype: torch.dtype) -> None:
    torch.manual_seed(N)
    x, grad = torch.randn(N, D).to(dtype), torch.randn(N, D)
    truth = result(lambda t: normalize(t, dim=-1), x.double(), grad)
    eager = result(lambda t: normalize(t.float(), dim=-1), x, grad)
    found = result(native, x, grad)
    assert found[0].dtype == torch.float32 and found[1].dtype == dtype
    for ours, theirs, exact in zip(found, eager, truth, strict=True):
        allowed = 2 * (theirs - exact).norm() + torch.finfo(ours.dtype).eps * exact.norm()
        assert (ours - exact).norm() <= allowed
    for ours, exact in zip(result(native, x.double(), grad), truth, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-13, atol=1e-13)


def test_native_rows_of_a_batch_and_with_strides() -> None:
    x = torch.randn(3, 10, 14, dtype=torch.float64)
    for view in (x, x.mT, x[:, ::2, 1::3], x[:, :1].expand(3, 7, 14)):
        torch.testing.assert_close(native(view), normalize(view, dim=-1))


def test_native_rows_without_a_length() -> None:
    x = torch.tensor([[0.0, 0.0], [3e-13, 4e-13], [torch.nan, 1.0], [torch.inf, 1.0], [3.0, 4.0]])
    x = x.double()
    ours, theirs = (
        result(function, x, torch.ones(5, 2))
        for function in (native, lambda t: normalize(t, dim=-1))
    )
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, equal_nan=True)


def test_native_unit_rows_are_differentiable_once() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(native(x).sin().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="unit_rows_backward has no derivative"):
        grad.sum().backward()
    loss = functional.info_nce_loss(x, x.detach().flip(0), backend="reference")
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    grad.square().sum().backward()
    assert x.grad is not None and x.grad.norm() > 0
