"""The compiled intra-modal constraint: its mask, and every way to reach a gradient."""

import pytest
import torch
from torch import Tensor

from itm_kernels import functional, ops
from itm_kernels.reference import similarity
from kernels import MARKS
from loss_cases import batch, gradients

pytestmark = MARKS["native"]
METRICS = ("cosine", "l1", "l2", "sqeuclidean")


def band(x: Tensor, metric: str, share: float) -> tuple[float, float]:
    """Return bounds that about this share of all distances lies between, on none of them."""
    delta = similarity(x.detach(), x.detach(), metric)
    delta = 1 - delta if metric == "cosine" else delta
    pairs = delta[torch.ones_like(delta, dtype=torch.bool).triu(1)].sort().values
    between = (pairs[1:] + pairs[:-1]) / 2
    low, high = (between[int(at * len(between))] for at in (0.3, 0.3 + share))
    return float(low), float(high)


# 300 rows are three blocks of 128. D = 9: no mask is kept (300 > 32 * 9); 37: one is; 333: all
# distances are made at once where rows have norms. A share of 0.5 goes through products.
@pytest.mark.parametrize("D", [9, 37, 333])
@pytest.mark.parametrize("share", [0.02, 0.5])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mode", ["paper", "repel", "official", "per_row"])
@pytest.mark.parametrize("repeated", [False, True])
def test_every_way_gives_the_references_gradient(
    D: int, share: float, metric: str, mode: str, repeated: bool
) -> None:
    x, _ = batch(300, D)
    ids = torch.arange(300) % 100 if repeated else None
    low, high = band(x, metric, share)
    if mode in ("official", "per_row"):
        # Similarities between upper and 1 - lower; else ranks.
        low, high = (low, 1 - high) if metric == "cosine" else (0.3, 0.3 + share)
    options = {"metric": metric, "lower": low, "upper": high, "ids": ids}
    if mode == "per_row":
        options["thresholds"] = mode
    options["mode"] = "official" if mode == "per_row" else mode
    found, wanted = (
        functional.intra_modal_constraint(x, **options, reduction="none", backend=name)
        for name in ("native", "reference")
    )
    assert wanted.count_nonzero() > 200
    torch.testing.assert_close(found, wanted)
    pull = torch.linspace(-1, 2, 300, dtype=x.dtype)
    torch.testing.assert_close(
        gradients((found * pull).sum(), x), gradients((wanted * pull).sum(), x)
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("N", [1, 31, 33, 127, 300])
def test_the_mask_is_the_band(metric: str, N: int) -> None:
    x, _ = batch(N, 37)
    x = x.detach()
    ids = torch.arange(N) // 2
    low, high = band(x, metric, 0.4) if N > 1 else (0.1, 0.9)
    *_, mask = torch.ops.itm_native.intra_modal_forward(
        x, ids, metric, "paper", low, high, False, True
    )
    delta = similarity(x, x, metric)
    delta = 1 - delta if metric == "cosine" else delta
    wanted = (delta > low) & (delta < high) & (ids[:, None] != ids)
    bits = (mask[:, :, None] >> torch.arange(32)) & 1
    assert torch.equal(bits.flatten(1)[:, :N].bool(), wanted)
    assert not bits.flatten(1)[:, N:].any()


def test_a_row_that_is_not_a_number_shows_in_every_sum() -> None:
    x, _ = batch(140, 16)
    x = x.detach()
    x[130, 3] = torch.nan
    for metric in METRICS:
        assert ops.intra_modal_sum(x, 0.5, 0.9, metric, backend="native").isnan().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("mode", ["paper", "repel", "official"])
def test_the_gradient_of_l1_is_nan_where_the_references_is(mode: str, value: float) -> None:
    x, _ = batch(140, 16)
    with torch.no_grad():
        x[130, 3] = x[7, 3] = value
    given = {"lower": 10.0, "upper": 18.0, "metric": "l1", "mode": mode}
    if mode == "official":
        given["lower"], given["upper"] = 0.2, 0.6
    found, wanted = (
        gradients(functional.intra_modal_constraint(x, **given, backend=name), x)
        for name in ("native", "reference")
    )
    assert all(grad.isnan().any() for grad in wanted)
    torch.testing.assert_close(found, wanted, equal_nan=True)
