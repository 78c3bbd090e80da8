"""Mean average precision of classes against loops over all orders of the candidates that tie."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from itm_kernels.retrieval import mean_average_precision
from oracles.ranking import average_precision
from retrieval_data import DTYPES, LargestOutput, related


def brute_force(scores: Tensor, query_ids: Tensor, gallery_ids: Tensor, at_r: bool) -> float:
    relevant = (query_ids[:, None] == gallery_ids).numpy()
    found = [
        average_precision(row, own, at_r) for row, own in zip(scores.numpy(), relevant, strict=True)
    ]
    return sum(found) / len(found)


@pytest.mark.parametrize("at_r", [False, True])
@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_average_precision_of_classes(
    at_r: bool, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("itm_kernels.retrieval.average_precision._SCORES_AT_ONCE", 100)
    image, text = related(30, 2)
    classes = torch.arange(30) % 4, torch.cat((torch.arange(60) % 4,))
    for dtype in DTYPES:
        queries, gallery = image.to(dtype), text.to(dtype)
        wide = [x.double() for x in (queries, gallery)]
        if metric == "cosine":
            wide = [torch.nn.functional.normalize(x, dim=1) for x in wide]
        expected = brute_force(wide[0] @ wide[1].T, *classes, at_r)
        found = mean_average_precision(queries, gallery, *classes, metric=metric, at_r=at_r)
        assert found == pytest.approx(expected, abs=1e-4)
        assert 0.1 < found < 0.9


@settings(deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_average_precision_is_a_mean_over_all_orders_of_ties(seed: int, at_r: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    Q, G = torch.randint(1, 9, (2,), generator=generator).tolist()
    queries, gallery = (torch.randint(-1, 2, (n, 2), generator=generator).float() for n in (Q, G))
    gallery_ids = torch.randint(3, (G,), generator=generator)
    query_ids = gallery_ids[torch.randint(G, (Q,), generator=generator)]
    expected = brute_force(queries @ gallery.T, query_ids, gallery_ids, at_r)
    found = mean_average_precision(queries, gallery, query_ids, gallery_ids, at_r=at_r)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_average_precision_of_a_blind_encoder_is_chance(dtype: torch.dtype) -> None:
    classes = torch.arange(50) % 5, torch.arange(250) % 5
    generator = torch.Generator().manual_seed(0)
    queries, dead = (torch.randn(n, 77, generator=generator).to(dtype) for n in (50, 1))
    found = mean_average_precision(queries, dead.expand(250, 77), *classes)
    ordered = torch.zeros(20, 250)
    for row in ordered:
        row[torch.randperm(250, generator=generator)[:50]] = 1
    places = torch.arange(1, 251)
    assert found == pytest.approx(
        float((ordered.cumsum(1) / places * ordered).sum(1).mean() / 50), abs=0.01
    )
    at_r = mean_average_precision(queries, dead.expand(250, 77), *classes, at_r=True)
    assert 0.2**2 < at_r < 0.06


def test_average_precision_ranks_nan_and_inf_last() -> None:
    # One overflows to infinity, one to NaN; both are relevant, and a third one scores least.
    queries = torch.tensor([[1e30, 1e30, 1.0]])
    gallery = torch.tensor([[1e30, 0, 0], [1e30, -1e30, 0], [0, 0, -1], [0, 0, 3], [0, 0, 2]])
    classes = torch.tensor([7]), torch.tensor([7, 7, 7, 1, 2])
    expected = (1 / 3 + 2 / 4 + 3 / 5) / 3
    assert mean_average_precision(queries, gallery, *classes) == pytest.approx(expected)


def test_average_precision_holds_only_blocks_of_scores() -> None:
    image, text = related(1_000, 3, dim=2)
    classes = torch.arange(1_000) % 10, torch.arange(3_000) % 10
    with LargestOutput() as largest:
        mean_average_precision(image, text, *classes)
    assert text.numel() <= largest.numel <= len(image) * len(text) // 2


IMAGE, TEXT = related(3, 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"gallery": TEXT[:, :4]}, ValueError, r"queries \[3, 8\] and gallery \[6, 4\] differ in"),
        ({"query_ids": torch.arange(2)}, ValueError, r"query_ids must have shape \[3\]"),
        ({"gallery_ids": torch.rand(6)}, TypeError, r"gallery_ids must be integers"),
        (
            {"query_ids": torch.arange(3) + 4},
            ValueError,
            r"1 of the ids in query_ids do not appear in gallery_ids \(6\); leave out queries",
        ),
        ({"metric": "l1"}, ValueError, r"metric must be one of 'dot', 'cosine', got 'l1'"),
        ({"queries": IMAGE * math.nan}, ValueError, r"queries\[0\] is not finite \(3 of 3 rows"),
    ],
)
def test_arguments_of_average_precision_are_checked(
    change: dict[str, object], error: type, message: str
) -> None:
    base = {
        "queries": IMAGE,
        "gallery": TEXT,
        "query_ids": torch.arange(3),
        "gallery_ids": torch.arange(6),
    }
    with pytest.raises(error, match=f"mean_average_precision: {message}"):
        mean_average_precision(**(base | change))
