"""Contrastive losses in Triton: what is multiplied, and logits that lie far apart."""

import pytest
import torch

from interpreted import needs_interpreter
from itm_kernels import functional

pytestmark = needs_interpreter

EPS = torch.finfo(torch.float32).eps


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [50.0, 3000.0])
def test_rows_of_a_tile_may_have_logits_far_apart(dtype: torch.dtype, scale: float) -> None:
    """Beyond e^60 rows and columns have exponentials of their own: some rows oppose all others."""
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(1, 40, generator=generator)
    near = [one + 0.1 * torch.randn(33, 40, generator=generator) for _ in range(2)]
    near[0][3:7] *= -1
    near[1][9] *= -1

    def results(dtype: torch.dtype, backend: str) -> list[torch.Tensor]:
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
