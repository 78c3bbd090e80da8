"""k-means on every backend: sizes, problems per anchor, ties, empty clusters, NaN."""

from itertools import product
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from emulated import SCHEDULES, as_native, launches
from itm_kernels import reference
from kernels import cases, on
from random_tensors import LOW_PRECISIONS, rows, whole

# One row; fewer rows than clusters; 33 and 127 are one more and one less than a vector or a tile.
NATIVE = [(1, 1, 1), (2, 33, 3), (33, 127, 96), (127, 2, 333), (5, 1, 1000), (700, 2100, 5)]
# Ragged against the 64 rows that 16 warps process at once, against 8 clusters and 128 columns;
# (33, 13, 1000) and (9, 40, 333): centroids beyond 48 KiB.
EMULATED = [(1, 1, 1), (2, 5, 3), (33, 13, 1000), (127, 9, 96), (9, 40, 333)]
# 100 centroids are two tiles of them, 1000 rows several sums of some rows each.
TRITON = [(1, 3, 2), (33, 100, 96), (127, 5, 333), (1000, 2, 1)]
# 301 problems of 7 clusters are two tiles, the first of which ends inside a problem. The last three
# are compared by products of all rows; 500 x 12 x 400 scores are computed in two rounds.
PER_ANCHOR = [(1, 1, 3, 2), (33, 33, 5, 7), (301, 40, 7, 3)]
PER_ANCHOR += [(3, 2, 7, 5), (33, 33, 5, 96), (500, 400, 12, 70)]


