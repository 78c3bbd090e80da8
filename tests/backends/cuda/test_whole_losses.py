"""Losses of a small batch as one CUDA operator, on the emulator: sums and means."""

from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from emulated import NAMESPACE, SCHEDULES, as_native, needs_compiler
from itm_kernels import _checks, backends, functional, losses
from itm_kernels._positives import Pairs
from itm_kernels.ops._info_nce import fused_info_nce_total
from itm_kernels.ops._sigmoid import fused_sigmoid_total
from small_batch import (
    SIZES,
    Loss,
    assert_as_good_as_eager,
    assert_is_the_reference,
    ids_of,
    layouts,
    leaves,
    not_finite,
    outcome,
    rows,
)

pytestmark = needs_compiler
HINGES: dict[str, Loss] = {
    "max_of_hinges": losses.MaxOfHingesLoss,
    "mean": partial(losses.MaxOfHingesLoss, reduction="mean"),
    "semihard": partial(losses.MaxOfHingesLoss, mining="semihard", margin=3.0),
    # Bands of rows of length 1 or so: with many pairs, with all but few, with none.
    "imc": partial(losses.IMCLoss, lower=0.3, upper=0.1, weight=0.7),
    "imc-full": partial(losses.IMCLoss, lower=-90.0, upper=-90.0, weight=-2.0),
    "imc-empty": partial(losses.IMCLoss, lower=-90.0, upper=80.0),
}
CONTRASTIVE: dict[str, Loss] = {
    "info_nce": losses.InfoNCELoss,
    "info_nce sum": partial(losses.InfoNCELoss, reduction="sum", logit_scale=5.0),
    "info_nce learnt": partial(losses.InfoNCELoss, learnable=True),
    "info_cmr": partial(losses.InfoCMRLoss, num_clusters=0, num_noise=0),
    "sigmoid": losses.SigmoidLoss,
    "sigmoid learnt": partial(losses.SigmoidLoss, learnable=True, reduction="sum"),
}
LOSSES = HINGES | CONTRASTIVE


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    with as_native():
        yield


@pytest.fixture(params=LOSSES)
def loss(request: pytest.FixtureRequest) -> Loss:
    return LOSSES[request.param]


def by_parts(loss: Loss, x: Tensor, y: Tensor, **ids: Tensor) -> list[Tensor]:
    with patch.object(backends, "resolve_total", return_value=None):
        return outcome(loss, x, y, "native", **ids)


@pytest.mark.parametrize(("N", "M", "D"), SIZES)
def test_fp64_is_the_reference(loss: Loss, N: int, M: int, D: int) -> None:
    assert_is_the_reference(loss, rows(N, D), rows(M, D, seed=1), **ids_of(N, M))


# Contrastive losses not at D = 1, where eager's gradient is 0 exactly: a unit vector cannot turn.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("loss", "N", "M", "D"),
    [(name, *size) for name in LOSSES for size in SIZES if name in HINGES or size[2] > 1],
    indirect=["loss"],
)
def test_error_is_at_most_twice_the_references(
    loss: Loss, N: int, M: int, D: int, dtype: torch.dtype
) -> None:
    x, y = rows(N, D, dtype), rows(M, D, dtype, seed=1)
    assert_as_good_as_eager(partial(outcome, loss), x, y, **ids_of(N, M))


@pytest.mark.parametrize("layout", range(5))
def test_strides(loss: Loss, layout: int) -> None:
    assert_is_the_reference(loss, *layouts()[layout])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_show_as_in_the_parts(loss: Loss, value: float) -> None:
    for side, row in ((0, 0), (1, 9)):
        x, y = not_finite(value, side, row)
        wanted = by_parts(loss, x, y)
        assert not all(t.isfinite().all() for t in wanted)
        torch.testing.assert_close(outcome(loss, x, y, "native"), wanted, equal_nan=True)


def test_excluded_pairs_with_an_infinite_row_are_as_in_the_parts(loss: Loss) -> None:
    x, y = not_finite(torch.inf, 1, 9)
    ids = torch.arange(35)
    ids[[9, 20]] = 50  # a square batch of equal ids keeps its diagonal
    given = {"image_ids": ids, "text_ids": ids.clone()}
    wanted = by_parts(loss, x, y, **given)
    torch.testing.assert_close(outcome(loss, x, y, "native", **given), wanted, equal_nan=True)


def test_equal_ids_leave_no_negative(loss: Loss) -> None:
    ids = torch.full((9,), 7)
    assert_is_the_reference(loss, rows(9, 5), rows(9, 5, seed=1), image_ids=ids, text_ids=ids)


def test_repeated_ids_are_no_negatives(loss: Loss) -> None:
    ids = torch.arange(33) % 13
    given = {"image_ids": ids, "text_ids": ids.clone()}
    assert_is_the_reference(loss, rows(33, 6), rows(33, 6, seed=1), **given)


