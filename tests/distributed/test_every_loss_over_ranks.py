"""Every loss over ranks has the value and the gradients of one process on the whole batch."""

import os

import pytest
import torch

from loss_cases import CASES
from ranks import Ranks
from spread_losses import Spread, check, on_rank_in_parts

NAMES = [case.name for case in CASES if hasattr(case.build("auto"), "group")]
REDUCES = {case.name for case in CASES if hasattr(case.build("auto"), "reduction")} - {"itm"}
TAKES_IDS = {case.name for case in CASES if case.takes_ids}
# Rows of images and of texts on every rank; texts None: as images, without ids.
SPREADS = {
    "equal": ((3, 3), None),
    "unequal": ((4, 1), None),
    "empty": ((0, 5), None),
    "ids": ((3, 2), (4, 5)),
    "ids-empty": ((5, 0), (3, 4)),
    "ids-no-texts": ((2, 3), (6, 0)),
}
ALL = {
    **{f"{name}-{len(v[0])}": v for name, v in SPREADS.items()},
    "one": ((5,), None),
    "three": ((2, 0, 4), None),
    "three-ids": ((2, 1, 2), (0, 4, 3)),
    "four": ((2, 1, 3, 2), None),
    "four-ids": ((0, 3, 1, 2), (4, 0, 3, 2)),
}


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("rows", SPREADS)
@pytest.mark.parametrize("name", NAMES)
def test_is_that_of_one_process(two: Ranks, name: str, rows: str, exchange: str) -> None:
    images, texts = SPREADS[rows]
    if texts is not None and name not in TAKES_IDS:
        return
    check(two, Spread(name, images, texts, texts is not None, (("exchange", exchange),)))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_the_sum(two: Ranks, name: str) -> None:
    check(two, Spread(name, (3, 2), options=(("gradients", "sum"),)))


@pytest.mark.parametrize("name", NAMES)
def test_a_ring_in_parts(two: Ranks, name: str) -> None:
    spread = Spread(name, (5, 4), options=(("exchange", "ring"),))
    check(two, spread, function=on_rank_in_parts)


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("name", NAMES)
def test_values_of_own_rows(two: Ranks, name: str, exchange: str) -> None:
    if name not in REDUCES:
        return
    options = ("reduction", "none"), ("exchange", exchange)
    check(two, Spread(name, (4, 2), options=options))


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("name", NAMES)
def test_on_the_reference(two: Ranks, name: str, exchange: str) -> None:
    options = (("exchange", exchange),)
    check(two, Spread(name, (3, 2), backend="reference", options=options))


@pytest.mark.parametrize("name", NAMES)
def test_in_single_precision(two: Ranks, name: str) -> None:
    check(two, Spread(name, (9, 6), dtype=torch.float32, D=33), 2e-5)


@pytest.mark.skipif("ITM_ALL_RANKS" not in os.environ, reason="set ITM_ALL_RANKS=1: 10 minutes")
@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("rows", ALL)
@pytest.mark.parametrize("name", NAMES)
def test_with_up_to_four_ranks(four: Ranks, name: str, rows: str, exchange: str) -> None:
    images, texts = ALL[rows]
    if texts is not None and name not in TAKES_IDS:
        return
    check(four, Spread(name, images, texts, texts is not None, (("exchange", exchange),)))
