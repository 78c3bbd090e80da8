"""Ranks that call a loss differently are told so on every rank, and none waits for another."""

from inspect import signature
from typing import Any

import pytest
import torch

from calls_on_ranks import (
    NAMES,
    Arguments,
    call_each,
    call_own_loss,
    call_with_gradient,
    call_without_this_process,
    ids,
    one_rank_and_no_group,
    rows,
    takes,
)
from itm_kernels import functional, losses
from ranks import Ranks, RanksFailedError

# Two values of every option of the losses, and what the error names for each of them.
OPTIONS: dict[str, tuple[Any, Any, str, str]] = {
    "logit_scale": (10.0, 20.0, "logit_scale=10.0", "logit_scale=20.0"),
    "temperature": (0.5, 0.25, "logit_scale=2.0", "logit_scale=4.0"),
    "max_scale": (3.0, 4.0, "max_scale=3.0", "max_scale=4.0"),
    "logit_bias": (-1.0, -2.0, "logit_bias=-1.0", "logit_bias=-2.0"),
    "margin": (0.1, 0.2, "margin=0.1", "margin=0.2"),
    "mining": ("hardest", "semihard", "mining='hardest'", "mining='semihard'"),
    "reduction": ("sum", "mean", "reduction='sum'", "reduction='mean'"),
    "unmatched": ("error", "negative", "unmatched='error'", "unmatched='negative'"),
    "gradients": ("mean", "sum", "gradients='mean'", "gradients='sum'"),
    "exchange": ("gather", "ring", "exchange='gather'", "exchange='ring'"),
    "metric": ("l1", "l2", "metric='l1'", "metric='l2'"),
    "lower": (0.0, 0.1, "lower=0.0", "lower=0.1"),
    "upper": (0.8, 0.9, "upper=0.8", "upper=0.9"),
    "weight": (1.0, 2.0, "weight=1.0", "weight=2.0"),
    "mode": ("paper", "repel", "mode='paper'", "mode='repel'"),
    "thresholds": ("row0", "per_row", "thresholds='row0'", "thresholds='per_row'"),
    "num_clusters": (2, 3, "num_clusters=2", "num_clusters=3"),
    "num_noise": (4, 5, "num_noise=4", "num_noise=5"),
    "sigma": (0.1, 0.2, "sigma=0.1", "sigma=0.2"),
    "weights": ("kam", "attention", "weights='kam'", "weights='attention'"),
    "clustering": ("shared", "per_anchor", "clustering='shared'", "clustering='per_anchor'"),
    "detach": (True, False, "detach=True", "detach=False"),
}
# `backend` may differ between ranks; the others are not options.
OTHERS = {"image", "text", "image_ids", "text_ids", "backend", "group", "generator"}
OPTIONS_OF_LOSSES = [
    (name, option)
    for name in NAMES
    for option in signature(getattr(functional, name)).parameters
    if option not in OTHERS
]


def errors(ranks: Ranks, name: str, first: Arguments, second: Arguments) -> list[str | None]:
    """Return the errors of two ranks; the group is usable afterwards."""
    with pytest.raises(RanksFailedError) as caught:
        ranks.run(call_each, name, [first, second])
    ranks.run(call_each, name, [{}, {}])
    return caught.value.errors


def check_disagreement(
    ranks: Ranks, name: str, first: Arguments, second: Arguments, shown: tuple[str, str]
) -> None:
    one, other = errors(ranks, name, first, second)
    assert one == other
    assert one == (
        f"ValueError: {name}: ranks disagree: rank 0 has {shown[0]}, rank 1 has {shown[1]}; "
        "pass the same options, dtype and kinds of arguments on all ranks"
    )


@pytest.mark.parametrize(("name", "option"), OPTIONS_OF_LOSSES)
def test_different_option(two: Ranks, name: str, option: str) -> None:
    first, second, *shown = OPTIONS[option]
    more = {"logit_scale": torch.tensor(2.0)} if option == "max_scale" else {}
    check_disagreement(two, name, {option: first, **more}, {option: second, **more}, tuple(shown))


@pytest.mark.parametrize("name", NAMES)
def test_different_dtype(two: Ranks, name: str) -> None:
    shown = "image: float64 [rows, 7]", "image: float32 [rows, 7]"
    check_disagreement(two, name, {}, rows(torch.float32), shown)


@pytest.mark.parametrize("name", NAMES)
def test_different_number_of_columns(two: Ranks, name: str) -> None:
    shown = "image: float64 [rows, 7]", "image: float64 [rows, 8]"
    check_disagreement(two, name, {}, rows(D=8), shown)


@pytest.mark.parametrize("name", NAMES)
def test_ids_on_one_rank_only(two: Ranks, name: str) -> None:
    given = ids([0, 1, 2], [0, 1, 2])
    check_disagreement(two, name, given, {}, ("image_ids: given", "image_ids: None"))
    check_disagreement(two, name, {}, given, ("image_ids: None", "image_ids: given"))


@pytest.mark.parametrize("name", NAMES)
def test_gradient_on_one_rank_only(two: Ranks, name: str) -> None:
    with pytest.raises(RanksFailedError) as caught:
        two.run(call_with_gradient, name, [True, False])
    one, other = caught.value.errors
    assert one == other and one is not None
    assert one.startswith(
        f"ValueError: {name}: ranks disagree: rank 0 has image: float64 [rows, 7] with gradient, "
        "rank 1 has image: float64 [rows, 7];"
    )


LOSSES = ["sum_of_hinges_loss", "info_nce_loss"]


