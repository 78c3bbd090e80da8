"""The intra-modal constraint on every backend: its mask, and every way to reach a gradient."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from emulated import SCHEDULES, as_native, launches
from interpreted import beyond_finite
from itm_kernels import functional, ops
from itm_kernels.reference import similarity
from kernels import cases, on
from loss_cases import batch
from random_tensors import rows

METRICS = ("cosine", "l1", "l2", "sqeuclidean")
MODES = ("paper", "repel", "official", "per_row")
REPEATED = (False, True)  # ids


def band(
    x: Tensor, metric: str, low: float = 0.2, high: float = 0.6, around: float = 1 / 8
) -> tuple[float, float]:
    """Return bounds between two distances, at these quantiles of all.

    Each bound is in the widest gap of a part `around` of the distances, so that no pair falls on
    another side of it in a lower precision.
    """
    delta = distances(x.detach().double(), metric)
    values = delta[torch.ones_like(delta, dtype=torch.bool).triu(1)].sort().values
    gaps, found = values.diff(), []
    for quantile in (low, high):
        start = int(quantile * len(gaps))
        at = start + int(gaps[start : start + max(1, int(around * len(gaps)))].argmax())
        found.append(float((values[at] + values[at + 1]) / 2))
    return found[0], found[1]


def distances(x: Tensor, metric: str) -> Tensor:
    return 1 - similarity(x, x, metric) if metric == "cosine" else similarity(x, x, metric)


def options(
    x: Tensor,
    metric: str,
    mode: str,
    repeated: bool = False,
    low: float = 0.2,
    high: float = 0.6,
    around: float = 1 / 8,
) -> dict[str, object]:
    """Return options of a constraint whose bounds are at two quantiles of all distances."""
    official = mode in ("official", "per_row")
    lower, upper = band(x, metric, low, high, around)
    if official:  # similarities between upper and 1 - lower, else ranks
        lower, upper = (lower, 1 - upper) if metric == "cosine" else (low, high)
    return {
        "metric": metric,
        "mode": "official" if official else mode,
        "thresholds": "per_row" if mode == "per_row" else "row0",
        "lower": lower,
        "upper": upper,
        "ids": torch.arange(len(x)) % (len(x) // 3) if repeated else None,
    }


def outcome(x: Tensor, given: dict[str, Any], backend: str) -> list[Tensor]:
    """Return the sums of all rows and a gradient, in fp64."""
    x = x.detach().requires_grad_()
    found = functional.intra_modal_constraint(x, **given, reduction="none", backend=backend)
    upstream = torch.linspace(-1, 2, len(x), dtype=torch.float64).to(found.dtype)
    (grad,) = torch.autograd.grad(found, x, upstream)
    return [found.detach().double(), grad.double()]


def assert_is_the_reference(x: Tensor, given: dict[str, Any], backend_name: str) -> None:
    found, wanted = (outcome(x, given, backend) for backend in (backend_name, "reference"))
    torch.testing.assert_close(found, wanted, equal_nan=True)


# Native: 300 rows are three blocks of 128. With D = 9 no mask is kept (300 > 32 * 9), with 37 one
# is; with 333 all distances are computed at once where rows have norms. From a share of 0.5 on
# gradients are products. Emulated and interpreted: 70 rows are three small tiles, or three words
# and two tiles of columns; with D = 2 no mask is kept.
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mode", MODES)
@cases(
    "N, D, low, high, repeated",
    native=[
        (300, D, 0.3, 0.3 + share, repeated)
        for D, share, repeated in product((9, 37, 333), (0.02, 0.5), REPEATED)
    ],
    emulated=[(70, D, 0.2, 0.6, repeated) for D, repeated in product((2, 9), REPEATED)],
    triton=[(70, 2, 0.3, 0.8, False), (70, 37, 0.3, 0.8, True)],
)
def test_gradient_is_the_references(
    backend_name: str,
    N: int,
    D: int,
    low: float,
    high: float,
    repeated: bool,
    metric: str,
    mode: str,
) -> None:
    x, _ = batch(N, D)
    given = options(x, metric, mode, repeated, low, high, around=0)
    assert outcome(x, given, "reference")[0].count_nonzero() > 5 * N // 7
    assert_is_the_reference(x, given, backend_name)


@pytest.mark.parametrize("metric", METRICS)
@cases("N", native=[1, 31, 33, 127, 300], emulated=[1, 31, 33, 127], triton=[1, 31, 33, 127])
def test_the_mask_is_the_band(kernels: Any, N: int, metric: str) -> None:
    x, ids = rows(N, 37), torch.arange(N) // 2
    low, high = band(x, metric, 0.3, 0.7) if N > 1 else (0.1, 0.9)
    delta = distances(x, metric)
    wanted = (delta > low) & (delta < high) & (ids[:, None] != ids)
    found = mask_of(kernels, x, low, high, ids, metric)
    if kernels.name == "itm_triton":  # writes the diagonal's words and those above
        words = torch.arange(N) // 32
        written = words >= words[:, None]
        found, wanted = found[written], wanted[written]
    else:
        assert not found[:, N:].any()
        found = found[:, :N]
    assert torch.equal(found, wanted)


def mask_of(
    kernels: Any, x: Tensor, low: float, high: float, ids: Tensor | None, metric: str
) -> Tensor:
    """Return the mask as booleans."""
    *_, mask = kernels.intra_modal_forward(x, ids, metric, "paper", low, high, False, True)
    found = ((mask[:, :, None] >> torch.arange(32)) & 1).flatten(1).bool()
    return found[:, : len(x)] if kernels.name == "itm_triton" else found


@beyond_finite
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@on("native", "emulated")
def test_rows_that_are_not_finite_show(backend_name: str, metric: str, value: float) -> None:
    # In the last column, where tiles could end early: all distances exceed the bound before it.
    x = 100 * rows(70, 140)
    x[66, 139] = value
    found, wanted = (
        ops.intra_modal_sum(x, 0.001, 0.002, metric, backend=name)
        for name in (backend_name, "reference")
    )
    assert wanted.isnan().any()
    torch.testing.assert_close(found, wanted, equal_nan=True)


@on("native", "emulated")
def test_a_nan_row_shows_in_every_sum(backend_name: str) -> None:
    x = rows(140, 16)
    x[130, 3] = torch.nan
    for metric in METRICS:
        assert ops.intra_modal_sum(x, 0.5, 0.9, metric, backend=backend_name).isnan().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("mode", ["paper", "repel", "official"])
@cases("N, D", native=[(140, 16)], emulated=[(70, 9)])
def test_the_gradient_of_l1_is_nan_where_the_references_is(
    backend_name: str, N: int, D: int, mode: str, value: float
) -> None:
    x = rows(N, D)
    given = options(x, "l1", mode)
    x[N - 4, D - 1] = x[3, D - 1] = value
    assert outcome(x, given, "reference")[1].isnan().any()
    assert_is_the_reference(x, given, backend_name)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("mode", ["paper", "official"])
@on("emulated")
def test_rows_that_are_zero_equal_or_nan(backend_name: str, metric: str, mode: str) -> None:
    x = rows(35, 9)
    given = options(x, metric, mode)
    x[3] = 0
    x[9] = x[8]
    assert_is_the_reference(x, given, backend_name)
    x[34, 2] = torch.nan
    assert outcome(x, given, "reference")[0].isnan().any()
    assert_is_the_reference(x, given, backend_name)


# -- CUDA ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", ["paper", "repel"])
@pytest.mark.parametrize("metric", ["cosine", "l1", "l2"])
@pytest.mark.parametrize(("N", "D"), [(2, 3), (33, 17), (127, 96), (40, 333), (9, 1000)])
@on("emulated")
def test_error_is_at_most_twice_the_references(
    backend_name: str, metric: str, mode: str, N: int, D: int, dtype: torch.dtype
) -> None:
    x = rows(N, D, dtype=dtype)
    given = options(x, metric, mode) if N > 2 else {"metric": metric, "mode": mode, "upper": 9.0}
    exact, eager = outcome(x.double(), given, "reference"), outcome(x, given, "reference")
    for wanted, theirs, found in zip(exact, eager, outcome(x, given, backend_name), strict=True):
        allowed = 2 * (theirs - wanted).abs().max()
        allowed += 4 * torch.finfo(torch.float32).eps * wanted.abs().max()
        assert (found - wanted).abs().max() <= allowed


# 1,024 rows are the last whose scores are stored.
@pytest.mark.parametrize("N", [1024, 1025])
@on("emulated")
def test_stored_scores_and_blocks_agree(backend_name: str, N: int) -> None:
    x = rows(N, 36)
    for metric in ("cosine", "l2"):
        assert_is_the_reference(x, options(x, metric, "paper"), backend_name)


# Unit rows, scores, sums and mask; unit rows, products, the step through norms. With D = 64 a
# distance is computed in one part.
@pytest.mark.parametrize(
    ("metric", "mode", "count"),
    [("cosine", "paper", 3 + 3), ("cosine", "official", 2 + 1), ("l2", "paper", 2 + 2)],
)
@on("emulated")
def test_launches_are_few(backend_name: str, metric: str, mode: str, count: int) -> None:
    x = rows(7, 64, dtype=torch.float32)
    before = launches()
    outcome(x, options(x, metric, mode), backend_name)
    assert launches() - before == count


@on("emulated")
def test_large_tiles_and_tiles_that_end_early(kernels: Any, backend_name: str) -> None:
    # 16 tiles of 128 rows are the first that are not small. In three clusters far apart, only rows
    # of the same cluster are near. Tiles that end early must not lose a pair or a NaN.
    x = rows(1930, 68, dtype=torch.float32) + 100.0 * (torch.arange(1930) // 700)[:, None]
    low, high = 0.0, 80.0
    delta = similarity(x, x, "l1")
    wanted = (delta > low) & (delta < high)
    assert 0.2 < wanted.float().mean() < 0.5
    mask = mask_of(kernels, x, low, high, None, "l1")
    assert torch.equal(mask[:, :1930], wanted) and not mask[:, 1930:].any()
    found = ops.intra_modal_sum(x, low, high, "l1", backend=backend_name)
    torch.testing.assert_close(found, torch.where(wanted, delta, 0).sum(1))


@on("emulated")
def test_every_schedule_gives_the_same_bits(backend_name: str) -> None:
    x, found = rows(70, 20, dtype=torch.float32), []
    for schedule in SCHEDULES:
        with as_native(schedule):
            found.append([])
            for metric in ("cosine", "l1", "l2"):
                found[-1] += outcome(x, options(x, metric, "paper"), backend_name)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mode", ["paper", "official"])
@on("emulated")
def test_opcheck(kernels: Any, metric: str, mode: str) -> None:
    x, ids = rows(9, 6, dtype=torch.float32), torch.arange(9) // 2
    given = x, ids, metric, mode, 0.1, 0.9, False, mode == "paper"
    torch.library.opcheck(kernels.intra_modal_forward, given)
    saved = kernels.intra_modal_forward(*given)
    grad = torch.ones_like(saved[0])
    torch.library.opcheck(kernels.intra_modal_backward, (grad, x, ids, *saved, metric, mode))
