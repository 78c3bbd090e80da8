"""Hardest negatives of fp32 rows from one product in half precision, with fp32's index."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from interpreted import beyond_finite
from itm_kernels import functional, ops
from itm_kernels.ops import HardestNegatives
from kernels import MARKS

pytestmark = MARKS["triton"]


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> Iterator[list]:
    """Screen at any size, and record the bounds of images and texts."""
    from itm_kernels.triton import _screening

    kept: list = []

    class Kept(_screening._Anchors):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            kept.append(self)

    monkeypatch.setattr(_screening, "LEAST_ROWS", 1)
    monkeypatch.setattr(_screening, "_Anchors", Kept)
    yield kept


def rows(N: int, D: int, seed: int) -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(seed))


def found(image: Tensor, text: Tensor, **ids: Tensor) -> HardestNegatives:
    return ops.hardest_negatives(image, text, **ids, backend="triton")


def check(image: Tensor, text: Tensor, **ids: Tensor) -> None:
    """Compare with fp64: another row may be chosen only within the rounding of fp32."""
    ours = found(image, text, **ids)
    exact = ops.hardest_negatives(image.double(), text.double(), **ids, backend="reference")
    scores = image.double() @ text.double().T
    of_image = scores.gather(1, ours.text_index.clamp_min(0)[:, None])[:, 0]
    of_text = scores.gather(0, ours.image_index.clamp_min(0)[None])[0]
    for got, index, score, wanted in (
        (of_image, ours.text_index, exact.text_score, exact.text_index),
        (of_text, ours.image_index, exact.image_score, exact.image_index),
    ):
        lengths = image.double().norm(dim=1).max() * text.double().norm(dim=1).max()
        same = (index == wanted) | (score - got <= 2e-7 * lengths)
        assert same.all()


@pytest.mark.parametrize(("N", "M", "D"), [(1, 1, 40), (2, 2, 33), (130, 130, 70), (33, 200, 333)])
def test_index_is_that_of_fp32(sides: list, N: int, M: int, D: int) -> None:
    ids = {} if N == M else {"image_ids": torch.arange(N), "text_ids": torch.arange(M) % N}
    image, text = normalize(rows(N, D, 1)), normalize(rows(M, D, 2))
    check(image, text, **ids)
    # Few random rows are listed, or screening would save nothing.
    assert sum(int(side.count) for side in sides) <= 0.1 * (N + M)


def test_index_is_that_of_fp32_where_half_precision_errs(sides: list) -> None:
    """One close candidate a tile: fp32 decides between them."""
    image = normalize(rows(1, 70, 1) + 0.1 * rows(190, 70, 2))
    text = normalize(rows(190, 70, 3))
    close = torch.tensor([5, 70, 189])
    text[close] = normalize(rows(1, 70, 1) + 1e-4 * rows(3, 70, 4))
    check(image, text)
    assert int(sides[0].count) == 0
    half = (image.half().float() @ text.half().float().T).fill_diagonal_(-torch.inf)
    assert (half.argmax(1) != found(image, text).text_index).sum() > 10


def test_rows_of_any_norm(sides: list) -> None:
    image, text = normalize(rows(130, 70, 1)), normalize(rows(130, 70, 2))
    check(image * torch.logspace(-15, 15, 130)[:, None], text * torch.logspace(9, -9, 130)[:, None])
    text[50:60] = 0
    check(image, text)
    assert int(sides[-1].count) < 20  # of the zeros, which tie with all


def test_collapsed_rows_tie_and_the_lowest_index_is_returned(sides: list) -> None:
    ours = found(torch.ones(130, 40), torch.ones(130, 40))
    assert ours.text_index.tolist() == ours.image_index.tolist() == [1] + [0] * 129
    assert [int(side.count) for side in sides] == [130, 130]
    text = normalize(rows(70, 40, 1)).repeat(2, 1)
    ours = found(normalize(rows(140, 40, 2)), text)
    assert (ours.text_index[70:] < 70).all()  # of two copies, one of which is never the positive
    near = normalize(rows(1, 70, 1) + 1e-3 * rows(130, 70, 2))
    check(near, near.flip(0))


@beyond_finite
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])
def test_values_that_are_not_finite_show_as_without_screening(
    sides: list, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from itm_kernels.triton import _screening

    image, text = rows(70, 40, 1), rows(70, 40, 2)
    text[66, 3] = image[5, 0] = value
    ours = found(image, text)
    monkeypatch.setattr(_screening, "LEAST_ROWS", 1000)
    assert len(sides) == 2
    plain = found(image, text)
    for one, other in zip(ours, plain, strict=True):
        assert torch.equal(one.nan_to_num(1234), other.nan_to_num(1234))


@pytest.mark.parametrize("with_ids", [True, False])
def test_max_of_hinges_is_the_references(sides: list, with_ids: bool) -> None:
    N, M = (70, 150) if with_ids else (70, 70)
    ids = {"image_ids": torch.arange(N), "text_ids": torch.arange(M) % N} if with_ids else {}
    losses = []
    for backend in ("triton", "triton", "reference"):
        image, text = normalize(rows(N, 40, 1)), normalize(rows(M, 40, 2))
        image.requires_grad_(), text.requires_grad_()
        loss = functional.max_of_hinges_loss(image, text, **ids, backend=backend)
        losses.append((loss, *torch.autograd.grad(loss, (image, text))))
    assert len(sides) == 4
    for ours, again, theirs in zip(*losses, strict=True):
        assert torch.equal(ours, again)
        torch.testing.assert_close(ours, theirs)