def test_zero_rows_and_ties(loss: Loss) -> None:
    x, y = rows(20, 6), rows(20, 6, seed=1)
    x[[3, 8]] = y[3] = 0
    x[5:8] = y[5:7] = x[4]
    assert_is_the_reference(loss, x, y)
    for grads in outcome(loss, x.half(), y.half(), "native")[1:]:
        assert grads.isfinite().all()


def test_ties_and_hubs(loss: Loss) -> None:
    # Sums of eighths are exact: equal rows have equal scores.
    x, y = ((8 * side).round().abs() / 8 for side in (rows(70, 3), rows(70, 3, seed=1)))
    x[[3, 40]] = y[[5, 66]] = 50.0
    assert_is_the_reference(loss, x, y)


def test_a_text_without_an_image_is_only_a_negative(loss: Loss) -> None:
    ids = {"image_ids": torch.arange(33), "text_ids": torch.arange(70) * 7 % 60}
    assert_is_the_reference(
        partial(loss, unmatched="negative"), rows(33, 9), rows(70, 9, seed=1), **ids
    )


def test_every_schedule_gives_the_same_bits(loss: Loss) -> None:
    x, y, found = rows(35, 70, torch.float32), rows(35, 70, torch.float32, seed=1), []
    for schedule in SCHEDULES:
        with as_native(schedule):
            found.append(outcome(loss, x, y, "native"))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("scale", [1e-3, 5e3])
def test_logits_far_apart_and_close(scale: float) -> None:
    for loss in (losses.InfoNCELoss, partial(losses.SigmoidLoss, logit_bias=-1.0)):
        scaled = partial(loss, logit_scale=scale, max_scale=None)
        assert_is_the_reference(scaled, rows(35, 6), rows(35, 6, seed=1))


@pytest.mark.parametrize("cosine", [True, False])
def test_scores_may_be_dot_products(cosine: bool) -> None:
    sides, scale = leaves(rows(9, 5), rows(9, 5, seed=1)), torch.tensor(3.0).double()
    pairs, given = Pairs(None, None, None), []
    for run in (
        partial(fused_info_nce_total, *sides, scale.requires_grad_(), pairs, 0.5, True),
        partial(fused_sigmoid_total, *sides, scale, -1.0, pairs, True),
    ):
        value = run("native", cosine)
        assert value is not None
        given.append([value, *torch.autograd.grad(value, [*sides, scale])])
    raw = [torch.nn.functional.normalize(side) if cosine else side for side in sides]
    logits = scale * raw[0] @ raw[1].T
    own = torch.arange(9)
    both = (torch.nn.functional.cross_entropy(z, own) for z in (logits, logits.T))
    signs = 1 - 2 * torch.eye(9).double()
    classified = torch.nn.functional.softplus(signs * (logits - 1)).sum() / 9
    for value, found in zip((sum(both) / 2, classified), given, strict=True):
        grads = torch.autograd.grad(value, [*sides, scale], retain_graph=True)
        torch.testing.assert_close(found, [value, *grads])


@pytest.mark.parametrize("name", ["info_nce", "sigmoid"])
def test_wrong_ids_that_cannot_be_checked_give_nan(name: str) -> None:
    x, y = leaves(rows(4, 5), rows(3, 5, seed=1))
    ids = {"image_ids": torch.arange(4), "text_ids": torch.tensor([0, 9, 3])}
    with patch.object(_checks, "can_read", return_value=False):
        value = getattr(functional, f"{name}_loss")(x, y, backend="native", **ids)
    assert value.isnan()
    of_x, of_y = torch.autograd.grad(value, (x, y))
    assert of_x.isnan().all()
    assert of_y[1].isnan().all()


def arguments(cosine: bool) -> dict[str, tuple[Any, ...]]:
    """Return the arguments of both operators except flags; the scale is a number or a tensor."""
    positive = torch.tensor([2, 0, 1, 1, 0])
    pairs = positive, torch.arange(3), positive.clone(), 0.5, cosine
    sides, scale = (rows(3, 6), rows(5, 6, seed=1)), torch.tensor(3.0).double()
    numbers = (scale, 0.0) if cosine else (None, 3.0)
    return {
        "info_nce": (*sides, *numbers, *pairs),
        "sigmoid": (*sides, *numbers, None, -1.0, *pairs),
    }


@pytest.mark.parametrize("name", ["info_nce", "sigmoid"])
@pytest.mark.parametrize("cosine", [True, False])
def test_opcheck(name: str, cosine: bool) -> None:
    operators, given = getattr(torch.ops, NAMESPACE), arguments(cosine)[name]
    forward, backward = (
        getattr(operators, f"{name}_total_{way}") for way in ("forward", "backward")
    )
    for keep in (False, True):
        flags = (keep,) if name == "info_nce" else (False, keep)
        torch.library.opcheck(forward, (*given, *flags))
    total, *parts = forward(*given, *flags)
    torch.library.opcheck(backward, (total, *parts, *given))
