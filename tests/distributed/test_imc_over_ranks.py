"""IMC over ranks: bands, texts without an image, and the warning of empty bands."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ranks import Ranks
from spread_imc import Found, imc_on_rank

IDS = torch.tensor([4, 5, 6, 7, 8])
TEXT_IDS = torch.tensor([8, 4, 5, 4, 6, 7, 7])
COUNTS = (3, 2), (2, 5)


def rows(spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    text = torch.randn(7, 8, generator=generator, dtype=torch.float64)
    one = torch.ones(8, dtype=torch.float64)
    normal = torch.nn.functional.normalize
    return normal(one + spread * image, dim=1), normal(one + spread * text, dim=1)


def check(ranks: Ranks, x: tuple[Tensor, Tensor], text_ids: Tensor, **options: Any) -> list[Found]:
    given = x, (IDS, text_ids), COUNTS, options
    found = ranks.run(imc_on_rank, *given)
    expected = imc_on_rank(None, *given)
    assert torch.equal(found[0].value, found[1].value)
    same = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(found[0].value, expected.value, **same)
    for name in ("image", "text"):
        together = torch.cat([getattr(rank, name) for rank in found])
        torch.testing.assert_close(together, getattr(expected, name), **same)
    assert found[0].warnings == expected.warnings and found[1].warnings == []
    return found


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"metric": "l2", "weight": 0.5},
        {"metric": "l1", "thresholds": "per_row"},
        {"mode": "paper", "upper": 1.0},
        {"mode": "repel", "metric": "l2", "upper": 1.5},
    ],
)
def test_hinges_and_bands(two: Ranks, options: dict[str, Any], exchange: str) -> None:
    check(two, rows(), TEXT_IDS, **options, exchange=exchange)
    # Text 3 is on the second rank, and without an image.
    missing = TEXT_IDS.index_fill(0, torch.tensor([3]), 99)
    check(two, rows(), missing, **options, exchange=exchange, unmatched="negative")


def test_rank_0_warns_of_each_side_with_an_empty_band(two: Ranks) -> None:
    x, _ = rows(0.0)  # cosines of 1 are outside
    _, y = rows()
    first, _ = check(two, (x, y), TEXT_IDS)
    assert len(first.warnings) == 1 and "no pair of image" in first.warnings[0]
