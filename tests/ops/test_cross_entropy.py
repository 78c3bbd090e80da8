"""Cross-entropies of pairs on every backend, against the formula."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from interpreted import beyond_finite
from itm_kernels.ops._cross_entropy import fused_cross_entropy
from kernels import on

pytestmark = on("native", "triton")
CrossEntropy = Callable[[Tensor, Tensor, float], Tensor]


@pytest.fixture
def cross_entropy(kernels: Any) -> CrossEntropy:
    return by_kernel


def relative(negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Return logarithms relative to the nearest integers, and these."""
    highest = negatives.detach().nan_to_num(0, 0, 0).round()
    return negatives - highest, highest


def by_kernel(positive: Tensor, negatives: Tensor, weight: float) -> Tensor:
    return fused_cross_entropy(positive, *relative(negatives), weight, "auto")


def by_formula(positive: Tensor, negatives: Tensor, weight: float) -> Tensor:
    return fused_cross_entropy(positive, *relative(negatives), weight, "reference")


def logits(*shape: int, spread: float = 9.0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(spread).to(dtype)


def result(
    function: CrossEntropy, positive: Tensor, negatives: Tensor, upstream: Tensor | None = None
) -> list[Tensor]:
    """Return losses and both gradients, in fp64."""
    leaves = [t.detach().requires_grad_() for t in (positive, negatives)]
    loss = function(*leaves, 0.5)
    grads = torch.autograd.grad(
        loss, leaves, torch.ones_like(loss) if upstream is None else upstream
    )
    return [t.detach().double() for t in (loss, *grads)]


# One pair; fewer than a block, and one more; sides and sums of one and several.
@pytest.mark.parametrize(("S", "K", "M"), [(1, 1, 1), (2, 1, 33), (2, 3, 129), (3, 2, 300)])
def test_losses_are_as_exact_as_the_formula(
    cross_entropy: CrossEntropy, S: int, K: int, M: int
) -> None:
    positive, negatives, upstream = logits(M), logits(S, K, M), logits(M + 1)[1:]
    exact = result(by_formula, positive, negatives, upstream)
    for ours, wanted in zip(
        result(cross_entropy, positive, negatives, upstream), exact, strict=True
    ):
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)
    narrow = [t.float() for t in (positive, negatives, upstream)]
    exact = result(by_formula, *(t.double() for t in narrow))
    eager, found = result(by_formula, *narrow), result(cross_entropy, *narrow)
    for ours, theirs, wanted in zip(found, eager, exact, strict=True):
        allowed = 2 * (theirs - wanted).abs().max() + 1e-7 * wanted.abs().max()
        assert (ours - wanted).abs().max() <= allowed


def test_small_losses_keep_their_digits(cross_entropy: CrossEntropy) -> None:
    """A positive 30 above its negative has a loss of e^-30, and 1 + e^-30 is 1 in fp32."""
    positive, negatives = torch.full((3,), 30.0), torch.zeros(1, 1, 3)
    found = cross_entropy(positive, negatives, 1.0)
    torch.testing.assert_close(
        found.double(), torch.full((3,), -30.0).double().exp(), rtol=1e-6, atol=0
    )


def test_logits_in_the_thousands_keep_their_digits(cross_entropy: CrossEntropy) -> None:
    """The positive and 39 equal negatives, log 39 above a highest logit of 3,000.1: log 40."""
    positive, negatives = torch.full((3,), 3000.1), torch.full((2, 1, 3), 39.0).log()
    highest = positive.expand(2, 1, 3)
    found = fused_cross_entropy(positive, negatives, highest, 0.5, "auto")
    torch.testing.assert_close(found, torch.full((3,), 40.0).log(), rtol=2e-7, atol=0)
    leaves = [t.requires_grad_() for t in (positive, negatives)]
    loss = fused_cross_entropy(*leaves, highest.detach(), 0.5, "auto")
    of_positive, of_negatives = torch.autograd.grad(loss.sum(), leaves)
    torch.testing.assert_close(of_positive, torch.full((3,), -39 / 40))
    torch.testing.assert_close(of_negatives, torch.full((2, 1, 3), 39 / 80))


def test_any_strides(cross_entropy: CrossEntropy) -> None:
    negatives, positive = logits(14, 3, 4).permute(2, 1, 0)[::2, :, ::2], logits(14)[::2]
    for upstream in (logits(14)[1::2], torch.ones(()).double().expand(7)):
        for ours, wanted in zip(
            result(cross_entropy, positive, negatives, upstream),
            result(by_formula, positive.contiguous(), negatives.contiguous(), upstream),
            strict=True,
        ):
            torch.testing.assert_close(ours, wanted)


@beyond_finite
def test_values_that_are_not_finite_are_those_of_the_formula(cross_entropy: CrossEntropy) -> None:
    special = torch.tensor([0.0, 1.0, 400.0, -400.0, torch.inf, -torch.inf, torch.nan]).double()
    positive, a, b = torch.cartesian_prod(special, special, special).unbind(1)
    sums = torch.stack([a, b])
    for negatives in (sums[:, None], sums[None]):
        found, wanted = (result(f, positive, negatives) for f in (cross_entropy, by_formula))
        for ours, theirs in zip(found[:1], wanted[:1], strict=True):
            torch.testing.assert_close(ours, theirs, equal_nan=True)
        clear = found[0].isfinite()
        for ours, theirs in zip(found[1:], wanted[1:], strict=True):
            torch.testing.assert_close(ours[..., clear], theirs[..., clear])


@beyond_finite
def test_pairs_without_negatives_have_no_gradient(cross_entropy: CrossEntropy) -> None:
    loss, *grads = result(cross_entropy, logits(5), torch.full((2, 2, 5), -torch.inf).double())
    assert all(t.count_nonzero() == 0 for t in (loss, *grads))
