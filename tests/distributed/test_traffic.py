"""The bytes that a rank sends equal the formulas of `itm_kernels.distributed._traffic`."""

import os
from inspect import signature
from pathlib import Path

import pytest
import torch

import traffic_table
from counted_traffic import on_rank
from itm_kernels import functional
from itm_kernels.distributed._traffic import (
    MESSAGES,
    Bytes,
    Messages,
    Sizes,
    alignment,
    circulated,
    fusion,
    gathered,
)
from ranks import Ranks
from spread_losses import Spread

# The functions that the cases of `loss_cases` call.
FUNCTIONS = {
    "sum_of_hinges": "sum_of_hinges_loss",
    "max_of_hinges": "max_of_hinges_loss",
    "semihard": "sum_of_hinges_loss",
    "imc": "imc_loss",
    "info_nce": "info_nce_loss",
    "sigmoid": "sigmoid_loss",
}
# Losses whose traffic has no formula yet.
UNCOUNTED = {
    "info_cmr_loss",
    "itm_loss",
}
OF_VIEWS = {"multi_view_alignment_loss", "fusion_contrastive_loss"}  # depend on their numbers
SPREADS = {
    "equal": ((4, 4), None),
    "unequal": ((5, 2), None),
    "empty": ((0, 6), None),
    "ids": ((3, 2), (4, 6)),
}


def sizes(spread: Spread) -> Sizes:
    texts = spread.texts or spread.images
    reduction = dict(spread.options).get("reduction")
    return Sizes(
        len(spread.images),
        max(spread.images),
        max(texts),
        sum(spread.images),
        spread.D,
        spread.dtype.itemsize,
        spread.ids,
        reduction != "none",
    )


def check(ranks: Ranks, spread: Spread, expected: Bytes) -> None:
    for found in ranks.run(on_rank, spread, width=len(spread.images)):
        assert found == pytest.approx(tuple(expected))


def test_every_other_loss_has_a_formula() -> None:
    functions = {name: getattr(functional, name) for name in functional.__all__}
    with_group = {
        n for n, function in functions.items() if "group" in signature(function).parameters
    }
    assert with_group - UNCOUNTED - OF_VIEWS == set(MESSAGES)


def test_documented_table() -> None:
    """`python tests/support/traffic_table.py` prints the rows."""
    page = Path(__file__).parents[2] / "docs/distributed.md"
    lines = page.read_text().splitlines()
    first = lines.index("| loss | forward, MB | backward, MB | step, MB |") + 2
    end = lines.index("", first)
    assert lines[first:end] == traffic_table.rows()


@pytest.mark.parametrize("rows", SPREADS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_bytes_of_a_gather(two: Ranks, name: str, dtype: torch.dtype, rows: str) -> None:
    images, texts = SPREADS[rows]
    options = (("exchange", "gather"),)
    spread = Spread(name, images, texts, texts is not None, options, dtype)
    check(two, spread, gathered(MESSAGES[FUNCTIONS[name]], sizes(spread)))


@pytest.mark.parametrize("rows", SPREADS)
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_bytes_of_a_constraint(two: Ranks, metric: str, rows: str) -> None:
    images, texts = SPREADS[rows]
    options = (("exchange", "gather"),)
    spread = Spread(f"constraint-official-{metric}", images, texts, texts is not None, options)
    of_images = sizes(spread)._replace(m=0)
    texts = texts or images
    of_texts = of_images._replace(n=max(texts), N=sum(texts))
    sent = [gathered(MESSAGES["intra_modal_constraint"], side) for side in (of_images, of_texts)]
    check(two, spread, Bytes(*(sum(part) for part in zip(*sent, strict=True))))


@pytest.mark.parametrize("rows", ["equal", "unequal", "empty"])
@pytest.mark.parametrize(
    ("name", "messages"), [("multi_view", alignment(2, 2)), ("fusion", fusion(3))]
)
def test_bytes_of_views(two: Ranks, name: str, messages: Messages, rows: str) -> None:
    spread = Spread(name, SPREADS[rows][0], options=(("exchange", "gather"),))
    check(two, spread, gathered(messages, sizes(spread)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_of_pairs_are_not_sent(two: Ranks, name: str) -> None:
    if FUNCTIONS[name] == "imc_loss":
        return  # it has no values of pairs
    spread = Spread(name, (3, 2), options=(("exchange", "gather"), ("reduction", "none")))
    check(two, spread, gathered(MESSAGES[FUNCTIONS[name]], sizes(spread)))


@pytest.mark.parametrize("rows", SPREADS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["info_nce", "sigmoid"])
def test_bytes_of_a_ring(two: Ranks, name: str, dtype: torch.dtype, rows: str) -> None:
    images, texts = SPREADS[rows]
    options = (("exchange", "ring"),)
    spread = Spread(name, images, texts, texts is not None, options, dtype)
    check(two, spread, circulated(MESSAGES[FUNCTIONS[name]], sizes(spread)))


@pytest.mark.skipif("ITM_ALL_RANKS" not in os.environ, reason="set ITM_ALL_RANKS=1")
@pytest.mark.parametrize("images", [(2, 3, 1), (2, 0, 3, 2)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_bytes_of_more_ranks(four: Ranks, name: str, images: tuple[int, ...]) -> None:
    messages = MESSAGES[FUNCTIONS[name]]
    spread = Spread(name, images, options=(("exchange", "gather"),))
    check(four, spread, gathered(messages, sizes(spread)))
    if name in ("info_nce", "sigmoid"):
        spread = spread._replace(options=(("exchange", "ring"),))
        check(four, spread, circulated(messages, sizes(spread)))
