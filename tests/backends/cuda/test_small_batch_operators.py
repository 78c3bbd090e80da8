"""Tests of every CUDA operator over all pairs of a small batch, on the emulator."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from emulated import SCHEDULES, as_native, needs_compiler
from itm_kernels import functional, ops
from small_batch import (
    HARDEST,
    SIZES,
    SUMS,
    assert_as_good_as_eager,
    exp_sums,
    hardest,
    ids_of,
    layouts,
    leaves,
    not_finite,
    rows,
)

pytestmark = needs_compiler
OPERATORS = *HARDEST, *SUMS


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    with as_native():
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("N", "M", "D"), SIZES)
@pytest.mark.parametrize("run", OPERATORS)
def test_error_is_at_most_twice_the_references(
    run: Callable[..., list[Tensor]], N: int, M: int, D: int, dtype: torch.dtype
) -> None:
    assert_as_good_as_eager(run, rows(N, D, dtype), rows(M, D, dtype, seed=1), **ids_of(N, M))


@pytest.mark.parametrize(("N", "M", "D"), SIZES)
@pytest.mark.parametrize("run", OPERATORS)
def test_fp64_is_the_reference(run: Callable[..., list[Tensor]], N: int, M: int, D: int) -> None:
    x, y = rows(N, D), rows(M, D, seed=1)
    found, wanted = (run(x, y, name, **ids_of(N, M)) for name in ("native", "reference"))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("layout", range(5))
@pytest.mark.parametrize("run", OPERATORS)
def test_strides(run: Callable[..., list[Tensor]], layout: int) -> None:
    x, y = layouts()[layout]
    found, wanted = run(x, y, "native"), run(x.contiguous(), y.contiguous(), "reference")
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("run", OPERATORS)
def test_values_that_are_not_finite_show(run: Callable[..., list[Tensor]], value: float) -> None:
    values = {exp_sums: 2, hardest: 5}.get(run, 1)  # behind them are gradients
    for side, row in ((0, 0), (0, 34), (1, 9), (1, 33)):
        x, y = not_finite(value, side, row)
        found, wanted = (run(x, y, name)[:values] for name in ("native", "reference"))
        for theirs in wanted[-1:] if run is hardest else wanted:
            assert not theirs.isfinite().all()
        torch.testing.assert_close(found, wanted, equal_nan=True)


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


@pytest.mark.parametrize("run", OPERATORS)
def test_equal_ids_leave_no_negative(run: Callable[..., list[Tensor]]) -> None:
    ids = {"image_ids": torch.full((9,), 7), "text_ids": torch.full((9,), 7)}
    x, y = rows(9, 5), rows(9, 5, seed=1)
    found, wanted = (run(x, y, name, **ids) for name in ("native", "reference"))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("run", OPERATORS)
def test_every_schedule_gives_the_same_bits(run: Callable[..., list[Tensor]]) -> None:
    x, y = rows(35, 70, torch.float32), rows(35, 70, torch.float32, seed=1)
    found = []
    for schedule in SCHEDULES:
        with as_native(schedule):
            found.append(run(x, y, "native"))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))
