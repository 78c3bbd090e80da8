"""Hardest negatives: ties, and screening in half precision, which keeps the index of fp32.

The compiled kernels screen in bf16, and abstain where they have no bound. The Triton kernels screen
in fp16, and list the rows whose hardest negative fp32 must decide.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import small_batch
from interpreted import beyond_finite
from itm_kernels import functional, ops
from itm_kernels.ops import HardestNegatives
from kernels import cases, on, only

N, D = 300, 128


class Screening(NamedTuple):
    """The hardest negatives by screening, of a backend."""

    find: Callable[..., HardestNegatives | None]  # image, text, image_ids, text_ids; None: abstains
    allowed: float  # of a score below the best, relative to the largest norms
    bounds: list  # of images and texts, as the Triton kernels compute them


def compiled(
    image: Tensor, text: Tensor, image_ids: Tensor | None = None, text_ids: Tensor | None = None
) -> HardestNegatives | None:
    found = torch.ops.itm_testing.screened_negatives(image, text, image_ids, text_ids)
    return HardestNegatives(*found) if found else None


@pytest.fixture
def screening(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> Screening:
    """Screen at any size."""
    if kernels.name == "itm_native":
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            pytest.skip("no bf16 products on this CPU")
        return Screening(compiled, 1e-14, [])
    from itm_kernels.triton import _screening

    kept: list = []

    class Kept(_screening._Anchors):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            kept.append(self)

    monkeypatch.setattr(_screening, "LEAST_ROWS", 1)
    monkeypatch.setattr(_screening, "_Anchors", Kept)
    # Their index is that of fp32.
    return Screening(partial(ops.hardest_negatives, backend="triton"), 2e-7, kept)


def rows(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact_scores(image: Tensor, text: Tensor, **ids: Tensor) -> Tensor:
    scores = image.double() @ text.double().T
    same = torch.eye(*scores.shape, dtype=torch.bool)
    if ids:
        same = ids["image_ids"][:, None] == ids["text_ids"]
    return scores.masked_fill(same, -torch.inf)


def assert_exact(screening: Screening, image: Tensor, text: Tensor, **ids: Tensor) -> None:
    """Compare indices and values with fp64; another row may be chosen within rounding."""
    found = screening.find(image, text, **ids)
    assert found, "screening abstained"
    scores = exact_scores(image, text, **ids)
    norms = image.double().norm(dim=1).max() * text.double().norm(dim=1).max()
    for value, index, negatives in (
        (found.text_score, found.text_index, scores),
        (found.image_score, found.image_index, scores.T),
    ):
        best = negatives.max(1).values
        chosen = negatives.gather(1, index.clamp_min(0)[:, None])[:, 0]
        assert (chosen >= best - screening.allowed * norms).all()
        torch.testing.assert_close(value, best.float())
        assert torch.equal(index < 0, best == -torch.inf)


@cases(
    "images, texts, width, with_ids",
    native=[(2, 3, 64, True), (33, 127, 333, True), (300, 300, 1000, True), (700, 2100, 96, True)],
    triton=[(1, 1, 40, False), (2, 2, 33, False), (130, 130, 70, False), (33, 200, 333, True)],
)
def test_index_of_random_rows(
    images: int, texts: int, width: int, with_ids: bool, screening: Screening
) -> None:
    image, text = normalize(rows(1, images, width)), normalize(rows(2, texts, width))
    ids = {"image_ids": torch.arange(images), "text_ids": torch.arange(texts) % images}
    assert_exact(screening, image, text, **(ids if with_ids else {}))
    # Few random rows are listed, or screening would save nothing.
    assert sum(int(side.count) for side in screening.bounds) <= 0.1 * (images + texts)


def test_ties_go_to_the_lowest_index_in_every_tile(kernels: Any, backend_name: str) -> None:
    # Rows 3, 40 and 99 are equal: different lanes, warps and tiles read them, in any order.
    x, y = (small_batch.rows(127, 20, torch.float32, seed) for seed in (0, 1))
    for side in (x, y):
        side[[3, 40, 99]] = 4.0
    found = ops.hardest_negatives(x, y, backend=backend_name)
    assert (found.text_index == 3).sum() > 30
    assert (found.image_index == 3).sum() > 30
    assert not torch.isin(torch.tensor([99]), torch.cat([found.text_index, found.image_index]))
    assert found.text_index[3] == found.image_index[3] == 40


# -- screening in bf16 -----------------------------------------------------------------------------


@on("native")
def test_rounding_that_reverses_the_order(screening: Screening) -> None:
    """The second best rounds up in every coordinate, the best down: bf16 picks the wrong one."""
    # Images of different norms: with equal norms every text's hardest image would be a tie.
    image, text = torch.linspace(0.1, 1, N)[:, None].expand(N, D), rows(0, N, D).abs() / 4
    tie = 1 + 2.0**-8  # halfway between two bf16 numbers
    text[7], text[9] = tie + 2.0**-20, tie - 2.0**-20
    text[9, 0] += D * 2.0**-18
    fooled = (image.bfloat16() @ text.bfloat16().T)[0].argmax()
    assert fooled == 7
    found = screening.find(image, text, torch.full((N,), -1), torch.arange(N))
    assert found and found.text_index.tolist() == [9] * N


@on("native")
@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6, 1e-7])
def test_near_ties(gap: float, screening: Screening) -> None:
    """Texts are near-copies of one another: bf16 cannot distinguish them, fp32 products can."""
    image = normalize(rows(0, N, D))
    text = normalize(rows(1, N // 3, D)).repeat(3, 1) * (1 + gap * rows(2, N, 1))
    ids = {"image_ids": torch.full((N,), -1), "text_ids": torch.arange(N)}
    coarse = (image.bfloat16() @ text.bfloat16().T).float().argmax(1)
    wrong = coarse != exact_scores(image, text, **ids).argmax(1)
    assert wrong.any()
    assert_exact(screening, image, text, **ids)


@on("native")
@pytest.mark.parametrize("power", [-60, -40, 0, 40, 55])
def test_tiny_and_huge_rows(power: int, screening: Screening) -> None:
    image = rows(0, N, D) * 2.0**power
    text = rows(1, N, D) * torch.logspace(-3, 3, N)[torch.randperm(N)][:, None]
    assert_exact(screening, image, text)


@on("native")
def test_screening_abstains_where_it_has_no_bound(screening: Screening) -> None:
    plain = rows(0, N, D)
    for value in (torch.nan, torch.inf, 1e30):
        broken = plain.clone()
        broken[5, 3] = value
        assert screening.find(broken, plain) is None
        assert screening.find(plain, broken) is None
    assert screening.find(torch.ones(N, D), torch.ones(N, D)) is None  # everything ties


@on("native")
def test_equal_rows_go_to_the_lowest_index(screening: Screening) -> None:
    text = rows(1, N, D)
    text[50:100] = text[:50]
    found = screening.find(rows(0, N, D), text, torch.full((N,), -1), torch.arange(N))
    assert found and found.text_index.unique().numel() > 20
    assert not ((found.text_index >= 50) & (found.text_index < 100)).any()


@on("native")
def test_the_number_of_threads_changes_no_bit(screening: Screening) -> None:
    image, text = normalize(rows(0, 700, D)), normalize(rows(1, 700, D))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = screening.find(image, text)
    finally:
        torch.set_num_threads(threads)
    one = screening.find(image, text)
    assert one and two
    assert all(torch.equal(a, b) for a, b in zip(two, one, strict=True))


@only("native")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_auto_is_exact_whether_it_screens_or_not(dtype: torch.dtype) -> None:
    # 600 rows: large enough to be screened on CPUs with bf16 products.
    image = normalize(rows(0, 600, 512)).to(dtype).requires_grad_()
    text = normalize(rows(1, 600, 512)).to(dtype)
    found = ops.hardest_negatives(image, text)
    best = exact_scores(image.detach(), text).max(1)
    assert torch.equal(found.text_index, best.indices)
    torch.testing.assert_close(found.text_score.double(), best.values, rtol=1e-6, atol=1e-7)
    loss = functional.max_of_hinges_loss(image, text)
    wanted = functional.max_of_hinges_loss(image, text, backend="reference")
    torch.testing.assert_close(loss, wanted)


# -- screening in fp16 -----------------------------------------------------------------------------


@on("triton")
def test_index_is_that_of_fp32_where_half_precision_errs(screening: Screening) -> None:
    """One close candidate a tile: fp32 decides between them."""
    image = normalize(rows(1, 1, 70) + 0.1 * rows(2, 190, 70))
    text = normalize(rows(3, 190, 70))
    close = torch.tensor([5, 70, 189])
    text[close] = normalize(rows(1, 1, 70) + 1e-4 * rows(4, 3, 70))
    assert_exact(screening, image, text)
    assert int(screening.bounds[0].count) == 0
    half = (image.half().float() @ text.half().float().T).fill_diagonal_(-torch.inf)
    found = screening.find(image, text)
    assert found and (half.argmax(1) != found.text_index).sum() > 10


@on("triton")
def test_rows_of_any_norm(screening: Screening) -> None:
    image, text = normalize(rows(1, 130, 70)), normalize(rows(2, 130, 70))
    scaled = image * torch.logspace(-15, 15, 130)[:, None]
    assert_exact(screening, scaled, text * torch.logspace(9, -9, 130)[:, None])
    text[50:60] = 0
    assert_exact(screening, image, text)
    assert int(screening.bounds[-1].count) < 20  # of the zeros, which tie with all


@on("triton")
def test_collapsed_rows_tie_and_the_lowest_index_is_returned(screening: Screening) -> None:
    found = screening.find(torch.ones(130, 40), torch.ones(130, 40))
    assert found and found.text_index.tolist() == found.image_index.tolist() == [1] + [0] * 129
    assert [int(side.count) for side in screening.bounds] == [130, 130]
    text = normalize(rows(1, 70, 40)).repeat(2, 1)
    found = screening.find(normalize(rows(2, 140, 40)), text)
    # Two copies of a row; one of them is never the positive.
    assert found and (found.text_index[70:] < 70).all()
    near = normalize(rows(1, 1, 70) + 1e-3 * rows(2, 130, 70))
    assert_exact(screening, near, near.flip(0))


@on("triton")
@beyond_finite
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])
def test_values_that_are_not_finite_show_as_without_screening(
    screening: Screening, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from itm_kernels.triton import _screening

    image, text = rows(1, 70, 40), rows(2, 70, 40)
    text[66, 3] = image[5, 0] = value
    screened = screening.find(image, text)
    monkeypatch.setattr(_screening, "LEAST_ROWS", 1000)
    assert len(screening.bounds) == 2
    plain = screening.find(image, text)
    assert screened and plain
    for one, other in zip(screened, plain, strict=True):
        assert torch.equal(one.nan_to_num(1234), other.nan_to_num(1234))


@on("triton")
@pytest.mark.parametrize("with_ids", [True, False])
def test_max_of_hinges_is_the_references(screening: Screening, with_ids: bool) -> None:
    N, M = (70, 150) if with_ids else (70, 70)
    ids = {"image_ids": torch.arange(N), "text_ids": torch.arange(M) % N} if with_ids else {}
    losses = []
    for backend in ("triton", "triton", "reference"):
        image, text = normalize(rows(1, N, 40)), normalize(rows(2, M, 40))
        image.requires_grad_(), text.requires_grad_()
        loss = functional.max_of_hinges_loss(image, text, **ids, backend=backend)
        losses.append((loss, *torch.autograd.grad(loss, (image, text))))
    assert len(screening.bounds) == 4
    for ours, again, theirs in zip(*losses, strict=True):
        assert torch.equal(ours, again)
        torch.testing.assert_close(ours, theirs)
