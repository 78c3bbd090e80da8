"""The bytes that a rank sends equal the formulas of `itm_kernels.distributed._traffic`."""

import os
from inspect import signature
from pathlib import Path

import pytest
import torch

import traffic_table
from counted_traffic import SPREADS, on_rank, sizes
from itm_kernels import functional
from itm_kernels.distributed._traffic import (
    MESSAGES,
    Bytes,
    Messages,
    alignment,
    circulated,
    fusion,
    gathered,
    info_cmr,
    itm,
    ito,
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
# Functions whose formulas take more than `MESSAGES`.
OTHERS = {
    "multi_view_alignment_loss": alignment,
    "fusion_contrastive_loss": fusion,
    "info_cmr_loss": info_cmr,
    "itm_loss": itm,
}
GENERATOR = torch.get_rng_state().numel()  # bytes of its state


def check(ranks: Ranks, spread: Spread, expected: Bytes) -> None:
    for found in ranks.run(on_rank, spread, width=len(spread.images)):
        assert found == pytest.approx(tuple(expected))


def test_every_loss_has_a_formula() -> None:
    functions = {name: getattr(functional, name) for name in functional.__all__}
    with_group = {
        n for n, function in functions.items() if "group" in signature(function).parameters
    }
    assert with_group == set(MESSAGES) | set(OTHERS)


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
@pytest.mark.parametrize(
    ("exchange", "case"),
    [("gather", "official-cosine"), ("gather", "official-l2"), ("ring", "official-cosine")],
)
def test_bytes_of_a_constraint(two: Ranks, case: str, exchange: str, rows: str) -> None:
    images, texts = SPREADS[rows]
    options = (("exchange", exchange),)
    spread = Spread(f"constraint-{case}", images, texts, texts is not None, options)
    of_images = sizes(spread)._replace(m=0)
    texts = texts or images
    of_texts = of_images._replace(n=max(texts), N=sum(texts))
    of_side = circulated if exchange == "ring" else gathered
    sent = [of_side(MESSAGES["intra_modal_constraint"], side) for side in (of_images, of_texts)]
    check(two, spread, sent[0] + sent[1])


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("rows", ["equal", "unequal", "empty"])
@pytest.mark.parametrize(
    ("name", "messages"), [("multi_view", alignment(2, 2)), ("fusion", fusion(3))]
)
def test_bytes_of_views(
    two: Ranks, name: str, messages: Messages, rows: str, exchange: str
) -> None:
    spread = Spread(name, SPREADS[rows][0], options=(("exchange", exchange),))
    formula = circulated if exchange == "ring" else gathered
    check(two, spread, formula(messages, sizes(spread)))


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("rows", ["equal", "unequal", "empty"])
def test_bytes_of_ito(two: Ranks, rows: str, exchange: str) -> None:
    """The case has one view a side, and two fused views."""
    spread = Spread("ito", SPREADS[rows][0], options=(("exchange", exchange),))
    check(two, spread, ito(1, 1, 2, exchange == "ring", sizes(spread)))


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("rows", SPREADS)
@pytest.mark.parametrize(("num_clusters", "num_noise"), [(0, 0), (0, 5), (2, 0), (3, 5)])
@pytest.mark.parametrize("detach", [True, False])
def test_bytes_of_info_cmr(
    two: Ranks, detach: bool, num_clusters: int, num_noise: int, rows: str, exchange: str
) -> None:
    images, texts = SPREADS[rows]
    options = {
        "exchange": exchange,
        "num_clusters": num_clusters,
        "num_noise": num_noise,
        "detach": detach,
    }
    spread = Spread("info_cmr", images, texts, texts is not None, tuple(options.items()))
    how = exchange == "ring", num_clusters, num_noise > 0, detach, GENERATOR
    check(two, spread, info_cmr(sizes(spread), *how))


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
