"""IMC: an empty band warns once per modality, and bounds that are set later are checked."""

import warnings
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from itm_kernels import functional, losses
from itm_kernels.losses import _band, imc
from loss_cases import batch, unrelated_rows


@pytest.fixture(autouse=True)
def untold() -> Iterator[None]:
    _band._warned.clear()
    yield
    _band._warned.clear()


def told(run: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in found if w.category is _band.EmptyBandWarning]


def test_an_empty_band_warns_once_per_modality() -> None:
    image, text = unrelated_rows()
    criterion = losses.IMCLoss()
    messages = told(lambda: [criterion(image, text) for _ in range(3)])
    assert len(messages) == 2
    for side, message in zip(("image", "text"), messages, strict=True):
        assert f"imc_loss: the band of the constraint selects no pair of {side}" in message
        assert "metric='cosine', mode='official', lower=0.05, upper=0.5" in message
        assert "itm_kernels.diagnostics" in message
        assert "\n" not in message
    (message,) = told(lambda: functional.intra_modal_constraint(image))
    assert message.startswith("intra_modal_constraint: the band of the constraint selects no pair")


def test_a_band_with_a_pair_does_not_warn() -> None:
    image, text = unrelated_rows()
    alike = torch.cat([image.detach(), normalize(image.detach() + 0.5 * text)])  # cosines near .9
    assert told(lambda: functional.intra_modal_constraint(alike)) == []
    assert told(lambda: losses.IMCLoss(weight=0)(image, text)) == []
    assert told(lambda: losses.IMCLoss()(image[:1], text[:1])) == []
    nan = image.detach().clone()
    nan[0, 0] = torch.nan
    assert told(lambda: functional.intra_modal_constraint(nan)) == []


def test_no_value_is_read_in_graphs_and_on_other_devices() -> None:
    image, text = unrelated_rows(8, 64)
    criterion = losses.IMCLoss(backend="reference")
    assert told(lambda: criterion(image.to("meta"), text.to("meta"))) == []
    torch._dynamo.reset()
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    assert told(lambda: compiled(image, text)) == []
    each = torch.func.vmap(lambda x: functional.intra_modal_constraint(x, backend="reference"))
    assert told(lambda: each(torch.stack([image, text]).detach())) == []


def test_bounds_that_do_not_fit_together_are_an_error_of_the_call() -> None:
    """They are set one after the other, in any order."""
    image, text = batch()
    criterion = losses.IMCLoss(mode="repel")
    criterion.lower = 0.6
    with pytest.raises(ValueError, match="imc_loss: upper must be finite and > 0.6, got 0.5"):
        criterion(image, text)
    criterion.upper = 0.9
    assert criterion(image, text).isfinite()


@pytest.mark.parametrize("alone", [None, "image", "text"])
@pytest.mark.parametrize("mode", ["official", "paper"])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_one_autograd_function_has_the_bits_of_the_parts(
    metric: Any, mode: Any, alone: str | None, backend: str
) -> None:
    image, text = (2 * t.detach() for t in batch(24, 6))
    pairs = {} if alone else {"image_ids": torch.arange(24), "text_ids": torch.arange(24)}

    def results() -> list[Tensor]:
        sides = {"image": image.clone(), "text": text.clone()}
        leaves = [sides[name].requires_grad_() for name in sides if alone in (None, name)]
        bounds = {"lower": 0.1, "upper": 0.9, "metric": metric, "mode": mode, "weight": 0.7}
        loss = functional.imc_loss(*sides.values(), **bounds, **pairs, backend=backend)
        return [loss.detach(), *torch.autograd.grad(3 * loss, leaves)]

    with patch.object(imc, "fused_imc_total", return_value=None):
        found = results()
        with patch.object(imc, "fused_imc", return_value=None):
            expected = results()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
