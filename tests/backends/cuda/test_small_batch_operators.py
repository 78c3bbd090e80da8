"""Tests of every CUDA operator over all pairs of a small batch, on the emulator."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from emulated import SCHEDULES, as_native, needs_compiler
from small_batch import HARDEST, SIZES, SUMS, assert_as_good_as_eager, ids_of, layouts, rows

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
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("layout", range(5))
@pytest.mark.parametrize("run", OPERATORS)
def test_strides(run: Callable[..., list[Tensor]], layout: int) -> None:
    x, y = layouts()[layout]
    found, wanted = run(x, y, "native"), run(x.contiguous(), y.contiguous(), "reference")
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("run", OPERATORS)
def test_every_schedule_gives_the_same_bits(run: Callable[..., list[Tensor]]) -> None:
    x, y = rows(35, 70, torch.float32), rows(35, 70, torch.float32, seed=1)
    found = []
    for schedule in SCHEDULES:
        with as_native(schedule):
            found.append(run(x, y, "native"))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))
