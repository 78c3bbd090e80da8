"""The figures of a batch that a loss can log."""

import math

import pytest
import torch

from itm_kernels import diagnostics, losses
from loss_cases import BY_NAME, batch, unrelated_rows


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
    image, text = unrelated_rows()
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
    image, text = unrelated_rows()
    ids = {"image_ids": torch.arange(16), "text_ids": torch.arange(16) // 2 * 17}
    criterion = losses.InfoNCELoss(unmatched="negative")
    found = diagnostics(criterion, image, text, **ids)
    assert found["positive"] == pytest.approx((image[0] @ text[:2].T).mean().item(), abs=1e-6)
    alone = diagnostics(criterion, image[:1], text[:1])
    assert math.isnan(alone["hardest_text"])
    assert alone["violated_by_text"] == 0


def test_messages() -> None:
    image, text = unrelated_rows()
    with pytest.raises(TypeError, match="diagnostics: loss must be a Module of itm_kernels.losses"):
        diagnostics(torch.nn.Identity(), image, text)
    with pytest.raises(ValueError, match=r"diagnostics: image \[16, 512\] and text \[3, 512\] dif"):
        diagnostics(losses.InfoNCELoss(), image, text[:3])
