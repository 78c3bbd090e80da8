"""k-means++ on every backend: sizes, members, precisions, copies of rows, NaN."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import oracles
from emulated import SCHEDULES, as_native, launches
from interpreted import beyond_finite
from itm_kernels import reference
from itm_kernels.ops._kmeans_plus_plus import fused_kmeans_plus_plus
from kernels import on
from random_tensors import rows

# One row; fewer rows than clusters; several blocks of rows, chunks of D and problems.
SIZES = [(1, 1, 1, 1), (3, 2, 5, 3), (9, 33, 4, 96), (20, 127, 3, 7), (2, 130, 9, 333)]


def draws_of(K: int, M: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(K, M).exponential_(generator=generator)


@pytest.mark.parametrize(("B", "M", "K", "D"), SIZES)
def test_rows_are_those_of_the_oracle(kernels: Any, B: int, M: int, K: int, D: int) -> None:
    x, draws = rows(M, D), draws_of(K, M)
    member = rows(M, B, seed=2).T > -0.5
    member[0] = False  # a problem without members
    found = kernels.kmeans_plus_plus(x, member, draws)
    for b in range(B):
        chosen = oracles.kmeans_plus_plus(x.numpy(), member[b].numpy(), draws.double().numpy())
        assert torch.equal(found[b], x[chosen])
    chosen = oracles.kmeans_plus_plus(x.numpy(), np.ones(M, bool), draws.double().numpy())
    assert torch.equal(kernels.kmeans_plus_plus(x, None, draws)[0], x[chosen])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("B", "M", "K", "D"), SIZES)
def test_lower_precisions(kernels: Any, B: int, M: int, K: int, D: int, dtype: torch.dtype) -> None:
    # Whole numbers: distances are exact, and many rows coincide.
    x, draws = rows(M, D).round().to(dtype), draws_of(K, M)
    member = rows(M, B, seed=2).T > -0.5
    found = kernels.kmeans_plus_plus(x, member, draws)
    assert found.dtype == torch.float32
    assert torch.equal(found, reference.kmeans_plus_plus(x, member, draws))


def test_strides(kernels: Any) -> None:
    member, draws = rows(40, 6, seed=2).T > -0.5, draws_of(4, 40)
    x = rows(40, 6)
    wanted = kernels.kmeans_plus_plus(x, member.contiguous(), draws)
    apart = rows(80, 12)[::2, 1::2].copy_(x)
    for other in (apart, x.T.contiguous().T):
        assert torch.equal(kernels.kmeans_plus_plus(other, member, draws.T.contiguous().T), wanted)


def test_copies_of_a_centroid_are_not_drawn_while_there_are_other_rows(kernels: Any) -> None:
    x = rows(3, 5, dtype=torch.float32).repeat(20, 1)
    found = kernels.kmeans_plus_plus(x, None, draws_of(5, 60))[0]
    assert len(found[:3].unique(dim=0)) == 3
    assert torch.equal(found[3:], found[:1].expand(2, 5))


@beyond_finite
def test_nan_repeats_the_first_centroid(kernels: Any) -> None:
    x, draws = rows(9, 3), draws_of(4, 9)
    x[5, 1] = torch.nan
    member = torch.ones(2, 9, dtype=torch.bool)
    member[1, 5] = False
    found = kernels.kmeans_plus_plus(x, member, draws)
    torch.testing.assert_close(
        found, reference.kmeans_plus_plus(x, member, draws), rtol=0, atol=0, equal_nan=True
    )
    assert torch.equal(found[0].nan_to_num(7), found[0, :1].nan_to_num(7).expand(4, 3))
    # Rows that are not members must not affect the result.
    assert len(found[1].unique(dim=0)) == 4


@on("native", "emulated")
def test_rows_are_drawn_by_their_squared_distance(kernels: Any) -> None:
    # From 0: distances 1, 4, 9 squared are 1, 16, 81; the first draw is uniform.
    x = torch.tensor([[0.0], [1.0], [4.0], [9.0]])
    generator = torch.Generator().manual_seed(3)
    seen = torch.zeros(4, 4)
    for _ in range(300):
        draws = torch.empty(2, 4).exponential_(generator=generator)
        first, second = kernels.kmeans_plus_plus(x, None, draws)[0, :, 0].tolist()
        seen[[0.0, 1.0, 4.0, 9.0].index(first), [0.0, 1.0, 4.0, 9.0].index(second)] += 1
    assert seen.diagonal().sum() == 0
    # Chi-square of 3 degrees of freedom each: 16.3 is 1 in 1,000.
    first = seen.sum(1)
    assert ((first - 75).square() / 75).sum() < 16.3
    for k in range(4):
        squares = (x[:, 0] - x[k, 0]).square()
        wanted = first[k] * squares / squares.sum()
        error = ((seen[k] - wanted).square() / wanted.clamp_min(1e-9))[squares > 0].sum()
        assert error < 16.3


@on("emulated")
def test_every_schedule_gives_the_same_bits(kernels: Any) -> None:
    member, found = rows(70, 20, seed=2).T > -0.5, []
    for schedule in SCHEDULES:
        with as_native(schedule):
            x = rows(70, 37, dtype=torch.float32)
            found.append(kernels.kmeans_plus_plus(x, member, draws_of(4, 70)))
    assert all(torch.equal(found[0], other) for other in found[1:])


@on("emulated")
def test_two_launches_for_all_problems_and_centroids(kernels: Any) -> None:
    before, draws = launches(), draws_of(6, 32).T.contiguous().T[:, :32]
    kernels.kmeans_plus_plus(rows(32, 8), rows(7, 32) > 0, draws)
    assert launches() - before == 2


@on("emulated")
def test_opcheck(kernels: Any) -> None:
    for member in (None, rows(7, 5) > 0):
        inputs = rows(5, 4), member, draws_of(3, 5)
        torch.library.opcheck(kernels.kmeans_plus_plus, inputs)


@on("emulated")
def test_more_than_1024_rows_are_an_error(kernels: Any) -> None:
    with pytest.raises(RuntimeError, match="1025 x 1025 rows; CUDA kernels .* up to 1024"):
        kernels.kmeans_plus_plus(rows(1025, 1), None, draws_of(1, 1025))


@on("triton")
def test_draws_of_many_programs(kernels: Any) -> None:
    # 70 programs: their draws are compared in two chunks.
    x, draws = rows(4480, 2), draws_of(3, 4480)
    wanted = torch.ops.itm_native.kmeans_plus_plus(x, None, draws)
    assert torch.equal(kernels.kmeans_plus_plus(x, None, draws), wanted)


def test_a_start_without_draws_takes_rows_far_apart(backend_name: str) -> None:
    """The first row, the row farthest from it, and then the row farthest from both."""
    x = torch.tensor([[0.0], [1.0], [10.0], [4.0], [-1.0]])
    for backend in ("reference", backend_name):
        start = fused_kmeans_plus_plus(x, None, 3, None, backend, False)
        assert start[0, :, 0].tolist() == [0.0, 10.0, 4.0]
