"""Weights of active hinges in half precision: exact after a reduction, two parts without one."""

import pytest
import torch
from torch import Tensor

from itm_kernels import functional
from kernels import MARKS

pytestmark = MARKS["triton"]

EPS = torch.finfo(torch.float32).eps


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_that_cancel(dtype: torch.dtype, reduction: str) -> None:
    """In nearly collapsed rows every hinge is active, and all pairs have the same gradient."""
    generator = torch.Generator().manual_seed(0)
    rows = [(1 + 0.02 * torch.randn(80, 33, generator=generator)).to(dtype) for _ in range(2)]

    def gradients(dtype: torch.dtype, backend: str) -> list[Tensor]:
        sides = [side.to(dtype).requires_grad_() for side in rows]
        loss = functional.sum_of_hinges_loss(
            *sides, margin=9.0, reduction=reduction, backend=backend
        )
        upstream = torch.linspace(0.5, 1.5, loss.numel()).to(loss).view(loss.shape)
        return [grad.double() for grad in torch.autograd.grad(loss, sides, upstream)]

    exact = gradients(torch.float64, "reference")
    eager, found = gradients(dtype, "reference"), gradients(dtype, "triton")
    for wanted, theirs, ours in zip(exact, eager, found, strict=True):
        # fp32 sums of 80 terms that are 50 times the gradient.
        allowed = 2 * (theirs - wanted).abs().max() + 50 * EPS * wanted.abs().max()
        assert (ours - wanted).abs().max() <= allowed


def test_a_reduced_loss_takes_one_part_of_weights() -> None:
    from itm_kernels.triton import _hinge_gradients, _scaled_operands

    for dtype, parts in ((torch.bfloat16, 2), (torch.float32, 2), (torch.float64, 1)):
        x = torch.ones(5, 40, dtype=dtype)
        both = _scaled_operands.scaled_operands(x, x, cosine=False)
        one = torch.ones((), dtype=both.x_factor.dtype if both.x_factor is not None else dtype)
        assert _hinge_gradients.hinge_weights(one.expand(5), x, both).parts == 1
        assert _hinge_gradients.hinge_weights(torch.arange(5).to(one), x, both).parts == parts
