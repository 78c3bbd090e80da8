"""Contrastive losses in Triton: products, and logits that lie far apart."""

import pytest
import torch

from itm_kernels import functional
from itm_kernels.ops._log_sum_exp import log_sum_exp
from kernels import MARKS

pytestmark = MARKS["triton"]

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
    """Beyond e^60 rows and columns need separate exponentials: some rows oppose all others."""
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


def test_tiles_without_masks_have_the_gradients_of_masked_ones() -> None:
    """Ids in order leave masks to the diagonal's tiles, ids in disorder to all: the same bits."""
    generator = torch.Generator().manual_seed(0)
    N, M = 128, 130  # whole tiles and ragged ones
    sides = [torch.randn(n, 40, generator=generator).requires_grad_() for n in (N, M)]
    ids = torch.arange(M) // 2

    def gradients(names: torch.Tensor) -> list[torch.Tensor]:
        x_ids = names[torch.arange(N)]
        sums = log_sum_exp(*sides, 2.0, x_ids=x_ids, y_ids=names[ids], backend="triton")
        weight = torch.linspace(0.5, 2, N + M, dtype=sums.row.dtype)
        return list(torch.autograd.grad((torch.cat(sums) * weight).sum(), sides))

    ordered = torch.arange(N)
    shuffled = torch.randperm(N, generator=generator) + 2**40
    assert shuffled[:64].max() > shuffled[64:128].min()
    assert shuffled[:64].min() < shuffled[64:128].max()
    for one, other in zip(gradients(ordered), gradients(shuffled), strict=True):
        assert torch.equal(one, other)


def test_positives_outside_the_diagonal_have_their_gradient() -> None:
    """A tile with a positive is masked wherever the positive lies."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(128, 40, generator=generator).requires_grad_() for _ in range(2)]
    ids = torch.randperm(128, generator=generator)
    both = {"image_ids": torch.arange(128), "text_ids": ids}
    found, wanted = (
        torch.autograd.grad(functional.info_nce_loss(*rows, **both, backend=backend), rows)
        for backend in ("triton", "reference")
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("M", [1, 15, 33, 100])
def test_stores_of_whole_groups_stay_in_their_rows(M: int) -> None:
    """Columns beyond M that are stored with others lie in the padding of the row."""
    from itm_kernels.triton import log_sum_exp as kernels

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(70, 40, generator=generator), torch.randn(M, 40, generator=generator)
    kept: list[torch.Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        parts = kernels.products_in_parts

        def noted(x, both, fill, fine):
            def filled(first, weights):
                weights.untyped_storage().fill_(0)
                fill(first, weights)
                kept.append(weights)

            return parts(x, both, filled, fine)

        patch.setattr(kernels, "products_in_parts", noted)
        sums = log_sum_exp(x.requires_grad_(), y, 2.0, backend="triton")
        sums.row.sum().backward()
    for weights in kept:
        width = weights.stride(1)
        whole = weights.as_strided((*weights.shape[:2], width), weights.stride())
        assert (whole[..., -(-M // 8) * 8 :] == 0).all()
        assert whole.isfinite().all()
