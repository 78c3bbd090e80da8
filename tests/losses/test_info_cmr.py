"""InfoCMR: its draws, evaluation without draws, and options that one operator does not cover."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from emulated import launches
from itm_kernels import _checks, functional, losses
from itm_kernels.ops import _info_cmr
from kernels import on
from loss_cases import batch


def drawn(backend: str, **options: Any) -> list[Tensor]:
    torch.manual_seed(3)
    sides = batch(6, 8)
    scale = torch.tensor(0.07, dtype=torch.float64, requires_grad=True)
    loss = functional.info_cmr_loss(
        *sides, temperature=scale, num_clusters=3, num_noise=4, backend=backend, **options
    )
    return [loss.detach(), *torch.autograd.grad(loss, (*sides, scale))]


@on("emulated")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weights", ["kam", "attention"])
def test_draws_are_those_of_the_reference(reduction: str, weights: str, kernels: Any) -> None:
    options = {"reduction": reduction, "weights": weights, "sigma": 0.5}
    before = launches()
    found = drawn("auto", **options)
    assert launches() - before < 12  # 7, of which the emulator splits some
    for ours, theirs in zip(found, drawn("reference", **options), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(drawn("native", **options)[0], found[0])


# Options that the operator does not cover.
@on("emulated")
@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "none"},
        {"clustering": "per_anchor"},
        {"detach": False},
        {"unmatched": "negative", "image_ids": torch.arange(6), "text_ids": torch.arange(6)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_options_go_by_parts(options: dict[str, Any], kernels: Any) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("one operator has run")

    sides = [t.detach() for t in batch(6, 8)]
    with patch.object(_info_cmr, "torch_op", refuse):
        functional.info_cmr_loss(*sides, **{"num_clusters": 2, "num_noise": 2, **options})


@on("emulated")
def test_wrong_ids_that_were_not_checked(kernels: Any) -> None:
    sides, ids = batch(4, 5), torch.arange(4)
    with patch.object(_checks, "can_read", return_value=False):
        loss = losses.InfoCMRLoss(num_clusters=2, num_noise=3)(
            *sides, image_ids=ids, text_ids=torch.tensor([0, 1, 9, 3])
        )
    assert loss.isnan()
    assert all(grad.isnan().all() for grad in torch.autograd.grad(loss, sides))


@pytest.mark.compiles
@on("native", "emulated")
def test_it_compiles(kernels: Any) -> None:
    sides = [t.detach().float().requires_grad_() for t in batch(6, 8)]
    criterion = losses.InfoCMRLoss(num_clusters=2, num_noise=3, draws_in_eval=False).eval()
    torch._dynamo.reset()
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    found, wanted = compiled(*sides), criterion(*sides)
    torch.testing.assert_close(found, wanted)
    for ours, theirs in zip(
        *(torch.autograd.grad(loss, sides) for loss in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


# -- evaluation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("clustering", ["shared", "per_anchor"])
def test_nothing_is_drawn_in_eval(clustering: str, backend: str) -> None:
    image, text = (t.detach() for t in batch(9, 5))
    options = {"num_clusters": 3, "sigma": 0.5, "clustering": clustering, "backend": backend}
    criterion = losses.InfoCMRLoss(draws_in_eval=False, **options)
    criterion.eval()
    before = torch.get_rng_state()
    first, second = criterion(image, text), criterion(image, text)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    # Noise and drawn starts are what it lacks, not synthetic negatives.
    without = functional.info_cmr_loss(image, text, num_clusters=0, num_noise=0, backend=backend)
    assert first > without
    reference = losses.InfoCMRLoss(draws_in_eval=False, **{**options, "backend": "reference"})
    torch.testing.assert_close(first, reference.eval()(image, text))
    criterion.train()
    assert not torch.equal(criterion(image, text), criterion(image, text))


@on("emulated")
def test_nothing_is_drawn_in_eval_by_one_operator(kernels: Any) -> None:
    test_nothing_is_drawn_in_eval("shared", "native")


def test_without_synthesis_only_the_noise_is_left_out() -> None:
    image, text = (t.detach() for t in batch(9, 5))
    criterion = losses.InfoCMRLoss(num_clusters=0, draws_in_eval=False).eval()
    expected = functional.info_cmr_loss(image, text, num_clusters=0, num_noise=0)
    assert torch.equal(criterion(image, text), expected)


def test_by_default_eval_draws_as_training_does() -> None:
    image, text = (t.detach() for t in batch(9, 5))
    results = []
    for criterion in (losses.InfoCMRLoss(), losses.InfoCMRLoss().eval()):
        torch.manual_seed(0)
        results.append(criterion(image, text))
    assert torch.equal(*results)
    assert "draws_in_eval=True" in repr(losses.InfoCMRLoss())
