"""Options that kernels compute in fp32: refused beyond its range, accepted up to it."""

from collections.abc import Callable

import pytest
import torch

from itm_kernels import functional, losses, mining, ops, synthesis

X = torch.eye(3)
POSITIVE = r"must lie between 1.18e-38 and 8.51e\+37, so that fp32 holds it and 1 over that, got "
SQUARED = r"sigma must lie between 1.08e-19 and 9.22e\+18, so that fp32 holds its square and 1 over"
ANY = r"must lie between -3.4e\+38 and 3.4e\+38, so that fp32 holds it, got "


@pytest.mark.parametrize("value", [1e-39, 1e-300, 1e38, 1e39, 1e300])
@pytest.mark.parametrize(
    "call",
    [
        lambda v: losses.InfoNCELoss(v),
        lambda v: losses.SigmoidLoss(v, learnable=True),
        lambda v: losses.InfoCMRLoss(v),
        lambda v: losses.ITOLoss(v),
        lambda v: losses.FusionContrastiveLoss(v),
        lambda v: losses.MultiViewAlignmentLoss(v),
        lambda v: mining.HardNegativeSampler(temperature=v),
        lambda v: functional.info_nce_loss(X, X, logit_scale=v),
        lambda v: functional.sigmoid_loss(X, X, logit_scale=v),
        lambda v: functional.info_cmr_loss(X, X, temperature=v),
        lambda v: functional.fusion_contrastive_loss(X[None].expand(2, 3, 3), logit_scale=v),
        lambda v: functional.multi_view_alignment_loss(X[None], X[None], logit_scale=v),
    ],
)
def test_scales_and_temperatures(call: Callable[[float], object], value: float) -> None:
    with pytest.raises(ValueError, match=POSITIVE):
        call(value)


@pytest.mark.parametrize("value", [1e-39, 1e-20, 1e19, 1e30])
@pytest.mark.parametrize(
    "call",
    [
        lambda v: losses.InfoCMRLoss(sigma=v),
        lambda v: functional.info_cmr_loss(X, X, sigma=v),
        lambda v: synthesis.HardNegativeSynthesis(sigma=v),
        lambda v: ops.rbf_synthesis(X, X, torch.zeros(3).long(), 1, v),
        lambda v: ops.rbf_synthesis_logits(X, X, torch.zeros(3).long(), 1, v),
    ],
)
def test_sigma(call: Callable[[float], object], value: float) -> None:
    with pytest.raises(ValueError, match=SQUARED):
        call(value)


@pytest.mark.parametrize("value", [-1e39, 1e39])
@pytest.mark.parametrize(
    "call",
    [
        lambda v: losses.MaxOfHingesLoss(v),
        lambda v: losses.SumOfHingesLoss(v),
        lambda v: losses.IMCLoss(v),
        lambda v: losses.IMCLoss(weight=v),
        lambda v: losses.SigmoidLoss(logit_bias=v),
        lambda v: losses.IntraModalConstraint("l2", mode="paper", lower=-abs(v), upper=abs(v)),
        lambda v: functional.max_of_hinges_loss(X, X, margin=v),
        lambda v: functional.sum_of_hinges_loss(X, X, margin=v),
        lambda v: functional.sigmoid_loss(X, X, logit_bias=v),
        lambda v: ops.log_sum_exp(X, X, v),
    ],
)
def test_other_numbers(call: Callable[[float], object], value: float) -> None:
    with pytest.raises(ValueError, match=f"{ANY}|must be finite and >= 0"):
        call(value)


def test_options_that_are_set_later() -> None:
    criterion = losses.InfoCMRLoss()
    with pytest.raises(ValueError, match=SQUARED):
        criterion.sigma = 1e-20
    with pytest.raises(ValueError, match=POSITIVE):
        criterion.temperature = 1e-39


def test_fp64_does_not_widen_them() -> None:
    """One rule for every precision and backend, and for constructors, which see no embeddings."""
    with pytest.raises(ValueError, match=POSITIVE):
        functional.info_nce_loss(X.double(), X.double(), logit_scale=1e39)


# Just inside: backends give what fp64 gives, rounded.
@pytest.mark.parametrize(
    "loss",
    [
        lambda b: losses.InfoNCELoss(8e37, backend=b),
        lambda b: losses.InfoNCELoss(1.2e-38, backend=b),
        lambda b: losses.SigmoidLoss(8e37, backend=b),
        lambda b: losses.InfoCMRLoss(
            1.2e-38, num_clusters=0, num_noise=0, reduction="none", backend=b
        ),
        lambda b: losses.InfoCMRLoss(8e37, num_clusters=0, num_noise=0, backend=b),
        lambda b: losses.MaxOfHingesLoss(1e37, backend=b),
        lambda b: losses.SumOfHingesLoss(1e37, reduction="none", backend=b),
    ],
)
def test_the_ends_of_the_ranges(loss: Callable[[str], torch.nn.Module], backend: str) -> None:
    rows = unit_rows(2, 5)
    found, exact = loss(backend)(*rows), loss("reference")(*rows.double())
    assert found.isfinite().all()
    torch.testing.assert_close(found, exact.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", ["attention", "kam"])
@pytest.mark.parametrize("sigma", [1.1e-19, 9e18])
def test_the_ends_of_sigma(sigma: float, weights: str, backend: str) -> None:
    anchors, members = unit_rows(2, 8)
    clusters = torch.arange(8) % 2, 2, sigma
    found, exact = (
        ops.rbf_synthesis_logits(*rows, *clusters, weights=weights, ridge=0.1, backend=name).cosine
        for rows, name in (
            ((anchors, members), backend),
            ((anchors.double(), members.double()), "reference"),
        )
    )
    torch.testing.assert_close(found, exact.float(), rtol=1e-4, atol=1e-4)


def unit_rows(sides: int, N: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(sides, N, 6, generator=generator), dim=-1)
