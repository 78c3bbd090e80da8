"""Cross attention: values against the oracle, gradients, padding, cancellation and precision."""

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

import oracles
from itm_kernels import ops
from sets_of_rows import (
    EVERY_AGGREGATE,
    EVERY_NORM,
    SHAPES,
    Sets,
    assert_precise,
    close,
    drawn,
    graded,
    padded_with,
)

DIRECTIONS = {"t2i": {"smooth": 9.0, "scale": 6.0}, "i2t": {"smooth": 4.0, "scale": 5.0}}
SCAN = [{"direction": name, **numbers} for name, numbers in DIRECTIONS.items()]


def test_the_hand_worked_check(backend: str) -> None:
    eye = torch.eye(2, dtype=torch.float64)[None]
    options = {"feature_norm": "none", "smooth": 1.0, "scale": 6.0, "backend": backend}
    cosine = math.e / math.hypot(math.e, 1)  # of shares e : 1 of two unit vectors, .93850790
    mean = ops.cross_attention(eye, eye, aggregate="mean", **options)
    close(mean, [[cosine]])
    soft = ops.cross_attention(eye, eye, aggregate="log_sum_exp", **options)
    close(soft, [[cosine + math.log(2) / 6]])


@cache
def by_the_oracle(shape: tuple[int, ...], counts: bool, **options: Any) -> Any:
    """Return the oracle's scores, once for all backends."""
    return oracles.cross_attention(*drawn(shape, counts=counts).arrays(), **options)


@cache
def by_the_reference(shape: tuple[int, ...], counts: bool, **options: Any) -> list[Tensor]:
    """Return the reference's scores and gradients, once for all backends."""
    return graded(ops.cross_attention, drawn(shape, counts=counts), **options, backend="reference")


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_values_and_gradients(
    direction: str, shape: tuple[int, ...], counts: bool, backend: str
) -> None:
    sets = drawn(shape, counts=counts)
    options = {"direction": direction, **DIRECTIONS[direction]}
    found = graded(ops.cross_attention, sets, **options, backend=backend)
    close(found[0], by_the_oracle(shape, counts, **options))
    for ours, theirs in zip(found, by_the_reference(shape, counts, **options), strict=True):
        close(ours, theirs, 1e-11)


@pytest.mark.parametrize("aggregate", EVERY_AGGREGATE)
@pytest.mark.parametrize("feature_norm", EVERY_NORM)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_option(direction: str, feature_norm: str, aggregate: str, backend: str) -> None:
    shape = (4, 5, 6, 7, 9)
    options = {"direction": direction, "feature_norm": feature_norm, "aggregate": aggregate}
    options |= {"smooth": 3.0, "scale": 2.5}
    found = graded(ops.cross_attention, drawn(shape, counts=True), **options, backend=backend)
    close(found[0], by_the_oracle(shape, True, **options))
    for ours, theirs in zip(found, by_the_reference(shape, True, **options), strict=True):
        close(ours, theirs, 1e-11)


@pytest.mark.parametrize("feature_norm", EVERY_NORM)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradcheck(direction: str, feature_norm: str, backend: str) -> None:
    regions, words, *counts = drawn((2, 3, 3, 2, 4), counts=True)
    options = {"direction": direction, "feature_norm": feature_norm, "backend": backend}
    assert torch.autograd.gradcheck(
        lambda v, e: ops.cross_attention(v, e, *counts, **options),
        (regions, words),
        fast_mode=backend == "triton",  # the interpreter is slow
    )


