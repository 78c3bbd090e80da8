"""Screening in bf16 returns the exact hardest negative or abstains."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from itm_kernels import functional, ops
from kernels import MARKS

pytestmark = [
    *MARKS["native"],
    pytest.mark.skipif(
        not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bf16 products on this CPU"
    ),
]
N, D = 300, 128


def exact_scores(image: Tensor, text: Tensor, ids: tuple[Tensor, Tensor] | None = None) -> Tensor:
    scores = image.double() @ text.double().T
    same = torch.eye(*scores.shape, dtype=torch.bool) if ids is None else ids[0][:, None] == ids[1]
    return scores.masked_fill(same, -torch.inf)


def screen(image: Tensor, text: Tensor, ids: tuple[Tensor, Tensor] | None = None) -> list[Tensor]:
    return torch.ops.itm_testing.screened_negatives(image, text, *(ids or (None, None)))


def assert_exact(image: Tensor, text: Tensor, ids: tuple[Tensor, Tensor] | None = None) -> None:
    """Compare indices and values with fp64; indices may differ where fp64 itself is undecided."""
    found = screen(image, text, ids)
    assert found, "screening abstained"
    scores = exact_scores(image, text, ids)
    scale = image.double().norm(dim=1).max() * text.double().norm(dim=1).max()
    for value, index, negatives in ((*found[1:3], scores), (*found[3:5], scores.T)):
        best = negatives.max(1)
        chosen = negatives.gather(1, index.clamp_min(0)[:, None])[:, 0]
        assert (chosen >= best.values - 1e-14 * scale).all()
        torch.testing.assert_close(value, best.values.float())
        assert torch.equal(index < 0, best.values == -torch.inf)


def rows(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(2, 3, 64), (33, 127, 333), (300, 300, 1000), (700, 2100, 96)])
def test_random_rows(shape: tuple[int, int, int]) -> None:
    images, texts, width = shape
    image, text = normalize(rows(0, images, width)), normalize(rows(1, texts, width))
    assert_exact(image, text, (torch.arange(images), torch.arange(texts) % images))


def test_rounding_that_reverses_the_order() -> None:
    """The second best rounds up in every coordinate, the best down: bf16 picks the wrong one."""
    # Images of different norms: with equal norms every text's hardest image would be a tie.
    image, text = torch.linspace(0.1, 1, N)[:, None].expand(N, D), rows(0, N, D).abs() / 4
    tie = 1 + 2.0**-8  # halfway between two bf16 numbers
    text[7], text[9] = tie + 2.0**-20, tie - 2.0**-20
    text[9, 0] += D * 2.0**-18
    fooled = (image.bfloat16() @ text.bfloat16().T)[0].argmax()
    assert fooled == 7
    found = screen(image, text, (torch.full((N,), -1), torch.arange(N)))
    assert found[2].tolist() == [9] * N


@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6, 1e-7])
def test_near_ties(gap: float) -> None:
    """Texts are near-copies of one another: bf16 cannot distinguish them, fp32 products can."""
    image = normalize(rows(0, N, D))
    text = normalize(rows(1, N // 3, D)).repeat(3, 1) * (1 + gap * rows(2, N, 1))
    ids = torch.full((N,), -1), torch.arange(N)
    coarse = (image.bfloat16() @ text.bfloat16().T).float().argmax(1)
    wrong = coarse != exact_scores(image, text, ids).argmax(1)
    assert wrong.any()
    assert_exact(image, text, ids)


@pytest.mark.parametrize("power", [-60, -40, 0, 40, 55])
def test_tiny_and_huge_rows(power: int) -> None:
    image = rows(0, N, D) * 2.0**power
    text = rows(1, N, D) * torch.logspace(-3, 3, N)[torch.randperm(N)][:, None]
    assert_exact(image, text)


def test_screening_abstains_where_it_has_no_bound() -> None:
    plain = rows(0, N, D)
    for value in (torch.nan, torch.inf, 1e30):
        broken = plain.clone()
        broken[5, 3] = value
        assert not screen(broken, plain)
        assert not screen(plain, broken)
    assert not screen(torch.ones(N, D), torch.ones(N, D))  # everything ties


def test_equal_rows_go_to_the_lowest_index() -> None:
    text = rows(1, N, D)
    text[50:100] = text[:50]
    found = screen(rows(0, N, D), text, (torch.full((N,), -1), torch.arange(N)))
    assert found[2].unique().numel() > 20
    assert not ((found[2] >= 50) & (found[2] < 100)).any()


def test_the_number_of_threads_changes_no_bit() -> None:
    image, text = normalize(rows(0, 700, D)), normalize(rows(1, 700, D))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = screen(image, text)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(two, screen(image, text), strict=True))


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
