"""Retrieval over ranks: every rank returns the report of all rows."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ranks import Ranks, RanksFailedError
from retrieval_data import related
from spread_retrieval import Found, evaluate_on_rank

Counts = tuple[tuple[int, ...], tuple[int, ...]]


def check(
    ranks: Ranks,
    rows: tuple[Tensor, Tensor],
    ids: tuple[Tensor, Tensor] | None,
    counts: Counts,
    **options: Any,
) -> list[Found]:
    given = rows, ids, counts, options
    found = ranks.run(evaluate_on_rank, *given)
    expected = evaluate_on_rank(None, *given)
    for rank in found:
        assert rank.report == expected.report
    assert found[0].warnings == expected.warnings and found[1].warnings == []
    # Every rank scores an equal share of the queries of both directions, in every fold.
    most = options.get("folds", 1) * sum(len(x) for x in rows)
    assert sum(rank.scores for rank in found) == expected.scores
    assert abs(found[0].scores - found[1].scores) <= most
    return found


@pytest.mark.parametrize("folds", [1, 3])
@pytest.mark.parametrize("counts", [((6, 6), (12, 12)), ((8, 4), (16, 8)), ((0, 12), (0, 24))])
def test_layout_without_ids(two: Ranks, counts: Counts, folds: int) -> None:
    rows = related(12, 2)
    check(two, rows, None, counts, folds=folds, ks=(1, 3))
    check(two, rows, None, counts, folds=folds, ks=(1, 3), metric="cosine")


@pytest.mark.parametrize("counts", [((6, 6), (12, 12)), ((2, 10), (20, 4)), ((12, 0), (0, 24))])
def test_ids_across_ranks(two: Ranks, counts: Counts) -> None:
    image, text = related(12, 2)
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(24, generator=generator)
    ids = torch.arange(12) + 100, (100 + torch.arange(24) // 2)[order]
    for folds in (1, 4):
        check(two, (image, text[order]), ids, counts, folds=folds, ks=(1, 3))


def test_ties_and_warnings(two: Ranks) -> None:
    image, text = related(4, 1)
    text[:2] = text[0]
    found = check(two, (image, text), None, ((3, 1), (3, 1)), ks=(1, 9))
    assert "ks holds 9" in found[0].warnings[0]
    copies = image.repeat_interleave(3, 0)  # runs that cross the boundary of the ranks
    found = check(two, (copies, copies), None, ((5, 7), (5, 7)), ks=(1,))
    assert "8 of 12 rows of image equal the row before" in found[0].warnings[0]


def test_fewer_queries_than_ranks(two: Ranks) -> None:
    image, text = related(1, 4)
    check(two, (image, text), None, ((1, 0), (4, 0)), ks=(1,))


def test_errors_of_one_rank_and_of_all(two: Ranks) -> None:
    image, text = related(4, 1)

    def messages(rows: tuple[Tensor, Tensor], counts: Counts, **options: Any) -> list[str]:
        with pytest.raises(RanksFailedError) as raised:
            two.run(evaluate_on_rank, rows, None, counts, options)
        return raised.value.errors

    even = (2, 2), (2, 2)
    bad = text.clone()
    bad[3, 0] = torch.nan
    first, second = messages((image, bad), even)
    assert "rank 1 raised: text[1] is not finite" in first
    assert second.startswith("ValueError: evaluate: text[1] is not finite")
    for counts, options, expected in (
        (((2, 2), (3, 1)), {}, "rank 0 has 2 images and 3 texts, all ranks 4 and 4; without ids"),
        (even, {"folds": 3}, "folds=3 does not divide the 4 rows of image"),
    ):
        first, second = messages((image, text), counts, **options)
        assert first == second and first.startswith(f"ValueError: evaluate: {expected}")
