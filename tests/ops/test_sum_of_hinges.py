"""Sum of hinges: stored scores, and weights of active hinges in half precision.

Weights are exact after a reduction, and have two parts without one.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from itm_kernels import functional
from kernels import on, only
from small_batch import leaves, rows

EPS = torch.finfo(torch.float32).eps


@on("emulated")
def test_scores_that_were_not_kept_are_computed_again(kernels: Any) -> None:
    x, y, ones = rows(9, 70, torch.float32), rows(9, 70, torch.float32, seed=1), torch.ones(9)
    given = x, y, None, None, None, 0.5
    loss, kept = kernels.sum_of_hinges_forward(*given, True)
    torch.testing.assert_close(kept, x @ y.T)
    other, none = kernels.sum_of_hinges_forward(*given, False)
    assert none.shape == (0, 0)
    assert torch.equal(loss, other)
    found = kernels.sum_of_hinges_backward(ones, kept, *given)
    again = kernels.sum_of_hinges_backward(ones, none, *given)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_a_text_without_an_image_is_nan(kernels: Any) -> None:
    x, y, positive = rows(4, 5), rows(3, 5, seed=1), torch.tensor([0, -1, 3])
    given = x, y, positive, torch.arange(4), torch.tensor([0, 9, 3]), 5.0
    loss, scores = kernels.sum_of_hinges_forward(*given, True)
    assert loss.isnan().tolist() == [False, True, False]
    grads = kernels.sum_of_hinges_backward(torch.ones(3).double(), scores, *given)
    assert all(grad.isfinite().all() for grad in grads)


def test_a_text_without_an_image_can_be_a_negative_only(backend_name: str) -> None:
    ids = {"image_ids": torch.arange(33), "text_ids": torch.arange(70) * 7 % 60}
    sides, results = leaves(rows(33, 9), rows(70, 9, seed=1)), []
    for name in (backend_name, "reference"):
        value = functional.sum_of_hinges_loss(*sides, backend=name, unmatched="negative", **ids)
        results.append((value, *torch.autograd.grad(value, sides)))
    torch.testing.assert_close(*results)


@pytest.mark.any_set
@on("native", "emulated")
def test_opcheck(kernels: Any) -> None:
    x, y, positive = rows(3, 6), rows(5, 6, seed=1), torch.tensor([2, 0, 1, 1, 0])
    given = x, y, positive, torch.arange(3), positive.clone(), 0.2
    for scores in (x @ y.T, torch.empty(0, 0).double()):
        torch.library.opcheck(kernels.sum_of_hinges_forward, (*given, bool(scores.numel())))
        inputs = torch.ones(5).double(), scores, *given
        torch.library.opcheck(kernels.sum_of_hinges_backward, inputs)


@only("triton")
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_that_cancel(dtype: torch.dtype, reduction: str) -> None:
    """In nearly collapsed rows every hinge is active, and all pairs have the same gradient."""
    generator = torch.Generator().manual_seed(0)
    sides = [(1 + 0.02 * torch.randn(80, 33, generator=generator)).to(dtype) for _ in range(2)]

    def gradients(dtype: torch.dtype, backend: str) -> list[Tensor]:
        inputs = [side.to(dtype).requires_grad_() for side in sides]
        loss = functional.sum_of_hinges_loss(
            *inputs, margin=9.0, reduction=reduction, backend=backend
        )
        upstream = torch.linspace(0.5, 1.5, loss.numel()).to(loss).view(loss.shape)
        return [grad.double() for grad in torch.autograd.grad(loss, inputs, upstream)]

    exact = gradients(torch.float64, "reference")
    eager, found = gradients(dtype, "reference"), gradients(dtype, "triton")
    for wanted, theirs, ours in zip(exact, eager, found, strict=True):
        # fp32 sums of 80 terms that are 50 times the gradient.
        allowed = 2 * (theirs - wanted).abs().max() + 50 * EPS * wanted.abs().max()
        assert (ours - wanted).abs().max() <= allowed


@only("triton")
def test_a_reduced_loss_takes_one_part_of_weights() -> None:
    from itm_kernels.triton import _hinge_gradients, _scaled_operands

    for dtype, parts in ((torch.bfloat16, 2), (torch.float32, 2), (torch.float64, 1)):
        x = torch.ones(5, 40, dtype=dtype)
        both = _scaled_operands.scaled_operands(x, x, cosine=False)
        one = torch.ones((), dtype=both.x_factor.dtype if both.x_factor is not None else dtype)
        assert _hinge_gradients.hinge_weights(one.expand(5), x, both).parts == 1
        assert _hinge_gradients.hinge_weights(torch.arange(5).to(one), x, both).parts == parts