def cluster(
    kernels: Any, x: Tensor, member: Tensor | None, init: Tensor, iterations: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return assignments and centroids of a backend's kernel and of the reference."""
    found = kernels.kmeans(x, member, init, iterations)
    return found, reference.kmeans(x, member, init, iterations)


@cases(
    "M, K, D, iterations",
    native=[(*size, count) for size, count in product(NATIVE, (0, 1, 40))],
    emulated=[(*size, count) for size, count in product(EMULATED, (0, 1, 4))],
    triton=[(*size, 2) for size in TRITON],
)
def test_fp64_is_the_reference(kernels: Any, M: int, K: int, D: int, iterations: int) -> None:
    x, init = rows(M, D), rows(1, K, D, seed=1)
    for inputs in (x, init), (rows(D, M).T, rows(1, 2 * K, D + 3, seed=1)[:, ::2, 3:]):
        torch.testing.assert_close(*cluster(kernels, inputs[0], None, inputs[1], iterations))


@pytest.mark.parametrize("dtype", LOW_PRECISIONS, ids=str)
@cases("M, K, D", native=NATIVE, emulated=EMULATED, triton=TRITON)
def test_error_is_at_most_twice_the_references(
    kernels: Any, M: int, K: int, D: int, dtype: torch.dtype
) -> None:
    # Integers: scores are exact, and many tie.
    x, init = whole(M, D, dtype=dtype), whole(1, K, D, seed=1, dtype=dtype)
    found, wanted = cluster(kernels, x, None, init, 0)
    assert torch.equal(found[0], wanted[0])
    assert_centroids_are_as_exact(kernels, x, None, init)


def assert_centroids_are_as_exact(
    kernels: Any, x: Tensor, member: Tensor | None, init: Tensor
) -> None:
    found, wanted = cluster(kernels, x, member, init, 1)
    exact = reference.kmeans(x.double(), member, init.double(), 1)[1]
    error, theirs = ((c - exact).abs().max() for c in (found[1], wanted[1]))
    assert found[1].dtype == torch.float32
    assert error <= 2 * theirs + 1e-6


@cases(
    "B, M, K, D",
    native=PER_ANCHOR,
    emulated=[(1, 1, 3, 2), (20, 70, 5, 7), (3, 2, 9, 12)],  # 20 problems are three launches
    triton=[(1, 1, 3, 2), (9, 33, 5, 7), (67, 40, 16, 3), (3, 9, 70, 3)],
)
def test_problems_of_anchors(kernels: Any, B: int, M: int, K: int, D: int) -> None:
    member = rows(M, B, seed=2).T > -0.5
    member[0] = False  # a problem without members
    x, init = rows(M, D), rows(B, K, D, seed=1)
    for iterations in (0, 1, 5):
        found, wanted = cluster(kernels, x, member, init, iterations)
        torch.testing.assert_close(found, wanted)
        assert (found[0] == -1).equal(~member)
        assert found[1][0].equal(init[0])


@cases("B, M, K, D", native=PER_ANCHOR)
def test_problems_are_independent(kernels: Any, B: int, M: int, K: int, D: int) -> None:
    member = rows(M, B, seed=2).T > -0.5
    x, init = rows(M, D), rows(B, K, D, seed=1)
    found = kernels.kmeans(x, member, init, 5)
    for b in range(0, B, 50):
        alone = kernels.kmeans(x[member[b]], None, init[b][None], 5)
        assert torch.equal(found[0][b][member[b]], alone[0][0])


@pytest.mark.parametrize("dtype", LOW_PRECISIONS, ids=str)
@on("native", "emulated")
def test_problems_of_anchors_in_lower_precisions(kernels: Any, dtype: torch.dtype) -> None:
    x, init = whole(40, 96, dtype=dtype), whole(9, 5, 96, seed=1, dtype=dtype)
    member = rows(40, 9, seed=2).T > -0.5
    found, wanted = cluster(kernels, x, member, init, 0)
    assert torch.equal(found[0], wanted[0])
    assert_centroids_are_as_exact(kernels, x, member, init)


@cases("B, K, D, seed", native=[(40, 30, 3, 0)], emulated=[(1, 12, 2, 281)])
def test_a_cluster_that_loses_its_last_row_keeps_its_centroid(
    kernels: Any, B: int, K: int, D: int, seed: int
) -> None:
    x, init = rows(40, D, seed=seed), 1.5 * rows(B, K, D, seed=seed + 1)
    lost, sizes = 0, torch.zeros(B, K, dtype=torch.int64)
    member = torch.ones(B, 40, dtype=torch.bool)
    for iterations in range(7):
        found, wanted = cluster(kernels, x, member, init, iterations)
        torch.testing.assert_close(found, wanted)
        before, sizes = sizes, (found[0][..., None] == torch.arange(K)).sum(1)
        lost += int(((before > 0) & (sizes == 0)).sum())
    assert lost > 0


@on("native", "emulated")
def test_early_stops_change_nothing(kernels: Any) -> None:
    inputs = rows(40, 6), None, rows(1, 4, 6, seed=1)
    found = [kernels.kmeans(*inputs, count) for count in (50, 51, 90)]
    assert all(torch.equal(a, b) for other in found for a, b in zip(found[0], other, strict=True))
    torch.testing.assert_close(found[0], reference.kmeans(*inputs, 90))


@on("native", "emulated")
def test_nan_stays_in_the_problems_of_its_row(kernels: Any) -> None:
    x, init = rows(20, 40), rows(20, 4, 40, seed=1)
    x[5, 1] = torch.nan
    member = ~torch.eye(20, dtype=torch.bool)
    without = kernels.kmeans(x.nan_to_num(7), member, init, 3)[1]
    for iterations in range(1, 4):
        found = kernels.kmeans(x, member, init, iterations)
        others = torch.arange(20) != 5
        assert found[1][others, 0].isnan().any(-1).all()  # the row's cluster, then that of all rows
        assert found[1][others, 1:].isfinite().all()
        assert iterations < 2 or (found[0][others] <= 0).all()
    assert torch.equal(found[1][5], without[5])


@cases("K, tolerance", native=[(4, 0.0)], emulated=[(12, 0.0)], triton=[(4, 1e-7)])
def test_nan_is_nearest_and_stays_in_its_cluster(kernels: Any, K: int, tolerance: float) -> None:
    x, init = rows(9, 3), rows(1, K, 3, seed=1)
    x[5, 1] = torch.nan
    for iterations in range(4):
        found, wanted = cluster(kernels, x, None, init, iterations)
        assert torch.equal(found[0], wanted[0])
        assert found[1][0, 0].isnan().any() == (iterations > 0)
        assert found[1][0, 1:].isfinite().all()
    # Rows that are not members must not affect the result.
    member = torch.arange(9)[None] != 5
    without = kernels.kmeans(x[member[0]], None, init, 3)[1]
    found = kernels.kmeans(x, member, init, 3)[1]
    torch.testing.assert_close(found, without, rtol=tolerance, atol=tolerance)
    init[0, K - 2, 0] = torch.nan
    assert kernels.kmeans(rows(9, 3), None, init, 0)[0][0].eq(K - 2).all()


@cases("M, D", native=[(5000, 3), (5000, 70)], emulated=[(1000, 3)])
def test_means_of_large_clusters_round_little(kernels: Any, M: int, D: int) -> None:
    x = rows(M, D, dtype=torch.float32) + 100
    found, wanted = cluster(kernels, x, None, x[None, :1] + 0.0, 1)
    exact = x.double().mean(0)
    error, theirs = ((c[0, 0] - exact).abs().max() for c in (found[1], wanted[1]))
    assert error <= 2 * theirs + 1e-6 * 100


# -- CUDA ------------------------------------------------------------------------------------------


@on("emulated")
def test_ties_go_to_the_lowest_cluster(kernels: Any) -> None:
    # Equal centroids in other chunks of 8, in fp32 sums of 333: the same bits at every position.
    x, init = rows(21, 333, dtype=torch.float32), rows(1, 6, 333, seed=1, dtype=torch.float32)
    assert kernels.kmeans(x, None, init.repeat(1, 4, 1), 0)[0].max() < 6


@on("emulated")
def test_every_schedule_gives_the_same_bits(kernels: Any) -> None:
    member = rows(40, 3, seed=2).T > -0.5
    small = torch.float32
    inputs = rows(40, 37, dtype=small), member, rows(3, 9, 37, seed=1, dtype=small)
    wide = rows(12, 700, dtype=small), None, rows(1, 20, 700, seed=1, dtype=small)
    found = []
    for schedule in SCHEDULES:
        with as_native(schedule):
            found.append([*kernels.kmeans(*inputs, 3), *kernels.kmeans(*wide, 2)])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@on("emulated")
def test_all_iterations_are_one_launch_after_that_of_products(kernels: Any) -> None:
    before = launches()
    kernels.kmeans(rows(12, 8), None, rows(7, 3, 8, seed=1), 6)
    assert launches() - before == 2


@on("emulated")
def test_more_than_1024_rows_are_an_error(kernels: Any) -> None:
    with pytest.raises(RuntimeError, match="1025 x 1025 rows; CUDA kernels .* up to 1024"):
        kernels.kmeans(rows(1025, 1), None, rows(1, 2, 1), 1)


@on("emulated")
def test_opcheck(kernels: Any) -> None:
    torch.library.opcheck(kernels.kmeans, (rows(7, 5), rows(7, 3).T > 0, rows(3, 2, 5), 2))


# -- Triton ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", LOW_PRECISIONS, ids=str)
@on("triton")
def test_near_ties_are_decided_as_in_fp32(kernels: Any, dtype: torch.dtype) -> None:
    """Rows lie between centroids that bf16 does not tell apart."""
    x = rows(60, 96).to(dtype)
    direction = rows(1, 96, seed=1) * 1e-4
    start = torch.cat([rows(1, 96, seed=2) + step * direction for step in range(8)])
    start = start.float()[None]
    found, _ = kernels.kmeans(x, None, start, 0)
    scores, coarse = (
        c.double().square().sum(1) / 2 - x.double() @ c.double().T
        for c in (start[0], start[0].bfloat16())
    )
    best = scores.sort(1).values
    sure = best[:, 1] - best[:, 0] > 5e-5  # fp32 at |x| |c| = 100 is sure of 1e-5
    assert sure.sum() > 30
    assert found[0, sure].equal(scores.argmin(1)[sure])
    assert not found[0, sure].equal(coarse.argmin(1)[sure])


@on("triton")
def test_rows_of_any_norm(kernels: Any) -> None:
    """Every cluster is as exact as if it were alone, whatever the norms of other clusters' rows."""
    size, scales = 12, (1e-10, 1.0, 1e10)
    unscaled = (rows(3, size, 33) + 20 * rows(1, 33, seed=9)).float()
    x = torch.cat([scale * some for scale, some in zip(scales, unscaled, strict=True)])
    found = kernels.kmeans(x, None, x[::size].clone()[None], 1)
    wanted = reference.kmeans(x.double(), None, x[::size].double()[None], 1)
    assert found[0].equal(wanted[0])
    for k, scale in enumerate(scales):
        assert (found[1][0, k].double() - wanted[1][0, k]).abs().max() / scale < 5e-6


@on("triton")
def test_centroids_much_shorter_than_their_rows(kernels: Any) -> None:
    """Pairs x and e - x have a mean of e / 2: it is exact to the rounding of the sums."""
    one, rest = rows(16, 40), 2.0**-12 * rows(1, 40, seed=1)
    x = torch.cat([one, rest - one]).float()
    init = torch.stack([x.mean(0) + 1e-3, 1e3 + x[0]])[None]
    for steps in (1, 2):
        found = kernels.kmeans(x, None, init, steps)
        wanted = reference.kmeans(x.double(), None, init.double(), steps)
        assert found[0].equal(wanted[0])
        torch.testing.assert_close(found[1].double(), wanted[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", LOW_PRECISIONS, ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # inf - inf
@on("triton")
def test_a_bad_row_affects_its_cluster_only(kernels: Any, dtype: torch.dtype, bad: float) -> None:
    from itm_kernels.triton import kmeans

    x, init = rows(400, 5).to(dtype), rows(1, 3, 5, seed=1)
    x[300, 2] = bad
    for chain in (128, 1024):  # rows divided among several programs, or one
        with patch.object(kmeans, "_CHAIN", chain), patch.object(kmeans, "_PROGRAMS", 1):
            assignment, _ = kernels.kmeans(x, None, init, 0)
            _, centroids = kernels.kmeans(x, None, init, 1)
        lost = int(assignment[0, 300])
        assert centroids[0, lost].isnan().any()
        for k in {0, 1, 2} - {lost}:
            own = assignment[0] == k
            torch.testing.assert_close(centroids[0, k], x[own].float().mean(0))


@pytest.mark.parametrize("dtype", [*LOW_PRECISIONS, torch.float64], ids=str)
@on("triton")
def test_rows_divided_among_programs_have_one_mean(kernels: Any, dtype: torch.dtype) -> None:
    from itm_kernels.triton import kmeans

    x, init = rows(300, 70).to(dtype), rows(2, 5, 70, seed=1)
    member = rows(2, 300, seed=2) > 0
    found = []
    for chain in (128, 1024):
        with patch.object(kmeans, "_CHAIN", chain), patch.object(kmeans, "_PROGRAMS", 1):
            found.append(kernels.kmeans(x, member, init, 2))
            again = kernels.kmeans(x, member, init, 2)
        assert all(a.equal(b) for a, b in zip(found[-1], again, strict=True))
    assert found[0][0].equal(found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
