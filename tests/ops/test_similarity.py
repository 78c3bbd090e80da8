"""Similarities and distances on every backend: values, gradients, strides, NaN, schedules."""

from typing import Any

import pytest
import torch
from torch import Tensor

from emulated import SCHEDULES, as_native
from itm_kernels import ops
from kernels import on
from random_tensors import rows

DISTANCES = ("l1", "l2", "sqeuclidean")


def outcome(x: Tensor, y: Tensor, metric: str, backend: str) -> list[Tensor]:
    """Return distances and both gradients, in fp64."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    found = ops.similarity(x, y, metric, backend=backend)
    generator = torch.Generator().manual_seed(found.numel())
    upstream = torch.randint(-4, 5, found.shape, generator=generator).to(found.dtype)
    return [t.detach().double() for t in (found, *torch.autograd.grad(found, (x, y), upstream))]


def assert_as_good_as_eager(x: Tensor, y: Tensor, metric: str, backend: str) -> None:
    """Hold the error against fp64 below twice that of plain PyTorch in the same precision."""
    exact = outcome(x.double(), y.double(), metric, "reference")
    eager = outcome(x, y, metric, "reference")
    for wanted, theirs, found in zip(exact, eager, outcome(x, y, metric, backend), strict=True):
        allowed = 2 * (theirs - wanted).abs().max()
        allowed += 4 * torch.finfo(torch.float32).eps * wanted.abs().max()
        assert (found - wanted).abs().max() <= allowed


# One pair; fewer than a tile; one more than small tiles; D of no, part of and several chunks.
SIZES = [(1, 1, 1), (2, 3, 3), (33, 31, 17), (127, 33, 96), (5, 66, 333), (3, 2, 1000)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("N", "M", "D"), SIZES)
@pytest.mark.parametrize("metric", DISTANCES)
@on("emulated")
def test_error_is_at_most_twice_the_references(
    backend_name: str, metric: str, N: int, M: int, D: int, dtype: torch.dtype
) -> None:
    assert_as_good_as_eager(
        rows(N, D, dtype=dtype), rows(M, D, dtype=dtype, seed=1), metric, backend_name
    )


@pytest.mark.parametrize(("N", "M", "D"), SIZES)
@pytest.mark.parametrize("metric", DISTANCES)
@on("native", "emulated")
def test_fp64_is_the_reference(backend_name: str, metric: str, N: int, M: int, D: int) -> None:
    x, y = rows(N, D), rows(M, D, seed=1)
    for found, wanted in zip(
        outcome(x, y, metric, backend_name), outcome(x, y, metric, "reference"), strict=True
    ):
        torch.testing.assert_close(found, wanted)


# 132 blocks of tiles are what large ones start at, forward and backward; 130 rows are two tiles.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@on("emulated")
def test_large_tiles(backend_name: str, dtype: torch.dtype) -> None:
    x, y = rows(44, 130, 20, dtype=dtype), rows(1, 129, 20, dtype=dtype, seed=1)
    assert_as_good_as_eager(x, y, "l1", backend_name)


@pytest.mark.parametrize("metric", ["dot", "cosine", *DISTANCES])
@on("native", "emulated")
def test_every_metric_broadcasts_batches(backend_name: str, metric: str) -> None:
    assert_as_good_as_eager(
        rows(3, 1, 5, 6, dtype=torch.float32),
        rows(2, 7, 6, dtype=torch.float32, seed=1),
        metric,
        backend_name,
    )


def strided() -> list[Tensor]:
    """Return rows that kernels must copy: strided, unaligned, expanded."""
    x = rows(40, 40, dtype=torch.float32)
    return [x[::2, ::3], x.T[3:20], x[1:, 1:14], x[:7, :1].expand(7, 8), x[0].expand(5, 40)]


@pytest.mark.parametrize("layout", range(5))
@on("native", "emulated")
def test_strides(backend_name: str, layout: int) -> None:
    x = strided()[layout]
    found = ops.similarity(x, x[:3], "l1", backend=backend_name)
    wanted = ops.similarity(x.contiguous(), x[:3].contiguous(), "l1", backend="reference")
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    "upstream", [torch.ones(()).expand(9, 6), rows(6, 9).T, rows(9, 12)[:, ::2]]
)
@on("native", "emulated")
def test_strides_of_the_gradient(backend_name: str, upstream: Tensor) -> None:
    x, y = rows(9, 5).requires_grad_(), rows(6, 5, seed=1).requires_grad_()
    found, wanted = (
        torch.autograd.grad(ops.similarity(x, y, "l1", backend=name), (x, y), upstream.double())
        for name in (backend_name, "reference")
    )
    torch.testing.assert_close(found, wanted)


@on("emulated")
def test_every_schedule_gives_the_same_bits(backend_name: str) -> None:
    inputs = rows(66, 50, dtype=torch.float32), rows(35, 50, dtype=torch.float32, seed=1)
    large = rows(44, 66, 8, dtype=torch.float16), rows(44, 130, 8, dtype=torch.float16, seed=1)
    found = []
    for schedule in SCHEDULES:
        with as_native(schedule):
            found.append(
                [*outcome(*inputs, "l1", backend_name), *outcome(*large, "l1", backend_name)]
            )
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@on("native", "emulated")
def test_equal_rows_have_distance_0_and_no_gradient(backend_name: str) -> None:
    x = rows(34, 40, dtype=torch.float32)
    for metric in DISTANCES:
        distance, grad_x, grad_y = outcome(x[:1], x[:1], metric, backend_name)
        assert distance.count_nonzero() == grad_x.count_nonzero() == grad_y.count_nonzero() == 0
        assert outcome(x, x, metric, backend_name)[0].diagonal().count_nonzero() == 0


@pytest.mark.parametrize("metric", DISTANCES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@on("native", "emulated")
def test_values_that_are_not_finite_show(backend_name: str, metric: str, value: float) -> None:
    x, y = rows(35, 9), rows(34, 9, seed=1)
    x[33, 8] = y[2, 8] = value
    found, wanted = (
        ops.similarity(x, y, metric, backend=name) for name in (backend_name, "reference")
    )
    torch.testing.assert_close(found, wanted, equal_nan=True)


# Small tiles and large ones; in rows that other rows and columns of a tile do not touch.
@pytest.mark.parametrize("batch", [1, 132])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@on("native", "emulated")
def test_the_sign_of_nan_is_nan(backend_name: str, value: float, batch: int) -> None:
    x, y = rows(batch, 35, 9), rows(batch, 34, 9, seed=1)
    x[-1, 33, 8] = x[-1, 3, 0] = y[-1, 2, 8] = value
    found, wanted = (outcome(x, y, "l1", name) for name in (backend_name, "reference"))
    assert wanted[1].isnan().any()
    torch.testing.assert_close(found, wanted, equal_nan=True)


@pytest.mark.parametrize("metric", ["dot", *DISTANCES])
@on("emulated")
def test_opcheck(kernels: Any, metric: str) -> None:
    x, y = rows(2, 5, 6, dtype=torch.float32), rows(3, 6, dtype=torch.float32)
    torch.library.opcheck(kernels.similarity_forward, (x, y, metric))
    grad = rows(2, 5, 3, dtype=torch.float32)
    torch.library.opcheck(kernels.similarity_backward, (grad, x, y, metric))


# -- Triton ----------------------------------------------------------------------------------------


# Weights of 150 x 120 elements are one part (`_products`), those of 65 x 33 two.
@pytest.mark.parametrize(("N", "M", "D"), [(150, 140, 120), (33, 65, 33)])
@pytest.mark.parametrize("metric", ["dot", "cosine", "l2", "sqeuclidean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@on("triton")
def test_gradients_of_one_matrix_err_at_most_twice_as_much_as_the_references(
    backend_name: str, N: int, M: int, D: int, metric: str, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(N)
    x, y, grad = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((1, N, D), (M, D), (1, M, N))
    )
    # Equal rows, near ones, whose squares cancel, and rows of norms from .1 to 10.
    y[:5], y[5:9] = x[0, 3:8], x[0, 9:13] * 1.01
    y[20:30] *= torch.logspace(-1, 1, 10)[:, None]
    x, y, grad = x.to(dtype), y.to(dtype), grad.to(dtype).mT  # columns are contiguous

    def results(dtype: torch.dtype, backend: str) -> list[Tensor]:
        sides = [side.detach().to(dtype, copy=True).requires_grad_() for side in (x, y)]
        found = ops.similarity(*sides, metric, backend=backend)
        return [side.double() for side in torch.autograd.grad(found, sides, grad.to(dtype))]

    exact = results(torch.float64, "reference")
    eager, found = results(dtype, "reference"), results(dtype, backend_name)
    for wanted, theirs, ours in zip(exact, eager, found, strict=True):
        size = max(1.0, wanted.abs().max().item())
        allowed = 2 * (theirs - wanted).abs().max() + 64 * torch.finfo(torch.float32).eps * size
        assert (ours - wanted).abs().max() <= allowed


@on("triton")
def test_large_dot_products_are_the_librarys(
    backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from itm_kernels.triton import similarity

    monkeypatch.setattr(similarity, "INTERPRETED", False)
    monkeypatch.setattr(similarity, "LIBRARY_PAIRS", 33 * 65)
    monkeypatch.setattr(similarity, "_matrices", None)  # the kernel, for smaller ones
    x, y = rows(33, 40)[None].bfloat16(), torch.stack([rows(65, 40)] * 2).bfloat16()
    found = ops.similarity(x, y, "dot", backend=backend_name)
    torch.testing.assert_close(found, ops.similarity(x, y, "dot", backend="reference"))
    with pytest.raises(TypeError, match="not callable"):
        ops.similarity(x[:, 1:], y, "dot", backend=backend_name)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@on("triton")
def test_fp64_and_gradients_of_every_size(backend_name: str, metric: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 37, generator=generator, dtype=torch.float64) for n in (40, 30))
    grad = torch.randn(40, 30, generator=generator, dtype=torch.float64)
    grad *= torch.logspace(-12, 3, 40)[:, None]
    found, wanted = (
        torch.autograd.grad(ops.similarity(*sides, metric, backend=backend), sides, grad)
        for backend in (backend_name, "reference")
        for sides in [[x.clone().requires_grad_(), y.clone().requires_grad_()]]
    )
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("metric", ["l2", "sqeuclidean"])
@pytest.mark.parametrize("close", [1, 7, 90])
@on("triton")
def test_distances_of_close_pairs_keep_their_digits(
    backend_name: str, metric: str, close: int
) -> None:
    """One close pair per row, a few, or almost all: distances of 3e-2 between rows of norm 6."""
    generator = torch.Generator().manual_seed(close)
    x, y = (torch.randn(2, n, 37, generator=generator) for n in (70, 100))
    y[:, :close] = x[:, 5:6] + 5e-3 * torch.randn(2, close, 37, generator=generator)
    x[1] = x[1, 5:6] + 5e-3 * torch.randn(70, 37, generator=generator)
    y[1, 3] = x[1, 40]
    found = ops.similarity(x, y, metric, backend=backend_name)
    wanted = ops.similarity(x.double(), y.double(), metric, backend="reference")
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0)
    assert found[1, 40, 3] == 0
