"""Retrieval from a score function over ranks: every rank computes a share of the blocks."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from ranks import Ranks, RanksFailedError
from retrieval_data import related
from spread_retrieval import Shared, evaluate_scores_on_rank


def scores_of(N: int, texts_per_image: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    image, text = related(N, texts_per_image)
    return (image @ text.T).to(dtype)


def check(ranks: Ranks, scores: Tensor, **options: Any) -> list[Shared]:
    found = ranks.run(evaluate_scores_on_rank, scores, [options] * ranks.size)
    alone = evaluate_scores_on_rank(None, scores, [options])
    blocks = Counter(block for rank in found for block in rank.blocks)
    assert blocks == Counter(alone.blocks)
    for rank in found:
        assert rank.report == alone.report
        assert rank.progress == [(k + 1, len(rank.blocks)) for k in range(len(rank.blocks))]
    shares = [len(rank.blocks) for rank in found]
    assert max(shares) - min(shares) <= 2  # one in each pass
    assert found[0].warnings == alone.warnings
    assert all(not rank.warnings for rank in found[1:])
    return found


# bfloat16 makes scores of positives in blocks of both ranks tie.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("folds", [1, 3])
def test_report_is_that_of_one_process(two: Ranks, folds: int, dtype: torch.dtype) -> None:
    check(two, scores_of(12, 2, dtype), folds=folds, ks=(1, 3), block_size=3)


def test_ids_whose_positives_lie_in_blocks_of_both_ranks(two: Ranks) -> None:
    scores = (4 * scores_of(12)).round()  # many ties
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    ids = {"image_ids": torch.arange(12) % 4, "text_ids": (torch.arange(24) % 4)[order]}
    for folds in (1, 3):
        check(two, scores, **ids, folds=folds, ks=(1, 3), block_size=2)


def test_ties_and_warnings(two: Ranks) -> None:
    found = check(two, torch.ones(6, 12), ks=(1, 9), block_size=2)
    assert found[0].report.i2t_ties == 6 and "ks holds 9" in found[0].warnings[0]
    lost = scores_of(6)
    lost[0] = math.nan
    assert "3 queries have no finite" in check(two, lost, ks=(1,), block_size=2)[0].warnings[0]


def test_a_rank_without_a_block_learns_the_dtype(two: Ranks) -> None:
    scores = scores_of(3, 1, torch.float64)
    found = two.run(evaluate_scores_on_rank, scores, [{"ks": (1,)}] * 2)
    assert found[0].report == found[1].report
    assert [len(rank.blocks) for rank in found] == [2, 1]


@pytest.mark.parametrize("before", [0, 2])  # among the blocks with a positive, and after them
def test_an_error_of_a_score_function_reaches_all_ranks(two: Ranks, before: int) -> None:
    options = [{"ks": (1,), "block_size": 3}] * 2
    with pytest.raises(RanksFailedError) as raised:
        two.run(evaluate_scores_on_rank, scores_of(12), options, (1, before))
    first, second = raised.value.errors
    assert first == "RuntimeError: evaluate_scores: rank 1 raised: out of memory"
    assert second == "OverflowError: out of memory"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"ks": (2,)}, r"rank 0 has ks=(1,), rank 1 has ks=(2,)"),
        ({"block_size": 6}, "rank 0 has block_size=3, rank 1 has block_size=6"),
        (
            {"image_ids": torch.arange(12), "text_ids": torch.arange(24) % 12},
            "rank 0 has ids='",
        ),
    ],
)
def test_ranks_that_disagree(two: Ranks, other: dict[str, Any], message: str) -> None:
    options = {"ks": (1,), "block_size": 3}
    with pytest.raises(RanksFailedError) as raised:
        two.run(evaluate_scores_on_rank, scores_of(12), [options, options | other])
    first, second = raised.value.errors
    assert first == second
    assert first.startswith("ValueError: evaluate_scores: ranks disagree: ") and message in first


def test_arguments_of_one_rank_are_checked(two: Ranks) -> None:
    with pytest.raises(RanksFailedError) as raised:
        two.run(evaluate_scores_on_rank, scores_of(12), [{}, {"folds": 5}])
    first, second = raised.value.errors
    assert "rank 1 raised: folds=5 does not divide the 12 images" in first
    assert second.startswith("ValueError: evaluate_scores: folds=5")
