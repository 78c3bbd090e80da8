"""Faults that losses over ranks have had in other projects; each name says what holds here."""

import pytest
import torch
from torch import Tensor

import faults_on_ranks as ranks_run
from calls_on_ranks import OF_PAIRS
from itm_kernels import functional
from loss_cases import batch
from ranks import Ranks


def whole(name: str, **options: object) -> tuple[Tensor, list[Tensor]]:
    inputs = batch(sum(ranks_run.ROWS))
    value = getattr(functional, name)(*inputs, **options)
    return value, list(inputs)


def together(found: list[ranks_run.Own]) -> list[Tensor]:
    return [torch.cat([getattr(own, name) for own in found]) for name in ("image", "text")]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", OF_PAIRS)
def test_rows_get_the_gradient_of_other_ranks_losses(two: Ranks, name: str, rank: int) -> None:
    """A plain all_gather has no gradient: rows then only learn from their own rank's loss.

    lightly #1528, #1920 and #1977, pytorch-metric-learning #363, pytorch #153016.
    """
    found = two.run(ranks_run.losses_of_one_rank, name, rank)
    values, inputs = whole(name, reduction="none")
    parts = values.split(ranks_run.ROWS)
    expected = torch.autograd.grad(parts[rank].sum(), inputs)
    for gradient, wanted in zip(together(found), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-10)
    # The other rank's images are this rank's negatives.
    assert found[1 - rank].image.abs().sum() > 0
    for own, part in zip(found, parts, strict=True):
        torch.testing.assert_close(own.value, part.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("factor", [1.0, 0.25, 1024.0])
@pytest.mark.parametrize("name", OF_PAIRS)
def test_factors_of_the_loss_scale_the_gradient_once(two: Ranks, name: str, factor: float) -> None:
    """The gradient averaged over ranks is that of one process: not W times it, nor 1/W.

    open_clip #616 and #957.
    """
    found = two.run(ranks_run.scaled, name, factor)
    value, inputs = whole(name)
    expected = torch.autograd.grad(factor * value, inputs)
    for gradient, wanted in zip(together(found), expected, strict=True):
        torch.testing.assert_close(gradient / 2, wanted, rtol=1e-10, atol=1e-10 * factor)


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
@pytest.mark.parametrize("name", OF_PAIRS)
def test_rows_need_not_be_contiguous(two: Ranks, name: str, layout: str, exchange: str) -> None:
    """Collectives read memory: those of other layouts have sent wrong rows (pytorch #120386)."""
    plain = "expanded-copy" if layout == "expanded" else "plain"
    found = two.run(ranks_run.with_layout, name, layout, exchange)
    expected = two.run(ranks_run.with_layout, name, plain, exchange)
    for own, wanted in zip(found, expected, strict=True):
        for mine, theirs in zip(own, wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OF_PAIRS)
def test_positives_follow_rows_over_ranks(two: Ranks, name: str) -> None:
    """Labels of a rank that start at 0 name other ranks' rows.

    sentence-transformers #3453, lightly #1177.
    """
    eye = torch.eye(sum(ranks_run.ROWS), dtype=torch.float64)
    expected = getattr(functional, name)(eye, eye).item()
    assert two.run(ranks_run.identity, name) == pytest.approx([expected] * 2, rel=1e-12, abs=1e-12)
    wrong = getattr(functional, name)(eye, eye.roll(1, 0)).item()
    assert wrong > expected + 0.1


@pytest.mark.parametrize("name", OF_PAIRS)
def test_every_rank_has_the_same_bits(two: Ranks, name: str) -> None:
    """Ranks that stop early or choose a checkpoint by the loss must decide alike."""
    one, other = two.run(ranks_run.in_low_precision, name)
    assert one.value.dtype == torch.float32
    assert torch.equal(one.value, other.value)
    again, _ = two.run(ranks_run.in_low_precision, name)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))


@pytest.mark.parametrize("name", OF_PAIRS)
def test_validation_without_gradients(two: Ranks, name: str) -> None:
    """`torch.no_grad()` has the value of training."""
    value, _ = whole(name)
    found = two.run(ranks_run.validation, name)
    assert found == pytest.approx([value.item()] * 2, rel=1e-12)
