"""Sum of hinges, log-sum-exp and sigmoid sums in CUDA, on the emulator."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from emulated import NAMESPACE, as_native
from itm_kernels import functional, ops
from kernels import MARKS
from small_batch import (
    SUMS,
    exp_sums,
    leaves,
    not_finite,
    rows,
)

pytestmark = MARKS["emulated"]


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    with as_native():
        yield


def test_batches_with_unequal_numbers_of_images_and_texts() -> None:
    x, y = rows(13, 9), rows(70, 9, seed=1)
    for sides in ((x, y), (y, x)):
        found, wanted = (exp_sums(*sides, name) for name in ("native", "reference"))
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("run", SUMS)
def test_values_that_are_not_finite_show(run: Callable[..., list[Tensor]], value: float) -> None:
    for side, row in ((0, 0), (0, 34), (1, 9), (1, 33)):
        x, y = not_finite(value, side, row)
        found, wanted = run(x, y, "native"), run(x, y, "reference")
        values = 2 if run is exp_sums else 1
        for ours, theirs in zip(found[:values], wanted[:values], strict=True):
            assert theirs.isfinite().logical_not().any()
            torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_values_that_are_not_finite_show_in_the_gradients_of_the_other_side(
    side: int, value: float
) -> None:
    sides = leaves(*not_finite(value, side, 33))
    for loss in (
        functional.sum_of_hinges_loss(*sides, backend="native"),
        ops.log_sum_exp(*sides, 2.0, backend="native").row.sum(),
    ):
        assert not torch.autograd.grad(loss, sides)[1 - side].isfinite().all()


@pytest.mark.parametrize("run", SUMS)
def test_equal_ids_leave_nothing(run: Callable[..., list[Tensor]]) -> None:
    ids = {"image_ids": torch.full((9,), 7), "text_ids": torch.full((9,), 7)}
    x, y = rows(9, 5), rows(9, 5, seed=1)
    found, wanted = (run(x, y, name, **ids) for name in ("native", "reference"))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_scores_that_were_not_kept_are_computed_again() -> None:
    operators = getattr(torch.ops, NAMESPACE)
    x, y = rows(9, 70, torch.float32), rows(9, 70, torch.float32, seed=1)
    given = x, y, None, None, None, 0.5
    loss, kept = operators.sum_of_hinges_forward(*given, True)
    torch.testing.assert_close(kept, x @ y.T)
    other, none = operators.sum_of_hinges_forward(*given, False)
    assert none.shape == (0, 0)
    assert torch.equal(loss, other)
    ones = torch.ones(9)
    found = operators.sum_of_hinges_backward(ones, kept, *given)
    again = operators.sum_of_hinges_backward(ones, none, *given)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    scaled = x, y, torch.tensor(2.0), torch.arange(9), torch.arange(9), torch.arange(9), False
    row, column, of_positive, *highest, kept = operators.log_sum_exp_forward(*scaled, True)
    torch.testing.assert_close(of_positive, 2 * kept.diagonal())
    given = ones, ones, ones, row, column, *highest
    found = operators.log_sum_exp_backward(*given, kept, *scaled)
    again = operators.log_sum_exp_backward(*given, none, *scaled)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_logits_far_apart_do_not_overflow() -> None:
    x = torch.eye(40)[:, :33] * 30
    for ours, theirs in zip(exp_sums(x, x, "native"), exp_sums(x, x, "reference"), strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs)


def test_a_text_without_an_image_is_nan() -> None:
    operators = getattr(torch.ops, NAMESPACE)
    x, y, positive = rows(4, 5), rows(3, 5, seed=1), torch.tensor([0, -1, 3])
    given = x, y, positive, torch.arange(4), torch.tensor([0, 9, 3]), 5.0
    loss, scores = operators.sum_of_hinges_forward(*given, True)
    assert loss.isnan().tolist() == [False, True, False]
    grads = operators.sum_of_hinges_backward(torch.ones(3).double(), scores, *given)
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize(
    "loss", [functional.sum_of_hinges_loss, functional.info_nce_loss, functional.sigmoid_loss]
)
def test_a_text_without_an_image_can_be_a_negative_only(loss: Callable[..., Tensor]) -> None:
    ids = {"image_ids": torch.arange(33), "text_ids": torch.arange(70) * 7 % 60}
    sides = leaves(rows(33, 9), rows(70, 9, seed=1))
    results = []
    for name in ("native", "reference"):
        value = loss(*sides, backend=name, unmatched="negative", **ids)
        results.append((value, *torch.autograd.grad(value, sides)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_opcheck() -> None:
    x, y, positive = rows(3, 6), rows(5, 6, seed=1), torch.tensor([2, 0, 1, 1, 0])
    operators, check = getattr(torch.ops, NAMESPACE), torch.library.opcheck
    ids = torch.arange(3), positive.clone()
    scale, grad, other = torch.tensor(3.0).double(), torch.ones(5).double(), torch.ones(3).double()
    for scores in (x @ y.T, torch.empty(0, 0).double()):
        keep = bool(scores.numel())
        check(operators.sum_of_hinges_forward, (x, y, positive, *ids, 0.2, keep))
        given = grad, scores, x, y, positive, *ids, 0.2
        check(operators.sum_of_hinges_backward, given)
        check(operators.log_sum_exp_forward, (x, y, scale, *ids, positive, False, keep))
        given = other, grad, grad, other, grad, other, grad, scores, x, y, scale, *ids, positive
        check(operators.log_sum_exp_backward, (*given, False))
        given = x, y, scale, -scale, positive, *ids
        check(operators.sigmoid_forward, (*given, keep, False))
        check(operators.sigmoid_backward, (grad, scores, *given, False))
