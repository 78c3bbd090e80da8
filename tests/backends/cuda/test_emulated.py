"""The CUDA operators, from binding to kernel, on the emulator: values, gradients, schedules."""

import ctypes
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from emulated import NAMESPACE, SCHEDULES, as_native, needs_compiler, operators
from itm_kernels import ops

pytestmark = needs_compiler
DISTANCES = ("l1", "l2", "sqeuclidean")


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    with as_native():
        yield


def rows(*sizes: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(sizes))
    return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype)


def outcome(x: Tensor, y: Tensor, metric: str, backend: str) -> list[Tensor]:
    """Return distances and both gradients, in fp64."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    found = ops.similarity(x, y, metric, backend=backend)
    generator = torch.Generator().manual_seed(found.numel())
    pull = torch.randint(-4, 5, found.shape, generator=generator).to(found.dtype)
    return [t.detach().double() for t in (found, *torch.autograd.grad(found, (x, y), pull))]


def assert_as_good_as_eager(x: Tensor, y: Tensor, metric: str) -> None:
    """Hold the error against fp64 below twice that of plain PyTorch in the same precision."""
    exact = outcome(x.double(), y.double(), metric, "reference")
    eager = outcome(x, y, metric, "reference")
    for wanted, theirs, found in zip(exact, eager, outcome(x, y, metric, "native"), strict=True):
        allowed = 2 * (theirs - wanted).abs().max()
        allowed += 4 * torch.finfo(torch.float32).eps * wanted.abs().max()
        assert (found - wanted).abs().max() <= allowed


# One pair; fewer than a tile; one more than small tiles; D of no, part of and several chunks.
SIZES = [(1, 1, 1), (2, 3, 3), (33, 31, 17), (127, 33, 96), (5, 66, 333), (3, 2, 1000)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("N", "M", "D"), SIZES)
@pytest.mark.parametrize("metric", DISTANCES)
def test_error_is_at_most_twice_eagers(
    metric: str, N: int, M: int, D: int, dtype: torch.dtype
) -> None:
    assert_as_good_as_eager(rows(N, D, dtype=dtype), rows(M, D, dtype=dtype, seed=1), metric)


@pytest.mark.parametrize(("N", "M", "D"), SIZES)
@pytest.mark.parametrize("metric", DISTANCES)
def test_fp64(metric: str, N: int, M: int, D: int) -> None:
    x, y = rows(N, D), rows(M, D, seed=1)
    for found, wanted in zip(
        outcome(x, y, metric, "native"), outcome(x, y, metric, "reference"), strict=True
    ):
        torch.testing.assert_close(found, wanted)


# 132 blocks of tiles are what large ones start at, forward and backward; 130 rows are two tiles.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_large_tiles(dtype: torch.dtype) -> None:
    x, y = rows(44, 130, 20, dtype=dtype), rows(1, 129, 20, dtype=dtype, seed=1)
    assert_as_good_as_eager(x, y, "l1")


@pytest.mark.parametrize("metric", ["dot", "cosine", *DISTANCES])
def test_every_metric_broadcasts_batches(metric: str) -> None:
    assert_as_good_as_eager(
        rows(3, 1, 5, 6, dtype=torch.float32), rows(2, 7, 6, dtype=torch.float32), metric
    )


def strided() -> list[Tensor]:
    """Return rows that kernels do not take as they are: in steps, off alignment, repeated."""
    x = rows(40, 40, dtype=torch.float32)
    return [x[::2, ::3], x.T[3:20], x[1:, 1:14], x[:7, :1].expand(7, 8), x[0].expand(5, 40)]


@pytest.mark.parametrize("layout", range(5))
def test_strides(layout: int) -> None:
    x = strided()[layout]
    found = ops.similarity(x, x[:3], "l1", backend="native")
    wanted = ops.similarity(x.contiguous(), x[:3].contiguous(), "l1", backend="reference")
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("pull", [torch.ones(()).expand(9, 6), rows(6, 9).T, rows(9, 12)[:, ::2]])
def test_strides_of_the_gradient(pull: Tensor) -> None:
    x, y = rows(9, 5).requires_grad_(), rows(6, 5, seed=1).requires_grad_()
    found, wanted = (
        torch.autograd.grad(ops.similarity(x, y, "l1", backend=name), (x, y), pull.double())
        for name in ("native", "reference")
    )
    torch.testing.assert_close(found, wanted)


def test_every_schedule_gives_the_same_bits() -> None:
    inputs = rows(66, 50, dtype=torch.float32), rows(35, 50, dtype=torch.float32)
    large = rows(44, 66, 8, dtype=torch.float16), rows(44, 130, 8, dtype=torch.float16)
    found = []
    for schedule in SCHEDULES:
        with as_native(schedule):
            found.append([*outcome(*inputs, "l1", "native"), *outcome(*large, "l1", "native")])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_equal_rows_are_exactly_0_apart_and_do_not_pull() -> None:
    x = rows(34, 40, dtype=torch.float32)
    for metric in DISTANCES:
        distance, grad_x, grad_y = outcome(x[:1], x[:1], metric, "native")
        assert distance.count_nonzero() == grad_x.count_nonzero() == grad_y.count_nonzero() == 0
        assert outcome(x, x, metric, "native")[0].diagonal().count_nonzero() == 0


@pytest.mark.parametrize("metric", DISTANCES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_shows(metric: str, value: float) -> None:
    x, y = rows(35, 9), rows(34, 9, seed=1)
    x[33, 8] = y[2, 8] = value
    found, wanted = (ops.similarity(x, y, metric, backend=name) for name in ("native", "reference"))
    torch.testing.assert_close(found, wanted, equal_nan=True)


# Small tiles and large ones; in rows that other rows and columns of a tile do not touch.
@pytest.mark.parametrize("batch", [1, 132])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_sign_of_what_is_not_a_number_is_none(value: float, batch: int) -> None:
    x, y = rows(batch, 35, 9), rows(batch, 34, 9, seed=1)
    x[-1, 33, 8] = x[-1, 3, 0] = y[-1, 2, 8] = value
    found, wanted = (outcome(x, y, "l1", name) for name in ("native", "reference"))
    assert wanted[1].isnan().any()
    torch.testing.assert_close(found, wanted, equal_nan=True)


@pytest.mark.parametrize("metric", ["dot", *DISTANCES])
def test_opcheck(metric: str) -> None:
    x, y = rows(2, 5, 6, dtype=torch.float32), rows(3, 6, dtype=torch.float32)
    operators = getattr(torch.ops, NAMESPACE)
    torch.library.opcheck(operators.similarity_forward, (x, y, metric))
    grad = rows(2, 5, 3, dtype=torch.float32)
    torch.library.opcheck(operators.similarity_backward, (grad, x, y, metric))


def test_memory_that_nobody_has_written_shows() -> None:
    sum_too_far = operators().emulator_sum_too_far
    sum_too_far.restype = ctypes.c_double
    assert math.isnan(sum_too_far(5, False))
    assert sum_too_far(5, True) >= 2.0**63
