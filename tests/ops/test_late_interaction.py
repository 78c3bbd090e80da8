"""Late interaction: values against the oracle, gradients, padding, ties and precision."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import oracles
from itm_kernels import ops
from sets_of_rows import SHAPES, Sets, assert_precise, close, drawn, graded, padded_with

DIRECTIONS = ("t2i", "i2t")


def test_the_hand_worked_check(backend: str) -> None:
    eye = torch.eye(2)[None]
    for direction in DIRECTIONS:
        assert ops.late_interaction(eye, eye, direction=direction, backend=backend) == 1


@cache
def by_the_oracle(shape: tuple[int, ...], counts: bool, **options: Any) -> Any:
    """Return the oracle's scores, once for all backends."""
    return oracles.late_interaction(*drawn(shape, counts=counts).arrays(), **options)


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_values_are_the_oracles(
    direction: str, shape: tuple[int, ...], counts: bool, backend: str
) -> None:
    sets = drawn(shape, counts=counts)
    for reduce in ("mean", "sum"):
        for normalize in (True, False):
            options = {"direction": direction, "reduce": reduce, "normalize": normalize}
            found = ops.late_interaction(*sets, **options, backend=backend)
            close(found, by_the_oracle(shape, counts, **options))


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradients_are_the_references(
    direction: str, shape: tuple[int, ...], counts: bool, backend: str
) -> None:
    sets = drawn(shape, counts=counts)
    for reduce, normalize in (("mean", True), ("sum", False)):
        options = {"direction": direction, "reduce": reduce, "normalize": normalize}
        expected = graded(ops.late_interaction, sets, **options, backend="reference")
        found = graded(ops.late_interaction, sets, **options, backend=backend)
        for ours, theirs in zip(found, expected, strict=True):
            close(ours, theirs)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradcheck(direction: str, backend: str) -> None:
    regions, words, *counts = drawn((2, 3, 3, 2, 4), counts=True)
    assert torch.autograd.gradcheck(
        lambda v, e: ops.late_interaction(v, e, *counts, direction=direction, backend=backend),
        (regions, words),
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_padded_rows_change_no_bit(value: float, direction: str, backend: str) -> None:
    sets = drawn((4, 5, 6, 7, 9), counts=True, dtype=torch.float32)
    options = {"direction": direction, "backend": backend}
    expected = graded(ops.late_interaction, padded_with(sets, 0.0), **options)
    found = graded(ops.late_interaction, padded_with(sets, value), **options)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_an_empty_set_scores_zero_without_gradient(backend: str) -> None:
    sets = drawn((3, 4, 2, 3, 5), counts=True)  # the third of each side is empty
    found = ops.late_interaction(*sets, backend=backend)
    assert (found[2] == 0).all() and (found[:, 2] == 0).all() and (found[:2, :2] != 0).all()
    of_empty = torch.autograd.grad(found[2].sum() + found[:, 2].sum(), sets.leaves)
    assert all((grad == 0).all() for grad in of_empty)


def test_of_equal_matches_the_first_takes_the_gradient(backend: str) -> None:
    words = torch.eye(2)[None].requires_grad_()
    regions = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]], requires_grad=True)
    scores = ops.late_interaction(regions, words, normalize=False, reduce="sum", backend=backend)
    (grad,) = torch.autograd.grad(scores.sum(), regions)
    assert grad.tolist() == [[[1, 0], [0, 0], [0, 1]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_error_is_at_most_twice_eagers(direction: str, dtype: torch.dtype, backend: str) -> None:
    sets = drawn((5, 6, 36, 12, 128), counts=True, dtype=dtype)
    scores = ops.late_interaction(*sets, direction=direction, backend=backend)
    assert scores.dtype == torch.float32
    assert_precise(ops.late_interaction, sets, backend, direction=direction)


def test_strided_rows_are_read_as_they_are(backend: str) -> None:
    sets = drawn((3, 4, 5, 6, 8))
    strided = Sets(
        sets.regions.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_(),
        torch.cat([sets.words.detach()] * 2, 2)[..., :8].requires_grad_(),
        *sets[2:],
    )
    expected = graded(ops.late_interaction, sets, backend=backend)
    found = graded(ops.late_interaction, strided, backend=backend)
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs)


def test_nan_in_a_row_that_exists_is_kept(backend: str) -> None:
    regions, words = (rows.detach().clone() for rows in drawn((2, 2, 3, 3, 4)).leaves)
    regions[0, 1, 2] = torch.nan
    found = ops.late_interaction(regions, words, backend=backend)
    assert found.isnan().tolist() == [[True, True], [False, False]]


def test_counts_out_of_range_are_refused_by_value() -> None:
    regions, words = drawn((2, 3, 4, 5, 6)).leaves
    message = (
        r"^late_interaction: word_counts\[1\] is 6, but words \[3, 5, 6\] has 0 to 5 per sample; "
        "counts are those of rows before padding$"
    )
    with pytest.raises(ValueError, match=message):
        ops.late_interaction(regions, words, None, torch.tensor([0, 6, 5]))
    with pytest.raises(ValueError, match=r"region_counts must have shape \[2\], one count per row"):
        ops.late_interaction(regions, words, torch.ones(3).long())


def test_counts_that_cannot_be_read_make_scores_nan() -> None:
    regions, words = (rows.detach() for rows in drawn((2, 3, 4, 5, 6)).leaves)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def scores(counts: Tensor) -> Tensor:
        return ops.late_interaction(regions, words, None, counts)

    found = scores(torch.tensor([5, 6, -1]))
    assert found.isnan().tolist() == [[False, True, True]] * 2


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4, 5)])
def test_rows_of_another_rank_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^late_interaction: regions must have shape \[N, R, D\]"):
        ops.late_interaction(torch.ones(shape), torch.ones(2, 3, 4))
