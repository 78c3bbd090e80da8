"""Clusters whose sizes the host reads are solved in parts; where they are not read, as one."""

import pytest
import torch

from kernels import MARKS
from synthesis_problems import problem, results, same

pytestmark = MARKS["triton"]
SIZE = 16  # of a block here, so that few members are many


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    from itm_kernels.triton import _cholesky, _cluster_batches, _gram_gradient, _kam_solve

    # In every module: a kernel of larger blocks would write beyond factors of smaller ones.
    for module in (_cholesky, _gram_gradient, _cluster_batches, _kam_solve):
        monkeypatch.setattr(module, "BLOCK", SIZE)
    for module in (_cholesky, _gram_gradient, _kam_solve):
        monkeypatch.setattr(module, "DEPTH", SIZE)


# Columns of five clusters: unequal and an empty one, one that has everything, all empty.
@pytest.mark.parametrize("sizes", [[18, 0, 33, 3, 16], [0, 0, 50, 0, 0], [0] * 5], ids=str)
def test_clusters_whose_sizes_are_read_are_solved_alike(sizes, monkeypatch) -> None:
    from itm_kernels.triton import _cluster_batches, _kam_solve

    generator = torch.Generator().manual_seed(0)
    x, right = (
        torch.randn(72, columns, generator=generator, dtype=torch.float64) / 6
        for columns in (33, 5)
    )
    starts = torch.tensor([[0, *sizes]], dtype=torch.int32).cumsum(1, dtype=torch.int32)
    wanted = _kam_solve.AssociativeMemory(x, starts, 0.5, 1e-4, False).solve(right, torch.float64)
    assert (wanted[starts[0, -1] :] == 0).all()
    monkeypatch.setattr(_cluster_batches, "SYNC_FREE_BYTES", 0)
    own = sum(size > 0 for size in sizes)
    # A part of every cluster, of the first three (9 blocks and 51 rows) and the others, and of all.
    for workspace, parts in ((0, own), (32000, 2), (1 << 30, 1)):
        monkeypatch.setattr(_cluster_batches, "SMALL_WORKSPACE", workspace)
        memory = _kam_solve.AssociativeMemory(x, starts, 0.5, 1e-4, True)
        assert len(memory.batches) == min(own, parts)
        assert sum(part.size for part in memory.batches) <= _cluster_batches.factor_size(72, 5)
        torch.testing.assert_close(memory.solve(right, torch.float64), wanted)


def test_factors_are_kept_where_all_exist_at_once(monkeypatch) -> None:
    from itm_kernels.triton import _cluster_batches, _kam_solve

    made = []
    factorised = _kam_solve.cholesky_factors
    monkeypatch.setattr(
        _kam_solve, "cholesky_factors", lambda *given: made.append(1) or factorised(*given)
    )
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    starts = torch.tensor([[0, 12, 20]], dtype=torch.int32)
    for unasked, wanted in ((1 << 30, 1), (0, 2)):
        monkeypatch.setattr(_cluster_batches, "SYNC_FREE_BYTES", unasked)
        memory = _kam_solve.AssociativeMemory(x, starts, 0.5, 1e-4, True)
        first, second = memory.solve(x, torch.float64), memory.solve(x, torch.float64)
        assert first.equal(second)
        assert len(made) == wanted
        made.clear()


@pytest.mark.parametrize("form", [(False, False), (True, True)], ids=str)  # logits, detach
def test_a_synthesis_in_parts_is_that_of_the_whole(form, monkeypatch) -> None:
    from itm_kernels.triton import _cluster_batches

    case = problem(3, 50, 17, 3)
    wanted = results(case, "triton", "kam", *form)
    monkeypatch.setattr(_cluster_batches, "SYNC_FREE_BYTES", 0)
    monkeypatch.setattr(_cluster_batches, "WORKSPACE", 0)
    monkeypatch.setattr(_cluster_batches, "SMALL_WORKSPACE", 0)
    same(results(case, "triton", "kam", *form), wanted)


@pytest.mark.parametrize("clusters", [1, 2, 4])
def test_gradients_of_several_blocks_and_rows_in_no_cluster(clusters: int) -> None:
    """Left-over tiles belong to the last cluster and must not add anything twice."""
    case = problem(2, 60, 17, clusters + 1)
    case = case._replace(num_clusters=clusters, grad=case.grad[:, :clusters].contiguous())
    same(*(results(case, name, "kam", False) for name in ("triton", "reference")))


def test_clusters_are_not_read_where_they_cannot_be(monkeypatch) -> None:
    from itm_kernels.triton import _cluster_batches

    monkeypatch.setattr(_cluster_batches, "BLOCK", 64)
    starts = torch.tensor([[0, 3, 7]], dtype=torch.int32)
    assert _cluster_batches.starts_on_host(starts, 7) == [0, 3, 7]
    assert _cluster_batches.starts_on_host(starts.to("meta"), 7) is None
    asked = []
    monkeypatch.setattr(_cluster_batches, "starts_on_host", lambda *given: asked.append(given))
    _cluster_batches.batches_of(starts, 11520, 1)
    assert not asked
    assert _cluster_batches.batches_of(starts, 11521, 1) == [
        _cluster_batches.single_batch(11521, 2)
    ]  # as in a CUDA graph
    assert len(asked) == 1


def test_parts_of_equal_clusters_fit_the_workspace(monkeypatch) -> None:
    """The numbers that the docstring of `_cluster_batches` gives."""
    from itm_kernels.triton import _cluster_batches

    monkeypatch.setattr(_cluster_batches, "BLOCK", 64)
    parts = _cluster_batches.split_into_batches(list(range(0, 32769, 4096)), 1024)
    assert [part.clusters for part in parts] == [3, 3, 2]
    small = _cluster_batches.split_into_batches(list(range(0, 32769, 4096)), 1024, small=True)
    assert [part.clusters for part in small] == [2, 2, 2, 2]
    assert 8 * parts[0].size == 204_472_320
    (one,) = _cluster_batches.split_into_batches([0, 32768], 1024)
    assert 8 * one.size == 4_303_355_904