def test_different_losses(two: Ranks) -> None:
    """Each rank names the function that it called; the rest is equal."""
    with pytest.raises(RanksFailedError) as caught:
        two.run(call_own_loss, LOSSES)
    said = "rank 0 has sum_of_hinges_loss, rank 1 has info_nce_loss;"
    for name, error in zip(LOSSES, caught.value.errors, strict=True):
        assert error is not None
        assert error.startswith(f"ValueError: {name}: ranks disagree: {said}")


INVALID = {
    "dtype": ({"image": torch.zeros(3, 7, dtype=torch.int64)}, "TypeError", "floating point"),
    "no tensor": ({"image": [1.0]}, "TypeError", "image must be a"),
    "columns": ({"text": torch.zeros(3, 8, dtype=torch.float64)}, "ValueError", "text"),
    "dimensions": ({"image": torch.zeros(7, dtype=torch.float64)}, "ValueError", "image must have"),
    "reduction": ({"reduction": "max"}, "ValueError", "reduction must be one of"),
    "backend": ({"backend": "cuda"}, "ValueError", "backend must be one of"),
    "gradients": ({"gradients": "max"}, "ValueError", "gradients must be one of"),
    "exchange": ({"exchange": "star"}, "ValueError", "exchange must be one of"),
    "one of the ids": ({"image_ids": torch.arange(3)}, "ValueError", "text_ids"),
    "ids of a wrong dtype": (
        {"image_ids": torch.zeros(3), "text_ids": torch.zeros(3)},
        "TypeError",
        "image_ids",
    ),
}


INVALID_OF_LOSSES = [
    (name, invalid)
    for name in NAMES
    for invalid, (arguments, *_) in INVALID.items()
    if all(takes(name, option) for option in arguments)
]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("name", "invalid"), INVALID_OF_LOSSES)
def test_invalid_argument_of_one_rank(two: Ranks, name: str, invalid: str, rank: int) -> None:
    """The rank raises its own error, and the other RuntimeError with its message."""
    arguments, kind, message = INVALID[invalid]
    each = [arguments, {}] if rank == 0 else [{}, arguments]
    found = errors(two, name, *each)
    own, other = found[rank], found[1 - rank]
    assert own is not None and own.startswith(f"{kind}: {name}: ") and message in own
    said = own.removeprefix(f"{kind}: {name}: ")
    assert other == f"RuntimeError: {name}: rank {rank} raised: {said}"


def test_invalid_arguments_of_both_ranks(two: Ranks) -> None:
    first, second = {"reduction": "max"}, {"backend": "cuda"}
    one, other = errors(two, "info_nce_loss", first, second)
    assert one is not None and "reduction must be one of" in one
    assert other is not None and "backend must be one of" in other


WRONG_IDS = {
    "text without an image": (ids([0, 1, 2], [0, 1, 2]), ids([3, 4, 5], [3, 4, 9])),
    "two images of one text": (ids([0, 1, 2], [0, 1, 2]), ids([3, 4, 0], [4, 3, 0])),
}


@pytest.mark.parametrize("wrong", WRONG_IDS)
@pytest.mark.parametrize("name", NAMES)
def test_wrong_ids_of_one_rank(two: Ranks, name: str, wrong: str) -> None:
    one, other = errors(two, name, *WRONG_IDS[wrong])
    assert one == other
    assert one is not None and one.startswith(f"ValueError: {name}: ") and "_ids" in one


@pytest.mark.parametrize("name", NAMES)
def test_unequal_numbers_without_ids(two: Ranks, name: str) -> None:
    """Without ids, rows are pairs on every rank, even if the global numbers are equal."""
    image, text = rows()["image"], rows()["text"]
    one, other = errors(two, name, {"image": image[:2]}, {"text": text[:2]})
    assert one == other
    assert one == (
        f"ValueError: {name}: rank 0 has 2 images and 3 texts; without ids they are pairs: "
        "pass image_ids and text_ids on all ranks for unequal numbers"
    )


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_on_any_rank(two: Ranks, name: str) -> None:
    one, other = errors(two, name, rows(N=0), rows(N=0))
    assert one == other
    assert one == f"ValueError: {name}: image has no rows on any rank; skip empty batches"


@pytest.mark.parametrize("name", NAMES)
def test_no_process_group(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name}: group must be a process group, got str 'WORLD'"):
        getattr(functional, name)(**rows(), group="WORLD")


def test_module_checks_its_group() -> None:
    with pytest.raises(TypeError, match="InfoNCELoss: group must be a process group, got int 2"):
        losses.InfoNCELoss(group=2)


def test_group_without_this_process(two: Ranks) -> None:
    with pytest.raises(RanksFailedError) as caught:
        two.run(call_without_this_process, "info_nce_loss")
    first, second = caught.value.errors
    assert first is None
    assert second == (
        "ValueError: info_nce_loss: group does not contain this process; "
        "call the loss on the group's ranks only"
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "reduction"),
    [
        (n, r)
        for n in NAMES
        for r in (("none", "sum", "mean") if takes(n, "reduction") else (None,))
    ],
)
def test_one_rank_computes_the_bits_of_no_group(
    two: Ranks, name: str, dtype: torch.dtype, reduction: str | None
) -> None:
    """It uses no collective, with and without ids."""
    with_ids = ids([3, 4, 5, 6, 7], [7, 4, 5, 6, 3])
    for options in ({}, with_ids):
        options = {**options, **({"reduction": reduction} if reduction else {})}
        assert two.run(one_rank_and_no_group, name, dtype, options, width=1) == [True]