@pytest.mark.parametrize("options", SCAN, ids=DIRECTIONS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_padded_rows_change_no_bit(value: float, options: dict[str, Any], backend: str) -> None:
    sets = drawn((4, 5, 6, 7, 9), counts=True, dtype=torch.float32)
    expected = graded(ops.cross_attention, padded_with(sets, 0.0), **options, backend=backend)
    found = graded(ops.cross_attention, padded_with(sets, value), **options, backend=backend)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("aggregate", EVERY_AGGREGATE)
def test_an_empty_set_scores_zero_without_gradient(aggregate: str, backend: str) -> None:
    sets = drawn((3, 4, 2, 3, 5), counts=True)  # the third of each side is empty
    found = ops.cross_attention(*sets, aggregate=aggregate, backend=backend)
    assert (found[2] == 0).all() and (found[:, 2] == 0).all() and (found[:2, :2] != 0).all()
    of_empty = torch.autograd.grad(found[2].sum() + found[:, 2].sum(), sets.leaves)
    assert all((grad == 0).all() for grad in of_empty)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", SCAN, ids=DIRECTIONS)
def test_error_is_at_most_twice_eagers(
    options: dict[str, Any], dtype: torch.dtype, backend: str
) -> None:
    sets = drawn((5, 6, 36, 12, 128), counts=True, dtype=dtype)
    scores = ops.cross_attention(*sets, **options, backend=backend)
    assert scores.dtype == torch.float32
    assert_precise(ops.cross_attention, sets, backend, **options)


@pytest.mark.parametrize("options", SCAN, ids=DIRECTIONS)
def test_error_at_queries_of_one_row(options: dict[str, Any], backend: str) -> None:
    """Divided by its own norm, a product is constant: its gradient is a difference that cancels."""
    sets = drawn((5, 4, 36, 50, 24), counts=True, seed=2, dtype=torch.float32)
    assert_precise(ops.cross_attention, sets, backend, **options)


def opposite(direction: str, difference: float, queries: int = 4) -> Sets:
    """Return contexts in pairs of almost opposite rows: what is attended to nearly cancels."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(4, 3, 64, generator=generator, dtype=torch.float64)
    near = -half + difference * torch.randn(4, 3, 64, generator=generator, dtype=torch.float64)
    asking = torch.randn(5, 4, 64, generator=generator, dtype=torch.float64)[:, :queries]
    sides = torch.cat([half, near], 1), asking
    return Sets(*(sides if direction == "t2i" else sides[::-1]), None, None).cast(torch.float32)


@pytest.mark.parametrize("seed", [4, 9, 12, 13, 21])
def test_error_of_a_softmax_over_the_query(seed: int, backend: str) -> None:
    """The gradient of attention is a difference from its mean, whose rounding all rows share."""
    sets = drawn((5, 4, 36, 50, 24), counts=True, seed=seed, dtype=torch.float32)
    options = {"feature_norm": "softmax", "smooth": 9.0, "scale": 6.0}
    assert_precise(ops.cross_attention, sets, backend, **options)


@pytest.mark.parametrize("difference", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_near_opposite_rows(direction: str, difference: float, backend: str) -> None:
    """|a|^2 from a Gram matrix in fp32 would have no digits left at the smallest difference."""
    sets = opposite(direction, difference)
    options = {"feature_norm": "none", "smooth": 1e-3, "aggregate": "mean"}
    assert_precise(ops.cross_attention, sets, backend, direction=direction, **options)


@pytest.mark.parametrize("feature_norm", ["l2norm", "softmax"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_near_opposite_rows_at_queries_of_one_row(
    direction: str, feature_norm: str, backend: str
) -> None:
    """Over a query of one row all rows have a share of 1: other roundings would not cancel."""
    sets = opposite(direction, 1e-3, queries=1)
    options = {"feature_norm": feature_norm, "smooth": 1.0, "aggregate": "mean"}
    assert_precise(ops.cross_attention, sets, backend, direction=direction, **options)


def test_rows_of_zeros_score_zero_with_finite_gradients(backend: str) -> None:
    regions = torch.zeros(2, 3, 4, requires_grad=True)
    words = torch.ones(3, 2, 4, requires_grad=True)
    for feature_norm in EVERY_NORM:
        options = {"feature_norm": feature_norm, "aggregate": "mean", "backend": backend}
        scores = ops.cross_attention(regions, words, **options)
        assert (scores == 0).all()
        grads = torch.autograd.grad(scores.sum(), (regions, words))
        assert all(grad.isfinite().all() for grad in grads)


# In fp16, the gradient of a row of zeros is infinite; the interpreter warns.
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-2, 1.0, 30.0])
def test_error_beside_rows_of_zeros(size: float, dtype: torch.dtype, backend: str) -> None:
    """The gradient of a word of zeros is divided by 1e-8; that of others must not be lost."""
    sets = drawn((4, 3, 5, 6, 40), dtype=dtype)
    rows = (size * side.detach() for side in sets.leaves)
    sets = Sets(*rows, None, None).cast(dtype)

    def padded(regions: Tensor, words: Tensor, *counts: None, **options: Any) -> Tensor:
        return ops.cross_attention(*(pad(t, (0, 0, 0, 2)) for t in (regions, words)), **options)

    for options in SCAN:
        assert_precise(padded, sets, backend, **options)


def test_of_equal_maxima_the_first_word_takes_the_gradient(backend: str) -> None:
    regions = torch.tensor([[[1.0, 0.5], [0.2, 0.9]]], dtype=torch.float64)
    words = torch.tensor([[[1.0, 2.0], [1.0, 2.0]]], dtype=torch.float64, requires_grad=True)
    options = {"feature_norm": "none", "aggregate": "max", "backend": backend}
    (grad,) = torch.autograd.grad(ops.cross_attention(regions, words, **options).sum(), words)
    assert (grad[0, 0] != 0).all() and (grad[0, 1] == 0).all()


def test_large_logits_do_not_overflow(backend: str) -> None:
    sets = drawn((2, 3, 4, 5, 6), dtype=torch.float32)
    options = {"feature_norm": "none", "smooth": 1e5, "scale": 1e5, "backend": backend}
    found = graded(ops.cross_attention, sets, **options)
    assert all(t.isfinite().all() for t in found)
    close(
        found[0],
        oracles.cross_attention(*sets.arrays(), feature_norm="none", smooth=1e5, scale=1e5),
        1e-4,
    )


def test_nan_in_a_row_that_exists_is_kept(backend: str) -> None:
    regions, words = (rows.detach().clone() for rows in drawn((2, 2, 3, 3, 4)).leaves)
    regions[0, 1, 2] = torch.nan
    for aggregate in EVERY_AGGREGATE:
        found = ops.cross_attention(regions, words, aggregate=aggregate, backend=backend)
        assert found.isnan().tolist() == [[True, True], [False, False]]


def test_options_are_checked() -> None:
    regions, words = drawn((2, 3, 4, 5, 6)).leaves
    for options, message in (
        ({"feature_norm": "l1norm"}, "feature_norm must be one of 'clipped_l2norm', "),
        ({"direction": "i2i"}, "direction must be one of 't2i', 'i2t', got 'i2i'"),
        ({"aggregate": "LogSumExp"}, "aggregate must be one of 'log_sum_exp', "),
        ({"scale": 0.0}, "scale must be finite and > 0, got 0.0"),
    ):
        with pytest.raises(ValueError, match=f"^cross_attention: {message}"):
            ops.cross_attention(regions, words, **options)


def test_counts_that_cannot_be_read_make_scores_nan() -> None:
    regions, words = (rows.detach() for rows in drawn((2, 3, 4, 5, 6)).leaves)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def scores(counts: Tensor) -> Tensor:
        return ops.cross_attention(regions, words, counts, direction="i2t")

    assert scores(torch.tensor([4, 5])).isnan().tolist() == [[False] * 3, [True] * 3]
