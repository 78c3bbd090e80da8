"""Gradients that are sums of few rows: order, hubs, and the same bits every time."""

import pytest
import torch
from torch import Tensor

from interpreted import needs_interpreter
from itm_kernels import functional, ops

pytestmark = needs_interpreter

EPS = torch.finfo(torch.float32).eps


def entries_of(key: Tensor, weight: Tensor, N: int, M: int, to_images: int):  # noqa: ANN201
    """Return entries whose sources are their own indices, in no fixed order."""
    from itm_kernels.triton._coo_entries import Entries

    own, span = torch.full((N + M, 2), -1), torch.zeros(2, N + M, dtype=torch.int64)
    source = torch.arange(len(key))
    source[to_images:] -= to_images
    return Entries(key, source, weight, own, own.to(weight), *span, to_images)


@pytest.mark.parametrize("few", [True, False])
def test_a_row_that_is_hardest_for_all_is_summed_like_the_others(
    few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One target has whole chunks of entries, its neighbours some, most targets none."""
    from itm_kernels.triton import _coo_entries, _segment_sum

    if not few:
        monkeypatch.setattr(_coo_entries, "_FEW", 0)
    N, M, sides = 5, 700, [700, 5]
    to_image = torch.tensor([3] * 600 + [-1] * 50 + [0] * 3 + [4] * 47)
    to_text = torch.tensor([699, 2, 2, -1, 2])
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(rows, 150, generator=generator) for rows in (N, M))
    weights = [torch.randn(count, generator=generator) for count in sides]
    none = N + M
    keys = torch.where(to_image < 0, none, to_image), torch.where(to_text < 0, none, N + to_text)
    entries = entries_of(torch.cat(keys), torch.cat(weights), N, M, 700)
    found = _segment_sum.segment_sum(entries, image, text)
    for grad, target, weight, rows in zip(
        found, (to_image, to_text), weights, (text, image), strict=True
    ):
        wanted = torch.zeros(grad.shape, dtype=torch.float64)
        inside = target >= 0
        products = weight[:, None].double() * rows.double()
        wanted.index_add_(0, target[inside], products[inside])
        torch.testing.assert_close(grad.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("E", "F", "N", "M"), [(1, 1, 1, 1), (3, 9, 700, 2), (300, 260, 5, 130)])
def test_few_entries_are_counted_into_the_order_of_a_sort(E: int, F: int, N: int, M: int) -> None:
    from itm_kernels.triton import _coo_entries

    generator = torch.Generator().manual_seed(E)
    keys = (
        torch.randint(N + 1, (E,), generator=generator),
        torch.randint(N, N + M + 1, (F,), generator=generator),
    )
    none = keys[0] == N
    key = torch.cat([torch.where(none, N + M, keys[0]), keys[1]])
    entries = entries_of(key, torch.ones(E + F), N, M, E)
    ordered, order, known = _coo_entries.sort_by_target(entries, N, M)
    assert known
    for begin, end in ((0, E), (E, E + F)):
        wanted = key[begin:end].sort(stable=True)
        assert torch.equal(ordered[begin:end], wanted.values)
        assert torch.equal(order[begin:end], wanted.indices + begin)
    counts = torch.bincount(key, minlength=N + M + 1)[: N + M]
    assert torch.equal(entries.end - entries.first, counts)
    for target in range(N + M):
        span = slice(entries.first[target], entries.end[target])
        assert (ordered[span] == target).all()


@pytest.mark.parametrize(
    ("N", "with_ids", "few"), [(127, True, True), (127, False, False), (300, False, True)]
)
def test_gradient_of_a_text_that_is_hardest_for_all(
    N: int, with_ids: bool, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every image's hardest text, and every text's hardest image; the same bits every time."""
    from itm_kernels.triton import _coo_entries

    if not few:
        monkeypatch.setattr(_coo_entries, "_FEW", 0)
    generator = torch.Generator().manual_seed(N)
    M = 2 * N if with_ids else N
    rows = [1 + 0.3 * torch.randn(size, 7, generator=generator) for size in (N, M)]
    for side in rows:
        side[3] *= 4
    ids = {"image_ids": torch.arange(N), "text_ids": torch.arange(M) % N} if with_ids else {}
    found = ops.hardest_negatives(*rows, **ids, backend="triton")
    assert (found.text_index == 3).sum() >= N - 2
    assert (found.image_index == 3).sum() >= M - 2

    def gradients(backend: str, dtype: torch.dtype) -> list[Tensor]:
        sides = [side.to(dtype).requires_grad_() for side in rows]
        losses = functional.max_of_hinges_loss(*sides, **ids, reduction="none", backend=backend)
        upstream = torch.linspace(0.5, 1.5, M, dtype=losses.dtype)
        return [grad.double() for grad in torch.autograd.grad(losses, sides, upstream)]

    ours, again = (gradients("triton", torch.float32) for _ in range(2))
    assert all(map(torch.equal, ours, again))
    exact, eager = (gradients("reference", dtype) for dtype in (torch.float64, torch.float32))
    for wanted, theirs, own in zip(exact, eager, ours, strict=True):
        allowed = 2 * (theirs - wanted).abs().max() + 4 * EPS * wanted.abs().max()
        assert (own - wanted).abs().max() <= allowed
