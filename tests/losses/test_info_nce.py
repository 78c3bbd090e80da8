"""InfoNCE: logits that lie far apart, small losses, learnt scales, products in Triton."""

import math
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import emulated
from cuda_launches import of_step
from itm_kernels import _checks, backends, functional, losses
from itm_kernels.losses import _contrast
from kernels import only
from loss_cases import batch

EPS = torch.finfo(torch.float32).eps


def test_a_small_contrastive_loss_keeps_its_digits(backend: str) -> None:
    """At the end of training logits are near 100: their log-sum errs by 1e-5, the loss is 1e-9."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(65, 24, generator=generator)
    rows = [shared + 0.3 * torch.randn(65, 24, generator=generator) for _ in range(2)]
    image, text = (t.requires_grad_() for t in rows)
    loss = losses.InfoNCELoss(100.0, backend=backend)(image, text)
    exact = losses.InfoNCELoss(100.0, backend="reference")(image.double(), text.double())
    assert 0 < exact < 1e-8
    assert (loss - exact).abs() < 1e-9
    (wanted,) = torch.autograd.grad(exact, image)
    (found,) = torch.autograd.grad(loss, image)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())


def test_a_scale_that_passed_its_bound_comes_back() -> None:
    """Without a gradient beyond the bound, a scale that momentum carried over it stayed there."""
    generator = torch.Generator().manual_seed(0)
    image, other = torch.randn(2, 64, 32, generator=generator)
    image[1::2] = image[::2] + 0.2 * image[1::2]  # negatives near enough to increase the scale
    criterion = losses.InfoNCELoss(95.0, learnable=True)
    optimizer = torch.optim.AdamW(criterion.parameters(), lr=0.02, weight_decay=0)

    def train(text: Tensor, steps: int) -> float:
        for _ in range(steps):
            optimizer.zero_grad()
            criterion(image, text).backward()
            optimizer.step()
        return criterion.logit_scale.log.item()

    assert train(image, 20) > math.log(100)
    assert train(other, 60) < math.log(60)


@only("emulated")
def test_a_learnt_scale_costs_no_launch_of_ours() -> None:
    counts = {}
    for learnable in (False, True):
        module = losses.InfoNCELoss(learnable=learnable)
        with emulated.as_native(), patch.object(_checks, "can_read", return_value=False):
            counts[learnable] = of_step(module, *batch(2, 8, torch.float32)).own
    assert counts == {False: 3, True: 3}


@only("triton")
@pytest.mark.parametrize(
    ("dtype", "products"), [(torch.bfloat16, 2), (torch.float16, 4), (torch.float32, 6)]
)
def test_weights_meet_rows_on_tensor_cores(
    dtype: torch.dtype, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fp16 product per side for bf16, two for few numbers of fp16, three for fp32."""
    from itm_kernels.triton import _products

    seen = []
    add = _products._add

    def noted(total, a, b, out):
        seen.append((a.dtype, b.dtype))
        return add(total, a, b, out)

    monkeypatch.setattr(_products, "_add", noted)
    x, y = (torch.randn(33, 40).to(dtype).requires_grad_() for _ in range(2))
    functional.info_nce_loss(x, y, backend="triton").backward()
    assert seen == [(torch.float16, torch.float16)] * products


@only("triton")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [50.0, 3000.0])
def test_rows_of_a_tile_may_have_logits_far_apart(dtype: torch.dtype, scale: float) -> None:
    """Beyond e^60 rows and columns need separate exponentials: some rows oppose all others."""
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(1, 40, generator=generator)
    near = [one + 0.1 * torch.randn(33, 40, generator=generator) for _ in range(2)]
    near[0][3:7] *= -1
    near[1][9] *= -1

    def results(dtype: torch.dtype, backend: str) -> list[Tensor]:
        sides = [side.to(start).to(dtype).requires_grad_() for side in near]
        loss = functional.info_nce_loss(*sides, logit_scale=scale, backend=backend)
        return [t.detach().double() for t in (loss, *torch.autograd.grad(loss, sides))]

    start = dtype
    exact, eager, found = (
        results(*how)
        for how in ((torch.float64, "reference"), (dtype, "reference"), (dtype, "triton"))
    )
    for wanted, theirs, ours in zip(exact, eager, found, strict=True):
        allowed = 2 * (theirs - wanted).abs().max() + 4 * EPS * wanted.abs().max()
        assert (ours - wanted).abs().max() <= allowed


def test_positives_outside_the_diagonal_have_their_gradient(backend_name: str) -> None:
    """A tile with a positive is masked wherever the positive lies."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(128, 40, generator=generator).requires_grad_() for _ in range(2)]
    ids = torch.randperm(128, generator=generator)
    both = {"image_ids": torch.arange(128), "text_ids": ids}
    found, wanted = (
        torch.autograd.grad(functional.info_nce_loss(*rows, **both, backend=backend), rows)
        for backend in (backend_name, "reference")
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@only("triton")
def test_pairs_on_the_diagonal_are_one_autograd_function_in_triton() -> None:
    image, text = batch(12, 8)
    with patch.dict(backends.PREFERENCE, cpu=("triton",)):
        loss = functional.info_nce_loss(image, text, reduction="none", backend="triton")
    node = loss.grad_fn
    assert type(node).__name__ == "PairEntropyFunctionBackward"
    after = [type(each).__name__ for each, _ in node.next_functions if each is not None]
    assert after == ["AccumulateGrad", "AccumulateGrad"]


@only("triton")
@pytest.mark.parametrize("views", [False, True])
def test_one_autograd_function_has_the_bits_of_the_operators_in_triton(views: bool) -> None:
    image, text = (t.float() for t in batch(12, 8))
    scale = torch.tensor(7.0, requires_grad=True)

    def results() -> list[Tensor]:
        sides = [(3 * t).detach().requires_grad_() for t in (image, text)]
        rows = [t.view(2, 6, 8) if views else t for t in sides]
        loss = functional.multi_view_alignment_loss if views else functional.info_nce_loss
        value = loss(*rows, logit_scale=scale, backend="triton")
        return [value.detach(), *torch.autograd.grad(value, (*sides, scale))]

    with patch.dict(backends.PREFERENCE, cpu=("triton",)):
        found = results()
        with patch.object(_contrast, "fused_pair_entropy", return_value=None):
            expected = results()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
