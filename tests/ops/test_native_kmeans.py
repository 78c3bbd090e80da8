"""Compiled k-means: one problem in tiles, and many over few rows by products of these."""

import pytest
import torch
from torch import Tensor

from itm_kernels import reference
from kernels import MARKS
from tests.ops.test_native_mining import HALVES, SIZES, rows, whole

pytestmark = MARKS["native"]


def cluster(x: Tensor, member: Tensor | None, init: Tensor, iterations: int):
    native = torch.ops.itm_native.kmeans(x, member, init, iterations)
    return native, reference.kmeans(x, member, init, iterations)


@pytest.mark.parametrize("M, K, D", [*SIZES, (700, 2100, 5)])
@pytest.mark.parametrize("iterations", [0, 1, 40])
def test_kmeans(M: int, K: int, D: int, iterations: int) -> None:
    x, init = rows(M, D), rows(1, K, D, seed=1)
    for inputs in (x, init), (rows(D, M).T, rows(1, 2 * K, D + 3, seed=1)[:, ::2, 3:]):
        native, wanted = cluster(inputs[0], None, inputs[1], iterations)
        torch.testing.assert_close(native, wanted)
    for dtype in HALVES:  # exact scores with ties; means compared with fp64 below
        x, init = whole(M, D, dtype=dtype), whole(1, K, D, seed=1, dtype=dtype)
        native, wanted = cluster(x, None, init, min(iterations, 1))
        exact = reference.kmeans(x.double(), None, init.double(), min(iterations, 1))[1]
        if not iterations:
            assert torch.equal(native[0], wanted[0])
        error, theirs = ((c - exact).abs().max() for c in (native[1], wanted[1]))
        assert native[1].dtype == torch.float32
        assert error <= 2 * theirs + 1e-6


# 301 problems of 7 clusters are two tiles, the first of which breaks one off. The last three are
# compared by products of all rows; 500 x 12 x 400 scores are made in two rounds.
PER_ANCHOR = [(1, 1, 3, 2), (33, 33, 5, 7), (301, 40, 7, 3)]
PER_ANCHOR += [(3, 2, 7, 5), (33, 33, 5, 96), (500, 400, 12, 70)]


@pytest.mark.parametrize("B, M, K, D", PER_ANCHOR)
def test_kmeans_per_anchor(B: int, M: int, K: int, D: int) -> None:
    member = rows(M, B, seed=2).T > -0.5
    member[0] = False  # a problem without members
    x, init = rows(M, D), rows(B, K, D, seed=1)
    for iterations in (0, 1, 5):
        native, wanted = cluster(x, member, init, iterations)
        torch.testing.assert_close(native, wanted)
        assert (native[0] == -1).equal(~member)
        assert native[1][0].equal(init[0])
    for b in range(0, B, 50):  # each problem is one of its own
        alone = torch.ops.itm_native.kmeans(x[member[b]], None, init[b][None], 5)
        assert torch.equal(native[0][b][member[b]], alone[0][0])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_kmeans_per_anchor_in_lower_precisions(dtype: torch.dtype) -> None:
    x, init = whole(40, 96, dtype=dtype), whole(9, 5, 96, seed=1, dtype=dtype)
    member = rows(40, 9, seed=2).T > -0.5
    for iterations in (0, 1):
        native, wanted = cluster(x, member, init, iterations)
        assert torch.equal(native[0], wanted[0]) or iterations
        exact = reference.kmeans(x.double(), member, init.double(), iterations)[1]
        error, theirs = ((c - exact).abs().max() for c in (native[1], wanted[1]))
        assert native[1].dtype == torch.float32
        assert error <= 2 * theirs + 1e-6


def test_a_cluster_that_loses_its_last_row_stays_where_it_was() -> None:
    lost, sizes = 0, torch.zeros(40, 30, dtype=torch.int64)
    x, init = rows(40, 3), 1.5 * rows(40, 30, 3, seed=1)
    member = torch.ones(40, 40, dtype=torch.bool)
    for iterations in range(6):
        native, wanted = cluster(x, member, init, iterations)
        torch.testing.assert_close(native, wanted)
        before, sizes = sizes, (native[0][..., None] == torch.arange(30)).sum(1)
        lost += int(((before > 0) & (sizes == 0)).sum())
    assert lost > 0


def test_nan_stays_in_the_problems_of_its_row() -> None:
    x, init = rows(20, 40), rows(20, 4, 40, seed=1)
    x[5, 1] = torch.nan
    member = ~torch.eye(20, dtype=torch.bool)
    without = torch.ops.itm_native.kmeans(x.nan_to_num(7), member, init, 3)[1]
    for iterations in range(1, 4):
        found = torch.ops.itm_native.kmeans(x, member, init, iterations)
        others = torch.arange(20) != 5
        assert found[1][others, 0].isnan().any(-1).all()  # the cluster of the row, and of all then
        assert found[1][others, 1:].isfinite().all()
        assert iterations < 2 or (found[0][others] <= 0).all()
    assert torch.equal(found[1][5], without[5])


@pytest.mark.parametrize("M, D", [(5000, 3), (5000, 70)])
def test_means_of_large_clusters_round_little(M: int, D: int) -> None:
    x = rows(M, D, dtype=torch.float32) + 100
    init = x[None, :1] + 0.0
    native, wanted = cluster(x, None, init, 1)
    exact = x.double().mean(0)
    error, theirs = ((c[0, 0] - exact).abs().max() for c in (native[1], wanted[1]))
    assert error <= 2 * theirs + 1e-6 * 100


def test_nan_is_nearest_and_stays_in_its_cluster() -> None:
    x, init = rows(9, 3), rows(1, 4, 3, seed=1)
    x[5, 1] = torch.nan
    for iterations in range(4):
        native, wanted = cluster(x, None, init, iterations)
        assert torch.equal(native[0], wanted[0])
        assert native[1][0, 0].isnan().any() == (iterations > 0)
        assert native[1][0, 1:].isfinite().all()
    # Of a row that is no member nothing depends.
    member = torch.arange(9)[None] != 5
    without = torch.ops.itm_native.kmeans(x[member[0]], None, init, 3)
    assert torch.equal(torch.ops.itm_native.kmeans(x, member, init, 3)[1], without[1])
    init[0, 2, 0] = torch.nan
    assert cluster(rows(9, 3), None, init, 0)[0][0].eq(2).all()
