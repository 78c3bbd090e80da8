"""Log-sum-exp of a score matrix: stored scores, masks, logits that lie far apart."""

from typing import Any

import pytest
import torch
from torch import Tensor

from itm_kernels.ops._log_sum_exp import log_sum_exp
from kernels import on, only
from small_batch import exp_sums, rows


def test_batches_with_unequal_numbers_of_images_and_texts(backend_name: str) -> None:
    x, y = rows(13, 9), rows(70, 9, seed=1)
    for sides in ((x, y), (y, x)):
        found, wanted = (exp_sums(*sides, name) for name in (backend_name, "reference"))
        torch.testing.assert_close(found, wanted)


@on("emulated")
def test_scores_that_were_not_kept_are_computed_again(kernels: Any) -> None:
    x, y, ones = rows(9, 70, torch.float32), rows(9, 70, torch.float32, seed=1), torch.ones(9)
    given = x, y, torch.tensor(2.0), torch.arange(9), torch.arange(9), torch.arange(9), False
    row, column, of_positive, *highest, kept = kernels.log_sum_exp_forward(*given, True)
    torch.testing.assert_close(of_positive, 2 * kept.diagonal())
    sums = ones, ones, ones, row, column, *highest
    found = kernels.log_sum_exp_backward(*sums, kept, *given)
    again = kernels.log_sum_exp_backward(*sums, kept.new_empty(0, 0), *given)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@on("emulated")
def test_logits_far_apart_do_not_overflow(backend_name: str) -> None:
    x = torch.eye(40)[:, :33] * 30
    found, wanted = (exp_sums(x, x, name) for name in (backend_name, "reference"))
    assert all(t.isfinite().all() for t in found)
    torch.testing.assert_close(found, wanted)


@pytest.mark.any_set
@on("native", "emulated")
def test_opcheck(kernels: Any) -> None:
    x, y, positive = rows(3, 6), rows(5, 6, seed=1), torch.tensor([2, 0, 1, 1, 0])
    given = x, y, torch.tensor(3.0).double(), torch.arange(3), positive.clone(), positive, False
    of_x, of_y = torch.ones(3).double(), torch.ones(5).double()
    for scores in (x @ y.T, torch.empty(0, 0).double()):
        torch.library.opcheck(kernels.log_sum_exp_forward, (*given, bool(scores.numel())))
        sums = of_x, of_y, of_y, of_x, of_y, of_x, of_y, scores
        torch.library.opcheck(kernels.log_sum_exp_backward, (*sums, *given))


@only("triton")
def test_tiles_without_masks_have_the_gradients_of_masked_ones() -> None:
    """Ids in order leave masks to the diagonal's tiles, ids in disorder to all.

    Sums of masked tiles are added in another order, weights from the same sums have the same bits.
    """
    from itm_kernels.triton import log_sum_exp as kernels
    from itm_kernels.triton._blocked_products import no_scores

    generator = torch.Generator().manual_seed(0)
    N, M = 128, 130  # whole tiles and ragged ones
    sides = [torch.randn(n, 40, generator=generator) for n in (N, M)]
    ids, scale = torch.arange(M) // 2, torch.tensor(2.0)

    def names_of(names: Tensor) -> tuple[Tensor, Tensor, None]:
        return names[torch.arange(N)], names[ids], None

    def sums(names: Tensor) -> list[Tensor]:
        found = kernels.log_sum_exp_forward(*sides, scale, *names_of(names), False, False)
        return [found[0], found[1], found[3], found[4]]

    def gradients(names: Tensor, saved: list[Tensor]) -> tuple[Tensor, ...]:
        given = torch.linspace(0.5, 2, N + M).split([N, M])
        return kernels.log_sum_exp_backward(
            *given, sides[0].new_empty(0), *saved, no_scores(sides[0]), *sides, scale,
            *names_of(names), False,
        )  # fmt: skip

    ordered = torch.arange(N)
    shuffled = torch.randperm(N, generator=generator) + 2**40
    assert shuffled[:64].max() > shuffled[64:128].min()
    assert shuffled[:64].min() < shuffled[64:128].max()
    saved = sums(ordered)
    for one, other in zip(saved, sums(shuffled), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)
    of_ordered, of_shuffled = gradients(ordered, saved), gradients(shuffled, saved)
    for one, other in zip(of_ordered[:2], of_shuffled[:2], strict=True):
        assert torch.equal(one, other)


@only("triton")
@pytest.mark.parametrize("M", [1, 15, 33, 100])
def test_stores_of_whole_groups_stay_in_their_rows(M: int) -> None:
    """Columns beyond M that are stored with others lie in the padding of the row."""
    from itm_kernels.triton import log_sum_exp as kernels

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(70, 40, generator=generator), torch.randn(M, 40, generator=generator)
    kept: list[Tensor] = []
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
