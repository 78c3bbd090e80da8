"""Rows of other ranks by their global index."""

import pytest
import torch

from itm_kernels.distributed import fetch
from ranks import Ranks, RanksFailedError
from spread_draws import fetched

NONE = torch.tensor([], dtype=torch.int64)


@pytest.mark.parametrize(
    ("counts", "indices"),
    [
        ((3, 2), (torch.tensor([4, 0, 4]), torch.tensor([1]))),
        ((3, 2), (NONE, torch.tensor([1, 1, 2, 4]))),
        ((0, 5), (torch.tensor([3, 0]), NONE)),
        ((5, 0), (torch.tensor([3]), torch.tensor([0, 3], dtype=torch.int32))),
    ],
    ids=["repeated", "no-requests", "no-rows-on-rank-0", "no-rows-on-rank-1"],
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=str)
def test_rows_and_gradients_are_those_of_indexing(
    two: Ranks,
    shape: tuple[int, ...],
    counts: tuple[int, ...],
    indices: tuple[torch.Tensor, ...],
) -> None:
    rows = torch.randn(5, *shape, dtype=torch.float64)
    expected, gradient = fetched(None, rows, counts, indices)
    found = two.run(fetched, rows, counts, indices)
    assert torch.equal(torch.cat([own for own, _ in found]), expected)
    torch.testing.assert_close(torch.cat([grad for _, grad in found]), gradient)


def test_a_rank_alone_indexes_its_rows(two: Ranks) -> None:
    rows, index = torch.randn(4, 2), torch.tensor([2, 0])
    assert torch.equal(fetch(rows, index), rows[index])
    ((found, _),) = two.run(fetched, rows, (4,), (index,), width=1)
    assert torch.equal(found, rows[index])


@pytest.mark.parametrize("wrong", [5, -1])
def test_an_index_out_of_range_raises_on_every_rank(two: Ranks, wrong: int) -> None:
    with pytest.raises(RanksFailedError) as raised:
        two.run(fetched, torch.randn(5, 2), (3, 2), (torch.tensor([0, wrong]), NONE))
    for error in raised.value.errors:
        assert error is not None and "ValueError: fetch: index is out of range" in error


def test_an_index_that_is_no_integer_raises_on_every_rank(two: Ranks) -> None:
    with pytest.raises(RanksFailedError) as raised:
        two.run(fetched, torch.randn(5, 2), (3, 2), (torch.tensor([0.5]), NONE))
    assert all("index must be integers" in str(error) for error in raised.value.errors)
