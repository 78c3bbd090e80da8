"""k-means on CUDA, from binding to kernel, on the emulator."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from emulated import NAMESPACE, SCHEDULES, as_native, launches
from itm_kernels import reference
from kernels import MARKS

pytestmark = MARKS["emulated"]


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    with as_native():
        yield


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def cluster(*inputs: object) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return getattr(torch.ops, NAMESPACE).kmeans(*inputs), reference.kmeans(*inputs)


# One row; fewer rows than clusters; ragged against the 64 rows that 16 warps take at once, against
# 8 clusters and 128 columns; (33, 13, 1000) and (9, 40, 333): centroids beyond 48 KiB.
SIZES = [(1, 1, 1), (2, 5, 3), (33, 13, 1000), (127, 9, 96), (9, 40, 333)]


@pytest.mark.parametrize("iterations", [0, 1, 4])
@pytest.mark.parametrize(("M", "K", "D"), SIZES)
def test_fp64(M: int, K: int, D: int, iterations: int) -> None:
    inputs = rows(D, M).T, None, rows(1, 2 * K, D + 3, seed=1)[:, ::2, 3:], iterations
    torch.testing.assert_close(*cluster(*inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("M", "K", "D"), SIZES)
def test_error_is_at_most_twice_eagers(M: int, K: int, D: int, dtype: torch.dtype) -> None:
    # Whole numbers: scores are exact, and ties many.
    x, init = (rows(*s, seed=1).mul(2).round().to(dtype) for s in ((M, D), (1, K, D)))
    found, wanted = cluster(x, None, init, 0)
    assert torch.equal(found[0], wanted[0])
    found, wanted = cluster(x, None, init, 1)
    exact = reference.kmeans(x.double(), None, init.double(), 1)[1]
    error, theirs = ((c - exact).abs().max() for c in (found[1], wanted[1]))
    assert found[1].dtype == torch.float32
    assert error <= 2 * theirs + 1e-6


# 20 problems are three launches of the emulator's.
@pytest.mark.parametrize(("B", "M", "K", "D"), [(1, 1, 3, 2), (20, 70, 5, 7), (3, 2, 9, 12)])
def test_every_anchor_has_its_own(B: int, M: int, K: int, D: int) -> None:
    member = rows(M, B, seed=2).T > -0.5
    member[0] = False  # a problem without members
    x, init = rows(M, D), rows(B, K, D, seed=1)
    for iterations in (0, 1, 5):
        found, wanted = cluster(x, member, init, iterations)
        torch.testing.assert_close(found, wanted)
        assert (found[0] == -1).equal(~member)
        assert found[1][0].equal(init[0])


def test_early_stops_change_nothing() -> None:
    inputs = rows(40, 6), None, rows(1, 4, 6, seed=1)
    found = [getattr(torch.ops, NAMESPACE).kmeans(*inputs, count) for count in (50, 51, 90)]
    assert all(torch.equal(a, b) for other in found for a, b in zip(found[0], other, strict=True))
    torch.testing.assert_close(found[0], reference.kmeans(*inputs, 90))


def test_ties_go_to_the_lowest_cluster() -> None:
    # Equal centroids in other chunks of 8, in fp32 sums of 333: the same bits wherever they stand.
    x, init = rows(21, 333, dtype=torch.float32), rows(1, 6, 333, seed=1, dtype=torch.float32)
    found, _ = cluster(x, None, init.repeat(1, 4, 1), 0)
    assert found[0].max() < 6


def test_nan_is_nearest_and_stays_in_its_cluster() -> None:
    x, init = rows(9, 3), rows(1, 12, 3, seed=1)
    x[5, 1] = torch.nan
    for iterations in range(4):
        found, wanted = cluster(x, None, init, iterations)
        assert torch.equal(found[0], wanted[0])
        assert found[1][0, 0].isnan().any() == (iterations > 0)
        assert found[1][0, 1:].isfinite().all()
    # Of a row that is no member nothing depends.
    member = torch.arange(9)[None] != 5
    without = getattr(torch.ops, NAMESPACE).kmeans(x[member[0]], None, init, 3)
    assert torch.equal(cluster(x, member, init, 3)[0][1], without[1])
    init[0, 10, 0] = torch.nan
    assert cluster(rows(9, 3), None, init, 0)[0][0].eq(10).all()


def test_means_of_large_clusters_round_little() -> None:
    x = rows(1000, 3, dtype=torch.float32) + 100
    found, wanted = cluster(x, None, x[None, :1] + 0.0, 1)
    exact = x.double().mean(0)
    error, theirs = ((c[0, 0] - exact).abs().max() for c in (found[1], wanted[1]))
    assert error <= 2 * theirs + 1e-6 * 100


def test_every_schedule_gives_the_same_bits() -> None:
    member = rows(40, 3, seed=2).T > -0.5
    small = torch.float32
    inputs = rows(40, 37, dtype=small), member, rows(3, 9, 37, seed=1, dtype=small)
    wide = rows(12, 700, dtype=small), None, rows(1, 20, 700, seed=1, dtype=small)
    found = []
    for schedule in SCHEDULES:
        with as_native(schedule):
            found.append([*cluster(*inputs, 3)[0], *cluster(*wide, 2)[0]])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_a_cluster_that_loses_its_last_row_stays_where_it_was() -> None:
    generator = torch.Generator().manual_seed(165)
    x, init = (torch.randn(*shape, generator=generator).double() for shape in ((40, 2), (1, 12, 2)))
    lost, sizes = 0, torch.zeros(12, dtype=torch.int64)
    for iterations in range(7):
        found, wanted = cluster(x, None, 1.5 * init, iterations)
        torch.testing.assert_close(found, wanted)
        before, sizes = sizes, found[0][0].bincount(minlength=12)
        lost += int(((before > 0) & (sizes == 0)).sum())
    assert lost > 0


def test_all_iterations_are_one_launch_after_that_of_products() -> None:
    before = launches()
    cluster(rows(12, 8), None, rows(7, 3, 8, seed=1), 6)
    assert launches() - before == 2


def test_more_rows_than_it_takes_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="1025 x 1025 rows; CUDA kernels .* up to 1024"):
        cluster(rows(1025, 1), None, rows(1, 2, 1), 1)


def test_opcheck() -> None:
    member = rows(7, 3).T > 0
    operator = getattr(torch.ops, NAMESPACE).kmeans
    torch.library.opcheck(operator, (rows(7, 5), member, rows(3, 2, 5), 2))
