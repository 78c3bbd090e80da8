"""An empty band warns once, and a loss's figures of a batch can be logged."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from itm_kernels import diagnostics, functional, losses
from itm_kernels.losses import intra_modal
from loss_cases import BY_NAME, batch


@pytest.fixture(autouse=True)
def untold() -> Iterator[None]:
    intra_modal._warned.clear()
    yield
    intra_modal._warned.clear()


def unrelated(N: int = 16, D: int = 512) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device="cpu").manual_seed(0)
    image, text = normalize(torch.randn(2, N, D, generator=generator, device="cpu"), dim=-1)
    return image.requires_grad_(), text


def told(run: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in found if w.category is intra_modal.EmptyBandWarning]


def test_an_empty_band_warns_once_per_modality() -> None:
    image, text = unrelated()
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
    image, text = unrelated()
    alike = torch.cat([image.detach(), normalize(image.detach() + 0.5 * text)])  # cosines near .9
    assert told(lambda: functional.intra_modal_constraint(alike)) == []
    assert told(lambda: losses.IMCLoss(weight=0)(image, text)) == []
    assert told(lambda: losses.IMCLoss()(image[:1], text[:1])) == []
    nan = image.detach().clone()
    nan[0, 0] = torch.nan
    assert told(lambda: functional.intra_modal_constraint(nan)) == []


def test_no_value_is_read_in_graphs_and_on_other_devices() -> None:
    image, text = unrelated(8, 64)
    criterion = losses.IMCLoss(backend="reference")
    assert told(lambda: criterion(image.to("meta"), text.to("meta"))) == []
    torch._dynamo.reset()
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    assert told(lambda: compiled(image, text)) == []
    each = torch.func.vmap(lambda x: functional.intra_modal_constraint(x, backend="reference"))
    assert told(lambda: each(torch.stack([image, text]).detach())) == []


@pytest.mark.parametrize("name", sorted(name for name in BY_NAME if name.startswith("constraint")))
def test_share_in_band_counts_the_pairs_of_the_constraint(name: str) -> None:
    """There are 7 x 6 ordered pairs; the constraint is 0 exactly if none is inside."""
    image, text = (t.detach() for t in batch(7, 5))
    criterion = BY_NAME[name].build("reference")
    found = diagnostics(criterion, image, text)
    for rows, share in ((image, found["image_in_band"]), (text, found["text_in_band"])):
        assert 0 <= share <= 1
        assert share * 42 == pytest.approx(round(share * 42))
        assert (share > 0) == bool(criterion(rows) != 0)


def test_share_in_band_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])  # cosines .8, .6 and 0
    assert diagnostics(losses.IMCLoss(), x, x)["image_in_band"] == pytest.approx(2 / 3)
    paper = losses.IntraModalConstraint(mode="paper", lower=0.3, upper=0.9)  # distances .2, .4, 1
    assert diagnostics(paper, x, x)["text_in_band"] == pytest.approx(1 / 3)
    ids = torch.tensor([4, 4, 5])  # the pair of .8 is none
    found = diagnostics(losses.IMCLoss(), x, x, image_ids=ids, text_ids=ids)
    assert found["image_in_band"] == pytest.approx(1 / 2)


def test_scores_and_violations_by_hand() -> None:
    scores = torch.tensor([[0.8, 0.7, 0.65], [0.3, 0.6, 0.55], [0.75, 0.2, 0.5]])
    found = diagnostics(losses.MaxOfHingesLoss(0.2), scores, torch.eye(3))
    assert found["positive"] == pytest.approx((0.8 + 0.6 + 0.5) / 3)
    assert found["hardest_text"] == pytest.approx((0.7 + 0.55 + 0.75) / 3)
    assert found["hardest_image"] == pytest.approx((0.75 + 0.7 + 0.65) / 3)
    assert found["violated_by_text"] == found["violated_by_image"] == 1
    assert diagnostics(losses.MaxOfHingesLoss(0.08), scores, torch.eye(3))[
        "violated_by_text"
    ] == pytest.approx(2 / 3)


def test_nan_rows_count_as_no_violation() -> None:
    image, text = torch.eye(3), torch.eye(3)
    text[1, 1] = torch.nan
    found = diagnostics(losses.MaxOfHingesLoss(), image, text)
    assert math.isnan(found["violated_by_text"]) and math.isnan(found["violated_by_image"])


def test_learnt_scales_are_the_current_ones() -> None:
    image, text = unrelated()
    criterion = losses.SigmoidLoss(logit_scale=30.0, learnable=True)
    with torch.no_grad():
        criterion.logit_scale.log.add_(5)
        criterion.logit_bias.add_(1)
    found = diagnostics(criterion, image, text)
    assert found["logit_scale"] == pytest.approx(100)
    assert found["temperature"] == pytest.approx(0.01)
    assert found["logit_bias"] == -9
    assert all(type(value) is float for value in found.values())
    assert -1 <= found["positive"] <= 1  # cosines, whatever the norms of the rows
    doubled = diagnostics(criterion, 2 * image, text)
    assert doubled["positive"] == pytest.approx(found["positive"])


def test_texts_without_an_image_form_no_pair() -> None:
    image, text = unrelated()
    ids = {"image_ids": torch.arange(16), "text_ids": torch.arange(16) // 2 * 17}
    criterion = losses.InfoNCELoss(unmatched="negative")
    found = diagnostics(criterion, image, text, **ids)
    assert found["positive"] == pytest.approx((image[0] @ text[:2].T).mean().item(), abs=1e-6)
    alone = diagnostics(criterion, image[:1], text[:1])
    assert math.isnan(alone["hardest_text"])
    assert alone["violated_by_text"] == 0


def test_messages() -> None:
    image, text = unrelated()
    with pytest.raises(TypeError, match="diagnostics: loss must be a Module of itm_kernels.losses"):
        diagnostics(torch.nn.Identity(), image, text)
    with pytest.raises(ValueError, match=r"diagnostics: image \[16, 512\] and text \[3, 512\] dif"):
        diagnostics(losses.InfoNCELoss(), image, text[:3])
