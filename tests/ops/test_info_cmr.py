"""InfoCMR as one CUDA operator, on the emulator."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from emulated import NAMESPACE, SCHEDULES, as_native
from info_cmr_problems import Options, Problem, formula, near_duplicates, problem
from itm_kernels import backends
from itm_kernels.ops import _info_cmr
from kernels import MARKS

pytestmark = MARKS["emulated"]


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    with as_native():
        yield


def operator(case: Problem, options: Options) -> Tensor:
    image, text, scale, *rest = case
    return _info_cmr.InfoCMRTotalFunction.apply(NAMESPACE, image, text, scale, *rest, 0.0, *options)


def results(function: Any, case: Problem, options: Options) -> list[Tensor]:
    """Return the loss and its gradients."""
    floats = [t.detach().requires_grad_() for t in case[:3]]
    loss = function(Problem(*floats, *case[3:]), options)
    return [loss.detach(), *torch.autograd.grad(loss, floats)]


def close_in_fp64(case: Problem, options: Options) -> None:
    found, wanted = (results(f, case, options) for f in (operator, formula))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


def hold_to_the_rule(cases: list[Problem], dtype: torch.dtype, options: Options) -> None:
    """Error against fp64, on average: at most twice that of the formula in the same precision."""
    errors = []
    for case in cases:
        rounded = case.to(dtype)
        exact = results(formula, rounded.to(torch.float64), options)
        eager, ours = (results(f, rounded, options) for f in (formula, operator))
        assert [t.dtype for t in ours] == [t.dtype for t in eager]
        errors.append(
            [
                [(t.double() - wanted).abs().max() for t in (found, theirs)] + [wanted.abs().max()]
                for wanted, theirs, found in zip(exact, eager, ours, strict=True)
            ]
        )
    for of_ours, of_eager, size in torch.tensor(errors, dtype=torch.float64).mean(0):
        assert of_ours <= 2 * of_eager + 8 * torch.finfo(torch.float32).eps * size


# One pair; more clusters than members; several parts of D, blocks and tiles; five texts an image.
SIZES = [(1, 1, 1, 1, 2), (2, 2, 3, 5, 1), (33, 33, 96, 8, 40), (5, 25, 333, 3, 3)]


@pytest.mark.parametrize("weights", ["kam", "attention"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_fp64_is_the_reference(size: tuple[int, ...], weights: str) -> None:
    for draw in (True, False):
        options = Options(size[3], weights=weights, weight=1 / size[1])
        close_in_fp64(problem(*size, draw=draw), options)


@pytest.mark.parametrize("left_out", ["clusters", "noise", "both"])
def test_without_extras(left_out: str) -> None:
    K, Z = (0 if left_out in (name, "both") else 3 for name in ("clusters", "noise"))
    close_in_fp64(problem(7, 21, 12, K, Z), Options(K))


def test_more_rows_than_a_thread_has() -> None:
    close_in_fp64(problem(3, 260, 5, 2, 258), Options(2, sigma=0.5))


def test_systems_beyond_shared_memory_and_empty_clusters() -> None:
    case = problem(70, 70, 4, 4)
    case.text[1:] = case.text[1:] / 50 + case.text[0]  # one cluster has nearly all
    close_in_fp64(case, Options(4))
    close_in_fp64(problem(70, 70, 4, 1), Options(1, iterations=0))


def test_ids_that_repeat_in_a_square_batch() -> None:
    case = problem(9, 9, 8)
    ids = torch.arange(9) // 2
    close_in_fp64(case._replace(positive=torch.arange(9), image_ids=ids, text_ids=ids), Options())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(2, 2, 3), (33, 33, 96), (5, 25, 333)], ids=str)
def test_error_is_at_most_twice_the_formulas(size: tuple[int, ...], dtype: torch.dtype) -> None:
    hold_to_the_rule([problem(*size)], dtype, Options())


@pytest.mark.parametrize("weights", ["kam", "attention"])
def test_near_duplicates(weights: str) -> None:
    """One of two near-duplicates has the anchor's id: kam's weights are thousands and cancel.

    Gram matrices in fp32 would lose all digits of a vector's norm: a rounding of 1e-6 times
    weights squared.
    """
    hold_to_the_rule(
        [near_duplicates(seed) for seed in range(3)], torch.float32, Options(weights=weights)
    )


def test_duplicates_have_distance_zero() -> None:
    """Fewer distinct rows than clusters: the first centroid is repeated, its copies stay empty."""
    case = problem(12, 12, 20, 8)
    for rows in (case.image, case.text):
        rows[:] = rows[torch.arange(12) % 3]
    close_in_fp64(case, Options(8))
    hold_to_the_rule([case], torch.float32, Options(8))


def test_rows_without_a_direction() -> None:
    case = problem(6, 6, 5)
    assert case.image_draws is not None and case.text_draws is not None
    # They start a cluster: their distances to centroids of norm 1 are equal up to rounding.
    for rows, draws, n in ((case.image, case.image_draws, 2), (case.text, case.text_draws, 4)):
        rows[n], draws[0, n] = 0, 1e-6
    close_in_fp64(case, Options())
    found = results(operator, case, Options())
    assert found[1][2].count_nonzero() == found[2][4].count_nonzero() == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_values_that_are_not_finite_show(bad: float) -> None:
    for side in (0, 1):
        for N in (1, 5):
            case = problem(N, N, 6)
            case[side][N - 1, 3] = bad
            loss, *grads, _ = results(operator, case, Options())
            assert loss.isnan()
            assert all(grad.isnan().any(1).all() for grad in grads)


def test_wrong_ids_make_loss_and_gradients_nan() -> None:
    case = problem(3, 6, 4)
    assert case.positive is not None
    case.positive[4] = -1
    loss, *grads = results(operator, case, Options())
    assert loss.isnan()
    assert all(grad.isnan().all() for grad in grads)


def test_strides() -> None:
    case = problem(7, 21, 10)
    assert case.noise is not None and case.text_draws is not None
    apart = case._replace(
        image=case.image.T.contiguous().T,
        text=torch.empty(21, 20, dtype=torch.float64)[:, ::2].copy_(case.text),
        noise=torch.empty(5, 11, dtype=torch.float64)[:, 1:].copy_(case.noise),
        text_draws=case.text_draws.T.contiguous().T,
        text_ids=torch.stack([case.text_ids] * 2, 1)[:, 0],
    )
    for ours, same in zip(
        *(results(operator, rows, Options()) for rows in (case, apart)), strict=True
    ):
        assert torch.equal(ours, same)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_schedule_gives_the_same_bits(dtype: torch.dtype) -> None:
    case, found = problem(9, 27, 40).to(dtype), []
    for schedule in SCHEDULES:
        with as_native(schedule):
            found.append(results(operator, case, Options()))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_the_scale_may_be_a_number() -> None:
    case = problem(6, 6, 5)
    image, text, scale, *rest = case
    forward = getattr(torch.ops, NAMESPACE).info_cmr_total_forward
    inputs = image, text, None, *rest, scale.item(), *Options()
    total, *kept = forward(*inputs, False)
    assert torch.equal(total, operator(case, Options()))
    assert all(t.numel() == 0 for t in kept[:3])


def test_opcheck() -> None:
    case = problem(3, 6, 5).to(torch.float32)
    operators = getattr(torch.ops, NAMESPACE)
    for gradients in (False, True):
        inputs = *case, 0.0, *Options(), gradients
        torch.library.opcheck(operators.info_cmr_total_forward, inputs)
    kept = operators.info_cmr_total_forward(*inputs)[1:]
    given = torch.ones(()), case.image, case.text, case.noise, *kept
    torch.library.opcheck(operators.info_cmr_total_backward, given)


def test_its_range_ends_at_the_counted_size() -> None:
    with patch.dict(backends.NATIVE_KERNELS, cuda=backends.NATIVE_KERNELS["cpu"]):
        found = backends.range_of("cuda", "native", "info_cmr_total")
        assert (found.first_rows, found.most_rows) == (256, 1024)
        assert backends.choose("info_cmr_total", "cuda", (256, 256)) == "native"
