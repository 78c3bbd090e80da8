"""Late interaction and cross attention in Triton: chunks, blocks, repetition."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from itm_kernels import ops
from kernels import MARKS
from sets_of_rows import Sets, assert_precise, close, drawn, graded

pytest.importorskip("triton")

from itm_kernels.triton import _row_sets, late_interaction  # noqa: E402

pytestmark = MARKS["triton"]
SCORES = (ops.late_interaction, ops.cross_attention)
# Rows that fill no block: of words, of regions, of neither.
ODD = [(5, 4, 36, 50, 24), (4, 6, 17, 3, 40)]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the products of two contexts of `ODD` be a chunk, the last chunk smaller."""
    monkeypatch.setattr(_row_sets, "CHUNK_BYTES", 2 * 36 * 4 * 50 * 8)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("shape", ODD)
def test_several_chunks(
    score: Callable[..., Tensor], shape: tuple[int, ...], small_chunks: None
) -> None:
    sets = drawn(shape, counts=True)
    expected = graded(score, sets, backend="reference")
    found = graded(score, sets, backend="triton")
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs, 1e-11)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_of_several_chunks(
    score: Callable[..., Tensor], dtype: torch.dtype, small_chunks: None
) -> None:
    assert_precise(score, drawn(ODD[0], counts=True, dtype=dtype), "triton")


@pytest.mark.parametrize("score", SCORES)
def test_bits_are_the_same_on_repetition(score: Callable[..., Tensor], small_chunks: None) -> None:
    sets = drawn(ODD[0], counts=True, dtype=torch.float32)
    first, second = (graded(score, sets, backend="triton") for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("score", SCORES)
def test_tf32_rows(score: Callable[..., Tensor]) -> None:
    """The interpreter multiplies tf32 in fp32: only the layout of the rows is the GPU's."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert_precise(score, drawn(ODD[1], counts=True, dtype=torch.float32), "triton")
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("score", SCORES)
def test_a_row_of_zeros_has_the_gradient_of_its_scores(score: Callable[..., Tensor]) -> None:
    """A power of two that scales a zero row for fp16 would also scale its weights, out of range."""
    sets = drawn((2, 3, 4, 3, 40), dtype=torch.float32)
    with torch.no_grad():
        sets.regions[0, 1] = 0
    options: dict[str, Any] = {"normalize": False} if score is ops.late_interaction else {}
    assert_precise(score, sets, "triton", **options)


# -- late interaction ------------------------------------------------------------------------------


def test_queries_longer_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_interaction, "_PAIRS", 16)
    sets = drawn((3, 4, 19, 37, 8), counts=True)
    expected = graded(ops.late_interaction, sets, backend="reference")
    for ours, theirs in zip(
        graded(ops.late_interaction, sets, backend="triton"), expected, strict=True
    ):
        close(ours, theirs)


def test_winners_that_were_not_kept_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = drawn(ODD[1], counts=True)
    kept = graded(ops.late_interaction, sets, backend="triton")
    monkeypatch.setattr("itm_kernels.ops._late_interaction.keeps_winners", lambda *rows: False)
    for ours, theirs in zip(
        graded(ops.late_interaction, sets, backend="triton"), kept, strict=True
    ):
        assert torch.equal(ours, theirs)


def test_the_first_of_equal_matches_wins_across_steps() -> None:
    rows = torch.zeros(1, 40, 2)
    rows[0, [3, 20, 39]] = torch.tensor([1.0, 0.0])
    regions = rows.requires_grad_()
    options: dict[str, Any] = {"normalize": False, "backend": "triton"}
    found = ops.late_interaction(regions, torch.tensor([[[2.0, 0.0]]]), **options)
    (grad,) = torch.autograd.grad(found.sum(), regions)
    assert found.item() == 2
    assert grad.nonzero().tolist() == [[0, 3, 0]]


# -- cross attention -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_that_were_not_kept_are_computed_again(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, small_chunks: None
) -> None:
    sets = drawn(ODD[1], counts=True, dtype=dtype)
    kept = graded(ops.cross_attention, sets, backend="triton")
    monkeypatch.setattr("itm_kernels.ops._cross_attention.keeps_products", lambda *rows: False)
    for ours, theirs in zip(graded(ops.cross_attention, sets, backend="triton"), kept, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_backward_pass_leaves_kept_products(dtype: torch.dtype) -> None:
    """Without kept products, weights of these dtypes overwrite the products."""
    sets = drawn((3, 2, 4, 3, 40), dtype=dtype)
    scores = ops.cross_attention(*sets, backend="triton").sum()
    first, second = (torch.autograd.grad(scores, sets.leaves, retain_graph=True) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("feature_norm", ["clipped_l2norm", "softmax"])
@pytest.mark.parametrize("smooth", [16.0, -16.0, 17.0])
def test_exponents_with_and_without_a_maximum(smooth: float, feature_norm: str) -> None:
    options: dict[str, Any] = {"feature_norm": feature_norm, "smooth": smooth}
    sets = drawn(ODD[1], counts=True)
    expected = graded(ops.cross_attention, sets, **options, backend="reference")
    found = graded(ops.cross_attention, sets, **options, backend="triton")
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs, 1e-10)


@pytest.mark.parametrize("feature_norm", ["clipped_l2norm", "softmax"])
@pytest.mark.parametrize("smooth", [16.0, -16.0])
def test_error_without_a_maximum(smooth: float, feature_norm: str) -> None:
    options: dict[str, Any] = {"feature_norm": feature_norm, "smooth": smooth}
    sets = drawn(ODD[1], counts=True, dtype=torch.float32)
    assert_precise(ops.cross_attention, sets, "triton", **options)


@pytest.mark.parametrize("feature_norm", ["clipped_l2norm", "softmax"])
def test_near_opposite_rows_without_a_maximum(feature_norm: str) -> None:
    words = drawn((2, 3, 4, 5, 24)).words
    half = drawn((2, 3, 4, 5, 24), seed=1).regions.detach()
    near = -half + 1e-3 * drawn((2, 3, 4, 5, 24), seed=2).regions.detach()
    sets = Sets(torch.cat([half, near], 1), words, None, None).cast(torch.float32)
    options: dict[str, Any] = {"feature_norm": feature_norm, "smooth": 1e-4}
    assert_precise(ops.cross_attention, sets, "triton", **options)
