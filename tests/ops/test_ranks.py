"""Ranks on every backend: ties, copies, scores that are not finite, blocks."""

import sys

import pytest
import torch
from torch import Tensor

from itm_kernels import backends, ops, reference
from itm_kernels.ops._define import torch_op
from itm_kernels.ops._ranks import row_keys

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(*shape).to(dtype)


def test_ranks_are_computed_in_blocks(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    queries, gallery = rows(7, 4), rows(9, 4, seed=1)
    query_ids, gallery_ids = torch.arange(7) % 3, torch.arange(9) % 3
    whole = ops.ranks(queries, gallery, query_ids, gallery_ids, backend=backend)
    # The function of that name hides its module from attribute access.
    monkeypatch.setattr(sys.modules["itm_kernels.reference._ranks"], "_BLOCK", 18)
    blocks = ops.ranks(queries, gallery, query_ids, gallery_ids, backend=backend)
    assert all(map(torch.equal, whole, blocks))
    alone = ops.ranks(queries, gallery, query_ids + 50, gallery_ids, backend=backend)
    assert (alone.rank == 10).all() and not alone.ties.any() and not alone.positives.any()


def test_counts_of_the_operator_are_those_of_ranks(backend: str) -> None:
    """A backend that returns ranks directly has this operator as well."""
    sides = rows(7, 4), rows(9, 4, seed=1)
    ids = torch.arange(7) % 3, torch.arange(9) % 3
    keys = row_keys(sides[1])
    namespace = backends.resolve("ranks", sides[0], backend)
    forward = reference.ranks if namespace is None else torch_op(namespace, "ranks_forward")
    counts = forward(*sides, *ids, keys)
    assert all(map(torch.equal, counts, ops.ranks(*sides, *ids, backend=backend)[1:]))


def test_ties_count_half(backend: str) -> None:
    queries = torch.tensor([[0.1, 0.7], [1.0, 0.0]])
    # A positive, one above it, one below it, a copy, the other positive, and one that ties with it.
    gallery = torch.tensor([[0.1, 0.7], [0, 1], [0, 0], [0.1, 0.7], [0.1, 0.7], [0.1, -0.2]])
    labels = torch.tensor([0, 5]), torch.tensor([0, 1, 2, 3, 0, 5])
    found = ops.ranks(queries, gallery, *labels, backend=backend)
    assert found.above.tolist() == [1, 0]
    assert found.ties.tolist() == [1, 3]
    assert found.positives.tolist() == [2, 1]
    assert found.rank.tolist() == [2.5, 2.5]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", [3, 77])
def test_equal_rows_tie_in_every_position(D: int, dtype: torch.dtype, backend: str) -> None:
    """Other code multiplies the last rows of a product: they differ in the last bit."""
    queries, dead = rows(30, D, dtype=dtype), rows(1, D, seed=1, dtype=dtype).expand(151, D)
    ids = torch.arange(151)
    found = ops.ranks(queries, dead, ids[-30:], ids, backend=backend)
    assert not found.above.any() and (found.ties == 150).all() and (found.positives == 1).all()
    # Every second row is a copy of one that scores less: no positive is above its copies.
    gallery = torch.stack((dead, -dead), 1).flatten(0, 1)
    found = ops.ranks(queries, gallery, 2 * ids[-30:], torch.arange(302), backend=backend)
    assert torch.isin(found.above, torch.tensor([0, 151])).all() and (found.ties == 150).all()


def test_a_positive_that_is_not_finite_ranks_last(backend: str) -> None:
    gallery = torch.tensor([[0.5], [torch.inf], [-torch.inf], [torch.nan], [0.1]])
    ids = torch.arange(5)
    found = ops.ranks(torch.ones(5, 1), gallery, ids, ids, backend=backend)
    assert found.positives.tolist() == [1, 0, 0, 0, 1]
    # A negative of infinity is above every number, NaN above nothing.
    assert found.rank.tolist() == [2, 5, 5, 5, 3]
    # Among several positives, the finite ones count.
    labels = ids[:1], torch.tensor([0, 0, 0, 0, 4])
    several = ops.ranks(torch.ones(1, 1), gallery, *labels, backend=backend)
    assert several.rank.tolist() == several.positives.tolist() == [1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keys_distinguish_rows(dtype: torch.dtype) -> None:
    # Numbers of few bits, and permutations of the same numbers.
    one = torch.eye(300)
    few = torch.cat((one, 1 + one, 3 * one.flip(1), rows(300, 300).round())).to(dtype)
    few = few.unique(dim=0)
    keys = row_keys(few)
    assert len(keys.unique()) == len(few)
    assert torch.equal(row_keys(few.flip(0)), keys.flip(0))
    assert torch.equal(row_keys(few.T.contiguous().T), keys)
    assert torch.equal(row_keys(torch.where(few == 0, -0.0, few)), keys)
