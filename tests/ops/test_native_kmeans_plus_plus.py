"""Compiled k-means++: sizes, members, precisions, copies of rows, NaN, against the oracle.

What holds for every backend's kernel takes it as a fixture: `test_emulated_kmeans_plus_plus.py` and
`test_triton_kmeans_plus_plus.py` run the same with theirs.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import oracles
from itm_kernels import reference
from kernels import MARKS

pytestmark = MARKS["native"]
Start = Callable[[Tensor, Tensor | None, Tensor], Tensor]
# One row; fewer rows than clusters; several blocks of rows, chunks of D and problems.
SIZES = [(1, 1, 1, 1), (3, 2, 5, 3), (9, 33, 4, 96), (20, 127, 3, 7), (2, 130, 9, 333)]


@pytest.fixture
def start() -> Start:
    return torch.ops.itm_native.kmeans_plus_plus


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def draws_of(K: int, M: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(K, M).exponential_(generator=generator)


@pytest.mark.parametrize(("B", "M", "K", "D"), SIZES)
def test_rows_are_those_of_the_oracle(start: Start, B: int, M: int, K: int, D: int) -> None:
    x, draws = rows(M, D), draws_of(K, M)
    member = rows(M, B, seed=2).T > -0.5
    member[0] = False  # a problem without members
    found = start(x, member, draws)
    for b in range(B):
        chosen = oracles.kmeans_plus_plus(x.numpy(), member[b].numpy(), draws.double().numpy())
        assert torch.equal(found[b], x[chosen])
    chosen = oracles.kmeans_plus_plus(x.numpy(), np.ones(M, bool), draws.double().numpy())
    assert torch.equal(start(x, None, draws)[0], x[chosen])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("B", "M", "K", "D"), SIZES)
def test_lower_precisions(start: Start, B: int, M: int, K: int, D: int, dtype: torch.dtype) -> None:
    # Whole numbers: distances are exact, and many rows coincide.
    x, draws = rows(M, D).round().to(dtype), draws_of(K, M)
    member = rows(M, B, seed=2).T > -0.5
    found = start(x, member, draws)
    assert found.dtype == torch.float32
    assert torch.equal(found, reference.kmeans_plus_plus(x, member, draws))


def test_strides(start: Start) -> None:
    member, draws = rows(40, 6, seed=2).T > -0.5, draws_of(4, 40)
    x = rows(40, 6)
    wanted = start(x, member.contiguous(), draws)
    apart = rows(80, 12)[::2, 1::2].copy_(x)
    for other in (apart, x.T.contiguous().T):
        assert torch.equal(start(other, member, draws.T.contiguous().T), wanted)


def test_copies_of_a_centroid_are_not_drawn_while_there_are_other_rows(start: Start) -> None:
    x = rows(3, 5, dtype=torch.float32).repeat(20, 1)
    found = start(x, None, draws_of(5, 60))[0]
    assert len(found[:3].unique(dim=0)) == 3
    assert torch.equal(found[3:], found[:1].expand(2, 5))


def test_nan_repeats_the_first_centroid(start: Start) -> None:
    x, draws = rows(9, 3), draws_of(4, 9)
    x[5, 1] = torch.nan
    member = torch.ones(2, 9, dtype=torch.bool)
    member[1, 5] = False
    found = start(x, member, draws)
    torch.testing.assert_close(
        found, reference.kmeans_plus_plus(x, member, draws), rtol=0, atol=0, equal_nan=True
    )
    assert torch.equal(found[0].nan_to_num(7), found[0, :1].nan_to_num(7).expand(4, 3))
    # Of a row that is no member nothing depends.
    assert len(found[1].unique(dim=0)) == 4


def test_rows_are_drawn_by_their_squared_distance(start: Start) -> None:
    # From 0: distances 1, 4, 9 squared are 1, 16, 81; the first draw is uniform.
    x = torch.tensor([[0.0], [1.0], [4.0], [9.0]])
    generator = torch.Generator().manual_seed(3)
    seen = torch.zeros(4, 4)
    for _ in range(300):
        draws = torch.empty(2, 4).exponential_(generator=generator)
        first, second = start(x, None, draws)[0, :, 0].tolist()
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
