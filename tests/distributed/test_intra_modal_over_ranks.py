"""The intra-modal constraint over ranks: bounds, ids, reductions, values that are not finite."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ranks import Ranks
from spread_constraint import Found, constraint_on_rank

METRICS = ("cosine", "l1", "l2", "sqeuclidean")
BOUNDS = {"official": (0.1, 0.9), "paper": (0.05, 2.0), "repel": (0.05, 2.0)}
COUNTS = (4, 3)


def rows(N: int = 7, D: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=1)


def options(mode: str, metric: str, **others: Any) -> dict[str, Any]:
    lower, upper = BOUNDS[mode]
    if (mode, metric) == ("official", "cosine"):
        upper = -0.8
    return {"mode": mode, "metric": metric, "lower": lower, "upper": upper, **others}


def check(
    ranks: Ranks,
    x: Tensor,
    ids: Tensor | None,
    given: dict[str, Any],
    counts: tuple[int, ...] = COUNTS,
    scores_at_once: int | None = None,
) -> list[Found]:
    found = ranks.run(constraint_on_rank, x, ids, counts, given, scores_at_once, width=len(counts))
    expected = constraint_on_rank(None, x, ids, counts, given)
    values = [rank.value for rank in found]
    value = torch.cat(values) if given.get("reduction") == "none" else values[0]
    assert value.dim() or all(torch.equal(each.nan_to_num(), value.nan_to_num()) for each in values)
    same = {"rtol": 1e-10, "atol": 1e-10, "equal_nan": True}
    torch.testing.assert_close(value, expected.value, **same)
    torch.testing.assert_close(torch.cat([rank.grad for rank in found]), expected.grad, **same)
    return found


@pytest.mark.parametrize("thresholds", ["row0", "per_row"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mode", BOUNDS)
def test_bounds_and_ids_in_blocks_of_rows(
    two: Ranks, mode: str, metric: str, thresholds: str
) -> None:
    ids = torch.tensor([5, 7, 5, 8, 9, 7, 7])  # across ranks
    given = options(mode, metric, thresholds=thresholds)
    for known in (None, ids):
        assert constraint_on_rank(None, rows(), known, COUNTS, given).grad.any()
        check(two, rows(), known, given, scores_at_once=0)
        check(two, rows(), known, given | {"exchange": "ring"}, scores_at_once=0)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_reductions(two: Ranks, reduction: str) -> None:
    for counts in (COUNTS, (0, 7)):
        check(two, rows(), None, options("official", "l2", reduction=reduction), counts)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("row", [0, 5])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mode", BOUNDS)
def test_rows_that_are_not_finite(two: Ranks, mode: str, metric: str, row: int, bad: float) -> None:
    x = rows()
    x[row, 1] = bad
    given = options(mode, metric, reduction="none", backend="reference")
    check(two, x, None, given)
    check(two, x, None, given | {"exchange": "ring"})
    given["backend"] = "auto"  # gradients of other rows differ between backends
    found = two.run(constraint_on_rank, x, None, COUNTS, given)
    values = torch.cat([rank.value for rank in found])
    expected = constraint_on_rank(None, x, None, COUNTS, given)
    torch.testing.assert_close(values, expected.value, equal_nan=True)
    grad = torch.cat([rank.grad for rank in found])
    assert torch.equal(grad[row].isnan(), expected.grad[row].isnan())


def test_copies_of_row_0_tie_with_its_bounds(two: Ranks) -> None:
    # A bound is a distance of row 0: the same distance of a copy is outside as well.
    x = rows()
    x[4:6] = x[0]
    for rank in range(1, 7):
        given = options("official", "l2") | {"lower": rank / 7, "upper": 1.0, "reduction": "none"}
        check(two, x, None, given)


def test_around_the_ring_memory_is_that_of_a_rank(two: Ranks) -> None:
    counts, D = (20, 20), 4
    given = options("paper", "l2", exchange="ring")
    for rank in check(two, rows(40, D), None, given, counts, scores_at_once=0):
        assert rank.scores == 20 * 40
        assert rank.largest <= 20 * D  # as many scores as numbers of 20 rows


@pytest.mark.parametrize("counts", [(20, 20), (31, 9), (0, 40)])
def test_a_rank_scores_its_share_in_blocks(two: Ranks, counts: tuple[int, int]) -> None:
    N, D = sum(counts), 4
    x = rows(N, D)
    for given in (options("paper", "l2"), options("official", "l2", thresholds="row0")):
        found = check(two, x, None, given, counts, scores_at_once=0)
        for rank, n in zip(found, counts, strict=True):
            blocks = -(-n // D)
            row_0 = blocks if given["mode"] == "official" else 0  # again in every block
            assert n * N <= rank.scores <= (n + row_0) * N
            gathered = 2 * max(counts) * D  # padded
            assert rank.largest <= max((D + 1) * N, gathered)  # a block and row 0


def test_rank_0_warns_of_a_band_that_is_empty_on_all_ranks(two: Ranks) -> None:
    x = torch.eye(7, dtype=torch.float64)
    given = options("paper", "l2", upper=1.0)
    first, second = check(two, x, None, given)
    assert len(first.warnings) == 1 and "selects no pair of embeddings" in first.warnings[0]
    assert second.warnings == []
    x[6] = x[5] + 0.3 * x[0]  # a pair of rank 1
    assert [rank.warnings for rank in check(two, x, None, given)] == [[], []]
