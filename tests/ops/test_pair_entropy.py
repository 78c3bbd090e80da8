"""InfoNCE of a diagonal is one step of autograd, with the bits of the operators one by one."""

from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from itm_kernels import backends, functional, losses
from itm_kernels.losses import _contrast

if backends.NOT_BUILT:
    pytest.skip("needs the compiled extension", allow_module_level=True)

LOSSES: dict[str, Callable[..., Tensor]] = {
    "info_nce": functional.info_nce_loss,
    "info_cmr": lambda v, c, **options: functional.info_cmr_loss(
        v, c, num_clusters=0, num_noise=0, **options
    ),
    "views": lambda v, c, **options: functional.multi_view_alignment_loss(
        v.view(2, -1, v.shape[1]), c.view(2, -1, c.shape[1]), **options
    ),
}


def sides(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    v, c = torch.randn(2, 34, 7, generator=generator)
    v[5] = 0
    return v.to(dtype).requires_grad_(), c.to(dtype).requires_grad_()


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return loss.detach(), *torch.autograd.grad(loss, inputs)


def nodes(loss: Tensor) -> list[str]:
    """Return the names of the autograd nodes of a backward pass."""
    names, left = [], [loss.grad_fn]
    while left:
        node = left.pop()
        names.append(type(node).__name__)
        left += [after for after, _ in node.next_functions if after]  # type: ignore[union-attr]
    return sorted(names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_the_bits_are_those_of_the_operators_one_by_one(name: str, dtype: torch.dtype) -> None:
    v, c = sides(dtype)
    scale = torch.tensor(7.0, requires_grad=True)
    found = gradients(LOSSES[name](v, c, logit_scale=scale), v, c, scale)
    with patch.object(_contrast, "fused_pair_entropy", return_value=None):
        expected = gradients(LOSSES[name](v, c, logit_scale=scale), v, c, scale)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_one_tensor_on_both_sides_gets_both_gradients() -> None:
    v, _ = sides()
    (both,) = torch.autograd.grad(functional.info_nce_loss(v, v), v)
    image, text = v.detach().requires_grad_(), v.detach().requires_grad_()
    parts = torch.autograd.grad(functional.info_nce_loss(image, text), (image, text))
    torch.testing.assert_close(both, sum(parts), rtol=1e-6, atol=1e-7)


def test_a_backward_pass_takes_few_steps() -> None:
    v, c = sides()
    leaves = ["AccumulateGrad", "AccumulateGrad"]
    steps = [*leaves, "MeanBackward0", "PairEntropyFunctionBackward"]
    assert nodes(losses.InfoNCELoss()(v, c)) == steps
    steps = [*leaves, "DivBackward0", "SigmoidFunctionBackward", "SumBackward0"]
    assert len(nodes(losses.SigmoidLoss()(v, c))) <= len(steps)
    assert len(nodes(losses.SumOfHingesLoss()(v, c))) == 4
    assert len(nodes(losses.MaxOfHingesLoss()(v, c))) == 4


def test_rows_without_gradient_are_left_alone() -> None:
    v, c = sides()
    (alone,) = torch.autograd.grad(functional.info_nce_loss(v.detach(), c), c)
    (text, _) = torch.autograd.grad(functional.info_nce_loss(v, c), (c, v))
    torch.testing.assert_close(alone, text, rtol=0, atol=0)


@pytest.mark.parametrize("loss", [losses.InfoNCELoss(), losses.SigmoidLoss()])
def test_a_second_derivative_is_refused(loss: Callable[..., Tensor]) -> None:
    v, c = sides()
    (first,) = torch.autograd.grad(loss(v, c), v, create_graph=True)
    with pytest.raises(RuntimeError, match="has no derivative: fused operators are differentiable"):
        first.sum().backward()
