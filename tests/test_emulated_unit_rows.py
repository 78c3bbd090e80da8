"""CUDA's unit rows, from binding to kernel, on the emulator."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from emulated import NAMESPACE, SCHEDULES, as_native, launches, needs_compiler
from test_native_unit_rows import (  # noqa: F401
    Rows,
    by_kernel,
    result,
    test_gradients_with_strides,
    test_rows_are_as_exact_as_normalize,
    test_rows_of_a_batch_and_with_strides,
    test_rows_without_a_length,
    test_unit_rows_are_differentiable_once,
)

pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def unit() -> Iterator[Rows]:
    with as_native():
        yield by_kernel


def rows(N: int, D: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(N + D)).to(dtype)


# One, two, four and eight warps to a row.
@pytest.mark.parametrize("D", [100, 200, 500, 1000])
def test_every_schedule_gives_the_same_bits(unit: Rows, D: int) -> None:
    x, found = rows(11, D, torch.bfloat16), []
    for schedule in SCHEDULES:
        with as_native(schedule):
            found.append(result(unit, x, rows(11, D)))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_a_row_does_not_depend_on_its_neighbours(unit: Rows) -> None:
    x = rows(77, 300)
    for whole, some in zip(
        result(unit, x, rows(77, 300)), result(unit, x[50:53], rows(77, 300)[50:53]), strict=True
    ):
        assert torch.equal(whole[50:53], some)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_launch_each_way(unit: Rows, dtype: torch.dtype) -> None:
    before = launches()
    result(unit, rows(12, 7, dtype).T, rows(7, 12))
    assert launches() - before == 2


def test_opcheck() -> None:
    operators = getattr(torch.ops, NAMESPACE)
    torch.library.opcheck(operators.unit_rows_forward, (rows(6, 5).view(2, 3, 5),))
    for dtype in (torch.float32, torch.float16):
        given = rows(3, 5), rows(3, 5), rows(3, 1)[:, 0].abs(), dtype
        torch.library.opcheck(operators.unit_rows_backward, given)
