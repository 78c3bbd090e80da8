"""Operators of score matrices: blocks of rows, strides, excluded pairs, precision, schemas."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from itm_kernels import backends, reference
from itm_kernels._positives import Pairs
from itm_kernels.ops._log_sum_exp_from_scores import fused_log_sum_exp_from_scores
from itm_kernels.ops._max_of_hinges_from_scores import fused_max_of_hinges_from_scores
from itm_kernels.ops._sigmoid_from_scores import fused_sigmoid_from_scores
from itm_kernels.ops._sum_of_hinges_from_scores import fused_sum_of_hinges_from_scores
from kernels import cases, on
from loss_cases import gradients

Operator = Callable[[Tensor, Tensor, Pairs, str], Tensor]


def log_sums(scores: Tensor, scale: Tensor, pairs: Pairs, backend: str) -> Tensor:
    """Return all results in one tensor, the log-sum-exps with their maxima."""
    found = fused_log_sum_exp_from_scores(
        scores, scale, pairs.image_ids, pairs.text_ids, pairs.positive, backend
    )
    row, column, positive, row_highest, column_highest = found
    return torch.cat([row + row_highest, column + column_highest, positive])


def sigmoid(scores: Tensor, scale: Tensor, pairs: Pairs, backend: str) -> Tensor:
    return fused_sigmoid_from_scores(scores, scale, scale - 9, pairs, backend)


def sum_of_hinges(scores: Tensor, scale: Tensor, pairs: Pairs, backend: str) -> Tensor:
    return fused_sum_of_hinges_from_scores(scores, pairs, 0.3, backend)


def max_of_hinges(scores: Tensor, scale: Tensor, pairs: Pairs, backend: str) -> Tensor:
    return fused_max_of_hinges_from_scores(scores, pairs, 0.3, False, backend)


def semihard(scores: Tensor, scale: Tensor, pairs: Pairs, backend: str) -> Tensor:
    return fused_max_of_hinges_from_scores(scores, pairs, 0.3, True, backend)


OPERATORS = {
    "log_sum_exp_from_scores": log_sums,
    "sigmoid_from_scores": sigmoid,
    "sum_of_hinges_from_scores": sum_of_hinges,
    "max_of_hinges_from_scores": max_of_hinges,
    "semihard": semihard,
}
EVERY = cases("name", native=[*OPERATORS], triton=[*OPERATORS])
NATIVE = on("native")


def problem(N: int = 33, per_image: int = 2, seed: int = 0) -> tuple[Tensor, Pairs]:
    """Return scores in fp64 and pairs with texts in disorder."""
    generator = torch.Generator().manual_seed(seed)
    M = N * per_image
    positive = torch.randperm(M, generator=generator) % N
    image_ids = torch.randperm(N, generator=generator) * 3
    scores = torch.randn(N, M, generator=generator, dtype=torch.float64)
    return scores, Pairs(positive, image_ids, image_ids[positive])


def step(name: str, scores: Tensor, pairs: Pairs, backend: str = "auto") -> list[Tensor]:
    """Return the results, and the gradients of the scores and the scale."""
    wide = torch.promote_types(scores.dtype, torch.float32)
    scores, scale = scores.detach().requires_grad_(), torch.tensor(7.0, dtype=wide)
    found = OPERATORS[name](scores, scale.requires_grad_(), pairs, backend)
    weight = torch.linspace(0.5, 2, found.numel(), dtype=wide)
    return [found.detach(), *gradients((found * weight).sum(), scores, scale)]


@EVERY
@pytest.mark.parametrize(("N", "per_image"), [(1, 1), (2, 5), (33, 2), (127, 1), (700, 5)], ids=str)
def test_equals_the_reference(kernels: Any, name: str, N: int, per_image: int) -> None:
    """700 x 3,500 scores are several blocks of rows."""
    if N == 700 and name != "log_sum_exp_from_scores":
        N = 300  # the reference repeats rows of scores
    scores, pairs = problem(N, per_image)
    operator = name if name in backends.OPERATORS else "max_of_hinges_from_scores"
    assert backends.choose(operator, "cpu") != "reference"
    for found, wanted in zip(
        step(name, scores, pairs), step(name, scores, pairs, "reference"), strict=True
    ):
        torch.testing.assert_close(found, wanted)


@EVERY
def test_strides_do_not_change_a_bit(kernels: Any, name: str) -> None:
    scores, pairs = problem()
    expected = step(name, scores, pairs)
    wide = torch.full((2 * 33, 3 * 66), torch.nan, dtype=scores.dtype)
    wide[::2, ::3] = scores
    for given in (scores.T.contiguous().T, wide[::2, ::3]):
        for found, wanted in zip(step(name, given, pairs), expected, strict=True):
            assert torch.equal(found, wanted)
    row = scores[:1].expand(33, -1)
    for found, wanted in zip(
        step(name, row, pairs), step(name, row.contiguous(), pairs), strict=True
    ):
        assert torch.equal(found, wanted)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(kernels: Any, name: str, dtype: torch.dtype) -> None:
    scores, pairs = problem()
    scores = scores.to(dtype)
    value, grad, slope = step(name, scores, pairs)
    wanted, wide_grad, wide_slope = step(name, scores.float(), pairs)
    assert grad.dtype == dtype and value.dtype == torch.float32
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(slope, wide_slope)
    rounding = torch.finfo(dtype).eps * 2
    torch.testing.assert_close(grad.float(), wide_grad, rtol=rounding, atol=rounding * 1e-3)


@EVERY
def test_error_is_at_most_twice_that_of_plain_pytorch(kernels: Any, name: str) -> None:
    scores, pairs = problem(127, 3)
    single = scores.float()
    exact = step(name, single.double(), pairs, "reference")
    ours, eager = step(name, single, pairs), step(name, single, pairs, "reference")
    for found, plain, wanted in zip(ours, eager, exact, strict=True):
        error, allowed = ((t - wanted).abs().max() for t in (found, plain))
        assert error <= 2 * allowed + torch.finfo(torch.float32).eps * wanted.abs().max()


@EVERY
def test_excluded_pairs_may_hold_anything(kernels: Any, name: str) -> None:
    """NaN and infinity in same-id pairs that are no positives change no bit."""
    scores, (positive, image_ids, _) = problem(8, 2)
    image_ids = image_ids // 6  # two images share an id
    ids = Pairs(positive, image_ids, image_ids[positive])
    same = image_ids[:, None] == ids.text_ids
    same[positive, torch.arange(16)] = False
    assert same.any()
    expected = step(name, scores.masked_fill(same, 0.5), ids)
    for garbage in (torch.nan, torch.inf, -torch.inf):
        for found, wanted in zip(
            step(name, scores.masked_fill(same, garbage), ids), expected, strict=True
        ):
            assert torch.equal(found, wanted)
    assert (expected[1][same] == 0).all()


@EVERY
def test_any_number_of_threads_gives_the_same_bits(kernels: Any, name: str) -> None:
    scores, pairs = problem(150, 3)
    expected = step(name, scores, pairs)
    torch.set_num_threads(2)
    try:
        found = step(name, scores, pairs)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@on("native", "triton")
def test_ties_go_to_the_lowest_index(kernels: Any) -> None:
    scores = torch.ones(4, 4, dtype=torch.float64)
    given = scores, None, None, None, 0.2, False
    _, text, image = kernels.max_of_hinges_from_scores_forward(*given)
    assert text.tolist() == [1, 0, 0, 0] and image.tolist() == [1, 0, 0, 0]
    grad = step("max_of_hinges_from_scores", scores, Pairs(None, None, None))[1]
    wanted = torch.autograd.functional.vjp(
        lambda s: reference.max_of_hinges_from_scores(s, None, None, None, 0.3, False),
        scores,
        torch.linspace(0.5, 2, 4, dtype=torch.float64),
    )[1]
    torch.testing.assert_close(grad, wanted)


@on("native", "triton")
def test_infinite_scores_of_negatives(kernels: Any) -> None:
    """-inf leaves the sums: a model masks pairs with it."""
    scores, pairs = problem(5, 1)
    assert pairs.positive is not None
    scores[pairs.positive[0] - 1, 0] = -torch.inf
    for name in OPERATORS:
        found, wanted = step(name, scores, pairs), step(name, scores, pairs, "reference")
        torch.testing.assert_close(found[:2], wanted[:2])


@on("native", "triton")
def test_an_image_whose_negatives_are_all_masked_has_no_gradient_from_them(kernels: Any) -> None:
    """The formula in plain PyTorch gives NaN: -inf minus the sum, -inf."""
    scores, pairs = problem(5, 1)
    assert pairs.positive is not None
    masked = torch.zeros_like(scores, dtype=torch.bool)
    masked[2] = pairs.positive != 2
    scores = scores.masked_fill(masked, -torch.inf)
    found, grad, slope = step("log_sum_exp_from_scores", scores, pairs)
    assert found[2] == -torch.inf and slope.isfinite()
    assert grad.isfinite().all() and (grad[masked] == 0).all()


@pytest.mark.any_set
@NATIVE
@pytest.mark.parametrize("name", [n for n in OPERATORS if n != "semihard"])
def test_opcheck(kernels: Any, name: str) -> None:
    from operator_inputs import sample_inputs

    for part in ("forward", "backward"):
        operator = getattr(kernels, f"{name}_{part}").default
        for inputs in sample_inputs(f"{name}_{part}"):
            torch.library.opcheck(operator, inputs)
