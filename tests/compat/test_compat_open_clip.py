"""The drop-in CLIP and SigLIP losses against the semantics of OpenCLIP."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from compat_formulas import clip_loss, siglip_loss
from itm_kernels.compat.open_clip import ClipLoss, SigLipLoss
from oracles.batches import unit_pair
from oracles.comparing import same

DTYPES = [torch.float32, torch.float64]
SIZES = [1, 2, 17]


def scalars(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A logit scale and a logit bias that are learned."""
    scale = torch.tensor(7.5, dtype=dtype, requires_grad=True)
    return scale, torch.tensor(-3.25, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_clip_loss(dtype, size) -> None:
    """With and without a bias; features are not normalised inside."""
    image, text = (2.5 * x.detach() for x in unit_pair(size, dtype))
    image.requires_grad_(), text.requires_grad_()
    scale, bias = scalars(dtype)
    same(ClipLoss(), clip_loss, image, text, scale)
    same(ClipLoss(), clip_loss, image, text, scale, bias)
    result = ClipLoss()(image, text, scale, None, True)
    assert list(result) == ["contrastive_loss"]
    torch.testing.assert_close(result["contrastive_loss"], ClipLoss()(image, text, scale))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_siglip_loss(dtype, size) -> None:
    """The sum over all pairs divided by the batch; features are not normalised inside."""
    image, text = (1.5 * x.detach() for x in unit_pair(size, dtype))
    image.requires_grad_(), text.requires_grad_()
    scale, bias = scalars(dtype)
    same(SigLipLoss(), siglip_loss, image, text, scale, bias)
    result = SigLipLoss()(image, text, scale, bias, True)
    assert list(result) == ["contrastive_loss"]
    torch.testing.assert_close(result["contrastive_loss"], SigLipLoss()(image, text, scale, bias))


@pytest.mark.parametrize("loss", [ClipLoss(), SigLipLoss()])
def test_collapsed_features(loss) -> None:
    """Equal rows: log N for CLIP; finite and equal to the formula for both."""
    image = torch.full((4, 3), 0.5, dtype=torch.float64, requires_grad=True)
    expected = clip_loss if isinstance(loss, ClipLoss) else siglip_loss
    scale, bias = scalars(torch.float64)
    same(loss, expected, image, image, scale, bias)
    if isinstance(loss, ClipLoss):
        assert loss(image, image, scale).item() == pytest.approx(math.log(4))


def test_siglip_distribution_option() -> None:
    """The original's ways to exchange features are accepted; one process needs none of them."""
    image, text = unit_pair(3, torch.float64)
    scale, bias = scalars(torch.float64)
    for dist_impl in ("bidir", "shift", "reduce", "gather"):
        same(SigLipLoss(False, 0, 1, dist_impl), siglip_loss, image, text, scale, bias)
    with pytest.raises(ValueError, match="dist_impl must be one of 'bidir', .* got 'ring'"):
        SigLipLoss(dist_impl="ring")


@pytest.mark.parametrize("loss", [ClipLoss(), SigLipLoss()])
def test_plain_numbers_and_unequal_batches(loss) -> None:
    """Scale and bias may be numbers; there is one text per image."""
    image, text = unit_pair(4, torch.float64)
    expected = clip_loss if isinstance(loss, ClipLoss) else siglip_loss
    wanted = expected(image, text, torch.tensor(3.0).double(), torch.tensor(-2.0).double())
    torch.testing.assert_close(loss(image, text, 3.0, -2.0), wanted)
    with pytest.raises(ValueError, match=r"image_features \[4, 12\] and text_features \[3, 12\]"):
        loss(image, text[:3], 3.0, -2.0)
