"""CUDA's cross-entropies of pairs, from binding to kernel, on the emulator."""

from collections.abc import Iterator

import pytest
import torch

from cross_entropies import (  # noqa: F401
    CrossEntropy,
    by_kernel,
    logits,
    result,
    test_any_strides,
    test_logits_in_the_thousands_keep_their_digits,
    test_losses_are_as_exact_as_the_formula,
    test_pairs_without_negatives_pull_nothing,
    test_small_losses_keep_their_digits,
    test_what_is_not_finite_is_what_the_formula_gives,
)
from emulated import NAMESPACE, as_native, launches, needs_compiler

pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def cross_entropy() -> Iterator[CrossEntropy]:
    with as_native():
        yield by_kernel


def test_one_launch_each_way(cross_entropy: CrossEntropy) -> None:
    before = launches()
    result(cross_entropy, logits(300), logits(2, 3, 300))
    assert launches() - before == 2


def test_a_grid_that_one_launch_does_not_hold(cross_entropy: CrossEntropy) -> None:
    whole = result(cross_entropy, logits(1000), logits(2, 1, 1000))
    some = result(cross_entropy, logits(1000)[900:], logits(2, 1, 1000)[..., 900:])
    assert all(torch.equal(a[..., 900:], b) for a, b in zip(whole, some, strict=True))


def test_opcheck() -> None:
    operators = getattr(torch.ops, NAMESPACE)
    given = logits(5), logits(2, 3, 5), logits(2, 3, 5).round(), 0.5
    torch.library.opcheck(operators.cross_entropy_forward, given)
    torch.library.opcheck(operators.cross_entropy_backward, (logits(5), *given))
