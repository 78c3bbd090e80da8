"""The CUDA intra-modal constraint, from binding to kernel, on the emulator."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from emulated import NAMESPACE, SCHEDULES, as_native, launches
from itm_kernels import functional, ops
from itm_kernels.reference import similarity
from kernels import MARKS

pytestmark = MARKS["emulated"]
METRICS = ("cosine", "l1", "l2", "sqeuclidean")


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    with as_native():
        yield


def rows(N: int, D: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(N + D)
    return torch.randn(N, D, generator=generator, dtype=torch.float64).to(dtype)


def between(x: Tensor, metric: str, shares: tuple[float, float]) -> tuple[float, float]:
    """Return bounds at these shares of all distances, in the widest gap near each."""
    delta = similarity(x.double(), x.double(), metric)
    delta = 1 - delta if metric == "cosine" else delta
    pairs = delta[torch.ones_like(delta, dtype=torch.bool).triu(1)].sort().values
    gaps = pairs.diff()
    found = []
    for share in shares:
        start = int(share * len(gaps))
        at = start + int(gaps[start : start + max(1, len(gaps) // 8)].argmax())
        found.append(float((pairs[at] + pairs[at + 1]) / 2))
    return found[0], found[1]


def outcome(x: Tensor, options: dict[str, object], backend: str) -> list[Tensor]:
    x = x.detach().requires_grad_()
    found = functional.intra_modal_constraint(x, **options, reduction="none", backend=backend)
    pull = torch.arange(len(x)) % 5 - 2
    (grad,) = torch.autograd.grad(found, x, pull.to(found.dtype))
    return [found.detach().double(), grad.double()]


def options(x: Tensor, metric: str, mode: str, repeated: bool = False) -> dict[str, object]:
    official = mode in ("official", "per_row")
    low, high = between(x, metric, (0.2, 0.6))
    if official:
        low, high = (low, 1 - high) if metric == "cosine" else (0.2, 0.6)
    return {
        "metric": metric,
        "mode": "official" if official else mode,
        "thresholds": "per_row" if mode == "per_row" else "row0",
        "lower": low,
        "upper": high,
        "ids": torch.arange(len(x)) // 2 if repeated else None,
    }


# 70 rows are three small tiles. With D = 2 no mask is kept (70 > 32 * 2): panels are of few tiles.
@pytest.mark.parametrize("D", [2, 9])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mode", ["paper", "repel", "official", "per_row"])
@pytest.mark.parametrize("repeated", [False, True])
def test_every_way_gives_the_references_gradient(
    D: int, metric: str, mode: str, repeated: bool
) -> None:
    x = rows(70, D)
    given = options(x, metric, mode, repeated)
    wanted = outcome(x, given, "reference")
    assert wanted[0].count_nonzero() > 50
    for found, expected in zip(outcome(x, given, "native"), wanted, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", ["paper", "repel"])
@pytest.mark.parametrize("metric", ["cosine", "l1", "l2"])
@pytest.mark.parametrize(("N", "D"), [(2, 3), (33, 17), (127, 96), (40, 333), (9, 1000)])
def test_error_is_at_most_twice_eagers(
    metric: str, mode: str, N: int, D: int, dtype: torch.dtype
) -> None:
    x = rows(N, D, dtype)
    given = options(x, metric, mode) if N > 2 else {"metric": metric, "mode": mode, "upper": 9.0}
    exact, eager = outcome(x.double(), given, "reference"), outcome(x, given, "reference")
    for wanted, theirs, found in zip(exact, eager, outcome(x, given, "native"), strict=True):
        allowed = 2 * (theirs - wanted).abs().max()
        allowed += 4 * torch.finfo(torch.float32).eps * wanted.abs().max()
        assert (found - wanted).abs().max() <= allowed


def bits(
    x: Tensor, low: float, high: float, ids: Tensor | None = None, metric: str = "l1"
) -> Tensor:
    """Return the mask as booleans, and nothing beyond the last row."""
    operator = getattr(torch.ops, NAMESPACE).intra_modal_forward
    *_, mask = operator(x, ids, metric, "paper", low, high, False, True)
    found = ((mask[:, :, None] >> torch.arange(32)) & 1).flatten(1).bool()
    assert not found[:, len(x) :].any()
    return found[:, : len(x)]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("N", [1, 31, 33, 127])
def test_the_mask_is_the_band(N: int, metric: str) -> None:
    x, ids = rows(N, 37), torch.arange(N) // 2
    low, high = between(x, metric, (0.3, 0.7)) if N > 1 else (0.1, 0.9)
    delta = similarity(x, x, metric)
    delta = 1 - delta if metric == "cosine" else delta
    wanted = (delta > low) & (delta < high) & (ids[:, None] != ids)
    assert torch.equal(bits(x, low, high, ids, metric), wanted)


# 1,024 rows are the last whose scores are stored.
@pytest.mark.parametrize("N", [1024, 1025])
def test_stored_scores_and_blocks_agree(N: int) -> None:
    x = rows(N, 36)
    for metric in ("cosine", "l2"):
        given = options(x, metric, "paper")
        found, wanted = (outcome(x, given, backend) for backend in ("native", "reference"))
        torch.testing.assert_close(found, wanted)


# Unit rows, scores, sums and mask; unit rows, products, the step through lengths. Of D = 64 a
# distance is one part.
@pytest.mark.parametrize(
    ("metric", "mode", "count"),
    [("cosine", "paper", 3 + 3), ("cosine", "official", 2 + 1), ("l2", "paper", 2 + 2)],
)
def test_launches_are_few(metric: str, mode: str, count: int) -> None:
    x = rows(7, 64, torch.float32)
    before = launches()
    outcome(x, options(x, metric, mode), "native")
    assert launches() - before == count


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("mode", ["paper", "official"])
def test_rows_that_are_zero_or_not_a_number(metric: str, mode: str) -> None:
    x = rows(35, 9)
    given = options(x, metric, mode)
    x[3] = 0
    x[9] = x[8]
    found, wanted = (outcome(x, given, backend) for backend in ("native", "reference"))
    torch.testing.assert_close(found, wanted)
    x[34, 2] = torch.nan
    found, wanted = (outcome(x, given, backend) for backend in ("native", "reference"))
    assert wanted[0].isnan().any()
    torch.testing.assert_close(found, wanted, equal_nan=True)


def test_large_tiles_and_the_tiles_that_end_early() -> None:
    # 16 tiles of 128 rows are the first that are not made small: three clusters far apart, within
    # which alone rows are near. Whoever ends early must not have lost a pair, nor a NaN.
    x = rows(1930, 68, torch.float32) + 100.0 * (torch.arange(1930) // 700)[:, None]
    low, high = 0.0, 80.0
    delta = similarity(x, x, "l1")
    wanted = (delta > low) & (delta < high)
    assert 0.2 < wanted.float().mean() < 0.5
    assert torch.equal(bits(x, low, high), wanted)
    found = ops.intra_modal_sum(x, low, high, "l1", backend="native")
    torch.testing.assert_close(found, torch.where(wanted, delta, 0).sum(1))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("mode", ["paper", "repel", "official"])
def test_the_gradient_of_l1_is_nan_where_the_references_is(mode: str, value: float) -> None:
    x = rows(70, 9)
    given = options(x, "l1", mode)
    x[66, 8] = x[3, 8] = value
    found, wanted = (outcome(x, given, backend) for backend in ("native", "reference"))
    assert wanted[1].isnan().any()
    torch.testing.assert_close(found, wanted, equal_nan=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("metric", METRICS)
def test_what_is_not_finite_shows(metric: str, value: float) -> None:
    # In the last column, which no tile would reach: all distances are beyond the bound before.
    x = 100 * rows(70, 140)
    x[66, 139] = value
    found, wanted = (
        ops.intra_modal_sum(x, 0.001, 0.002, metric, backend=name)
        for name in ("native", "reference")
    )
    assert wanted.isnan().any()
    torch.testing.assert_close(found, wanted, equal_nan=True)


def test_every_schedule_gives_the_same_bits() -> None:
    x = rows(70, 20, torch.float32)
    found = []
    for schedule in SCHEDULES:
        with as_native(schedule):
            found.append([])
            for metric in ("cosine", "l1", "l2"):
                found[-1] += outcome(x, options(x, metric, "paper"), "native")
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mode", ["paper", "official"])
def test_opcheck(metric: str, mode: str) -> None:
    x, ids = rows(9, 6, torch.float32), torch.arange(9) // 2
    operators = getattr(torch.ops, NAMESPACE)
    keep = mode == "paper"
    given = x, ids, metric, mode, 0.1, 0.9, False, keep
    torch.library.opcheck(operators.intra_modal_forward, given)
    saved = operators.intra_modal_forward(*given)
    grad = torch.ones_like(saved[0])
    torch.library.opcheck(operators.intra_modal_backward, (grad, x, ids, *saved, metric, mode))
