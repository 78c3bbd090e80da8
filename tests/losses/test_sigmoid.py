"""The sigmoid loss: its value at one pair and at large logits, and its bias."""

import math

import pytest
import torch

from itm_kernels import losses, reference
from loss_cases import batch


def test_sigmoid_of_one_pair() -> None:
    """SigLIP keeps the positive: softplus(-(10 cos - 10)) is log 2 at a cosine of 1."""
    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    assert losses.SigmoidLoss()(x, 2 * x).item() == pytest.approx(math.log(2.0))


def test_formula_of_the_sigmoid_is_exact_at_large_logits() -> None:
    """-log sigmoid(-z) = z + log(1 + e^-z), which is z + 1e-11 at 25."""
    x, scale = torch.eye(2, dtype=torch.float64), torch.tensor(25.0, dtype=torch.float64)
    loss = reference.sigmoid(x, x.flip(0), scale, scale * 0, None, None, None)
    wanted = 25 + torch.tensor(-25.0).double().exp().log1p() + torch.tensor(2.0).double().log()
    torch.testing.assert_close(loss, wanted.expand(2), rtol=1e-15, atol=0)


def test_the_bias_of_a_sigmoid_can_be_set_and_shows() -> None:
    sides = batch()
    for learnable in (False, True):
        criterion = losses.SigmoidLoss(learnable=learnable)
        criterion.logit_bias = -5
        expected = losses.SigmoidLoss(logit_bias=-5.0, learnable=learnable)
        assert torch.equal(criterion(*sides), expected(*sides))
        assert isinstance(criterion.logit_bias, torch.nn.Parameter) == learnable
        assert "logit_bias=-5, " in repr(criterion)
