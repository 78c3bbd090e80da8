"""Bytes of losses that fetch rows by their index: the formulas, with counts from the data."""

import os

import pytest
import torch

import fetched_rows
from counted_traffic import SPREADS, on_rank, sizes
from itm_kernels.distributed._traffic import circulated_hinges, circulated_imc, fetch, itm
from ranks import Ranks
from spread_losses import Spread

MINING = {"sum_of_hinges": None, "max_of_hinges": "hardest", "semihard": "semihard"}
MORE = {"three": ((2, 3, 1), None), "four": ((2, 0, 3, 2), (1, 3, 0, 5))}


def check_hinges(ranks: Ranks, spread: Spread) -> None:
    mining, given = MINING[spread.case], sizes(spread)
    fetched = [None] * len(spread.images)
    if mining == "hardest" or spread.ids:
        fetched = fetched_rows.of_hinges(spread, mining == "hardest")
    found = ranks.run(on_rank, spread, width=len(spread.images))
    for sent, rows in zip(found, fetched, strict=True):
        expected = circulated_hinges(mining, given, rows)
        assert sent == pytest.approx(tuple(expected))


def check_imc(ranks: Ranks, spread: Spread) -> None:
    found = ranks.run(on_rank, spread, width=len(spread.images))
    for sent, rows in zip(found, fetched_rows.of_hinges(spread, hardest=True), strict=True):
        assert sent == pytest.approx(tuple(circulated_imc(sizes(spread), rows)))


def check_matching(ranks: Ranks, spread: Spread) -> None:
    found = ranks.run(fetched_rows.matched_on_rank, spread, width=len(spread.images))
    of_images = fetched_rows.count([rank.images for rank in found], spread.images)
    texts = spread.texts or spread.images
    of_texts = fetched_rows.count([rank.texts for rank in found], texts)
    given = sizes(spread)
    for rank, v, c in zip(found, of_images, of_texts, strict=True):
        expected = itm(given, mined=True) + fetch(v, given) + fetch(c, given)
        assert (rank.forward, rank.backward) == pytest.approx(tuple(expected))


@pytest.mark.parametrize("rows", SPREADS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", MINING)
def test_bytes_of_hinges_on_a_ring(two: Ranks, name: str, dtype: torch.dtype, rows: str) -> None:
    images, texts = SPREADS[rows]
    options = (("exchange", "ring"),)
    check_hinges(two, Spread(name, images, texts, texts is not None, options, dtype))


@pytest.mark.parametrize("rows", SPREADS)
def test_bytes_of_imc_on_a_ring(two: Ranks, rows: str) -> None:
    images, texts = SPREADS[rows]
    check_imc(two, Spread("imc", images, texts, texts is not None, (("exchange", "ring"),)))


@pytest.mark.parametrize("rows", SPREADS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_bytes_of_matching(two: Ranks, dtype: torch.dtype, rows: str) -> None:
    images, texts = SPREADS[rows]
    check_matching(two, Spread("itm", images, texts, texts is not None, (), dtype))


@pytest.mark.skipif("ITM_ALL_RANKS" not in os.environ, reason="set ITM_ALL_RANKS=1")
@pytest.mark.parametrize("rows", MORE)
def test_bytes_of_more_ranks(four: Ranks, rows: str) -> None:
    images, texts = MORE[rows]
    for name in MINING:
        options = (("exchange", "ring"),)
        check_hinges(four, Spread(name, images, texts, texts is not None, options))
    check_matching(four, Spread("itm", images, texts, texts is not None))
