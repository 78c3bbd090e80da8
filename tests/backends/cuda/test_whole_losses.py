"""Whole losses as one CUDA operator, on the emulator: sums and means."""

from collections.abc import Iterator
from functools import partial
from unittest.mock import patch

import pytest
import torch

from emulated import NAMESPACE, SCHEDULES, as_native, needs_compiler
from itm_kernels import backends, losses
from small_batch import (
    SIZES,
    Loss,
    assert_is_the_reference,
    ids_of,
    layouts,
    not_finite,
    outcome,
    rows,
)

pytestmark = needs_compiler
LOSSES: dict[str, Loss] = {
    "max_of_hinges": losses.MaxOfHingesLoss,
    "mean": partial(losses.MaxOfHingesLoss, reduction="mean"),
    "semihard": partial(losses.MaxOfHingesLoss, mining="semihard", margin=3.0),
    # Bands of rows of length 1 or so: with many pairs, with all but few, with none.
    "imc": partial(losses.IMCLoss, lower=0.3, upper=0.1, weight=0.7),
    "imc-full": partial(losses.IMCLoss, lower=-90.0, upper=-90.0, weight=-2.0),
    "imc-empty": partial(losses.IMCLoss, lower=-90.0, upper=80.0),
}


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    with as_native():
        yield


@pytest.fixture(params=LOSSES)
def loss(request: pytest.FixtureRequest) -> Loss:
    return LOSSES[request.param]


@pytest.mark.parametrize(("N", "M", "D"), SIZES)
def test_fp64_is_the_reference(loss: Loss, N: int, M: int, D: int) -> None:
    assert_is_the_reference(loss, rows(N, D), rows(M, D, seed=1), **ids_of(N, M))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("N", "M", "D"), SIZES)
def test_error_is_at_most_twice_the_references(
    loss: Loss, N: int, M: int, D: int, dtype: torch.dtype
) -> None:
    x, y, ids = rows(N, D, dtype), rows(M, D, dtype, seed=1), ids_of(N, M)
    exact = outcome(loss, x.double(), y.double(), "reference", **ids)
    eager, found = (outcome(loss, x, y, backend, **ids) for backend in ("reference", "native"))
    for wanted, theirs, ours in zip(exact, eager, found, strict=True):
        allowed = 2 * (theirs - wanted).abs().max()
        allowed += 8 * torch.finfo(torch.float32).eps * wanted.abs().max()
        assert (ours - wanted).abs().max() <= allowed


@pytest.mark.parametrize("layout", range(5))
def test_strides(loss: Loss, layout: int) -> None:
    assert_is_the_reference(loss, *layouts()[layout])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_show_as_in_the_parts(loss: Loss, value: float) -> None:
    for side, row in ((0, 0), (1, 9)):
        x, y = not_finite(value, side, row)
        found = outcome(loss, x, y, "native")
        with patch.object(backends, "resolve_total", return_value=None):
            wanted = outcome(loss, x, y, "native")
        assert not all(t.isfinite().all() for t in wanted)
        torch.testing.assert_close(found, wanted, equal_nan=True)


def test_equal_ids_leave_no_negative(loss: Loss) -> None:
    ids = torch.full((9,), 7)
    assert_is_the_reference(loss, rows(9, 5), rows(9, 5, seed=1), image_ids=ids, text_ids=ids)


def test_ties_and_hubs(loss: Loss) -> None:
    # Sums of eighths are exact: equal rows have equal scores.
    x, y = ((8 * side).round().abs() / 8 for side in (rows(70, 3), rows(70, 3, seed=1)))
    x[[3, 40]] = y[[5, 66]] = 50.0
    assert_is_the_reference(loss, x, y)


def test_every_schedule_gives_the_same_bits(loss: Loss) -> None:
    x, y, found = rows(35, 70, torch.float32), rows(35, 70, torch.float32, seed=1), []
    for schedule in SCHEDULES:
        with as_native(schedule):
            found.append(outcome(loss, x, y, "native"))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_wrong_ids_that_cannot_be_checked_give_nan() -> None:
    operators = getattr(torch.ops, NAMESPACE)
    x, y, one = rows(4, 5), rows(3, 5, seed=1), torch.ones((), dtype=torch.float64)
    ids = torch.tensor([0, -1, 3]), torch.arange(4), torch.tensor([0, 9, 3])
    total, *found = operators.max_of_hinges_total_forward(x, y, *ids, 0.2, False, 0.5)
    assert total.isnan()
    grads = operators.max_of_hinges_total_backward(one, x, y, ids[0], *found, 0.5)
    assert grads[0].isnan().all(1).tolist() == [True, False, False, False]
    assert grads[1].isnan().all(1).tolist() == [False, True, False]


def test_opcheck() -> None:
    operators = getattr(torch.ops, NAMESPACE)
    x, y, positive = rows(3, 6), rows(5, 6, seed=1), torch.tensor([2, 0, 1, 1, 0])
    given = x, y, positive, torch.arange(3), positive.clone()
    torch.library.opcheck(operators.max_of_hinges_total_forward, (*given, 0.2, True, 0.5))
    total, *found = operators.max_of_hinges_total_forward(*given, 0.2, True, 0.5)
    given = total, x, y, positive, *found, 0.5
    torch.library.opcheck(operators.max_of_hinges_total_backward, given)
