"""The intra-modal constraint in Triton: a triangle of tiles, gradients as products."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from interpreted import beyond_finite
from itm_kernels import functional
from itm_kernels.reference import similarity
from kernels import MARKS

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from itm_kernels.triton import _score_gradients, intra_modal  # noqa: E402
from itm_kernels.triton._upper_triangle import triangle_tile  # noqa: E402

pytestmark = MARKS["triton"]
METRICS = ("cosine", "l1", "l2", "sqeuclidean")
EPS = torch.finfo(torch.float32).eps


def rows(N: int, D: int) -> Tensor:
    generator = torch.Generator().manual_seed(N + D)
    return torch.randn(N, D, generator=generator, dtype=torch.float64) / D**0.5


def band(x: Tensor, metric: str, low: float = 0.3, high: float = 0.8) -> tuple[float, float]:
    """Return bounds at two quantiles of all distances, on none of them."""
    delta = similarity(x.double(), x.double(), metric)
    delta = 1 - delta if metric == "cosine" else delta
    pairs = delta[torch.ones_like(delta, dtype=torch.bool).triu(1)].sort().values
    between = (pairs[1:] + pairs[:-1]) / 2
    lower, upper = (float(between[int(at * (len(between) - 1))]) for at in (low, high))
    return lower, upper


def results(
    x: Tensor, backend: str, upstream: Tensor | None = None, **options: object
) -> list[Tensor]:
    """Return the sums of rows and the gradient of their mean, or for upstream gradients."""
    leaf = x.detach().clone().requires_grad_()
    found = functional.intra_modal_constraint(leaf, **options, reduction="none", backend=backend)
    ((found * upstream).sum() if upstream is not None else found.mean()).backward()
    assert leaf.grad is not None
    return [t.detach().double() for t in (found, leaf.grad)]


def hold_to_the_rule(x: Tensor, upstream: Tensor | None, **options: object) -> None:
    """Assert: error against fp64 <= 2 x that of the reference at this precision."""
    exact = results(
        x.double(), "reference", upstream if upstream is None else upstream.double(), **options
    )
    eager, ours = (results(x, backend, upstream, **options) for backend in ("reference", "triton"))
    for wanted, theirs, found in zip(exact, eager, ours, strict=True):
        size = max(1.0, wanted.abs().max().item())
        allowed = 2 * (theirs - wanted).abs().max() + 64 * EPS * size
        assert (found - wanted).abs().max() <= allowed


@triton.jit
def visit_kernel(out, first, N, SIDE: tl.constexpr):
    program = tl.program_id(0)
    row, column = triangle_tile(first + program, N, SIDE)
    tl.store(out + 2 * program, row)
    tl.store(out + 2 * program + 1, column)


def visited(first: int, programs: int, tiles: int) -> list[list[int]]:
    out = torch.empty(programs, 2, dtype=torch.int32)
    visit_kernel[(programs,)](out, first, 64 * tiles - 5, SIDE=64)
    return out.tolist()


@pytest.mark.parametrize("tiles", [1, 2, 7, 9, 18])
def test_the_triangle_is_visited_once(tiles: int) -> None:
    found = visited(0, tiles * (tiles + 1) // 2, tiles)
    assert sorted(found) == [[i, j] for i in range(tiles) for j in range(i, tiles)]
    # A group of eight rows, down its columns.
    assert all(a[0] // 8 <= b[0] // 8 for a, b in zip(found, found[1:], strict=False))


@pytest.mark.parametrize("tiles", [65_529, 65_530])
def test_a_large_triangle_has_its_groups_where_they_start(tiles: int) -> None:
    """Almost 2^31 programs: more than fp32 distinguishes."""
    groups = (tiles + 7) // 8
    for group in (1, 2, groups // 2, groups - 2, groups - 1):
        start = group * (8 * tiles + 4 - 32 * group)
        # The last tile of a group, and the first of the next.
        last, first = [8 * group - 1, tiles - 1], [8 * group, 8 * group]
        assert visited(start - 1, 2, tiles) == [last, first]
    end = tiles * (tiles + 1) // 2
    assert visited(end - 1, 1, tiles) == [[tiles - 1, tiles - 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize(
    ("metric", "mode"),
    [("cosine", "official"), ("cosine", "paper"), ("l2", "paper"), ("sqeuclidean", "repel")],
)
def test_error_of_many_pairs_is_at_most_twice_the_references(
    metric: str, mode: str, uniform: bool, dtype: torch.dtype
) -> None:
    """Enough elements for weights of one part (`_products`); the rows have a common mean."""
    x = rows(150, 120) + 0.5 * rows(1, 120)
    # Norms from .3 to 3, except for dot products, which weigh all rows alike.
    x = (x if mode == "official" else x * torch.logspace(-0.5, 0.5, 150)[:, None]).to(dtype)
    low, high = band(x, metric)
    if mode == "official":
        low, high = -5.0, 0.4
    upstream = None if uniform else torch.linspace(-1, 2, 150)
    hold_to_the_rule(x, upstream, metric=metric, mode=mode, lower=low, upper=high)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("metric", ["l2", "sqeuclidean"])
def test_gradients_of_near_duplicates_do_not_cancel(metric: str, dtype: torch.dtype) -> None:
    """Copies 1e-2 apart and equal ones, among others: products would cancel for the near ones."""
    x = rows(140, 40)
    x[70:] = x[:70] + 0.01 * rows(70, 40)
    x[3] = x[73]
    x[100:] += 1
    delta = similarity(x, x, metric)
    upstream = torch.linspace(-1, 2, 140)
    low = delta[0, 70].item() / 4
    for high in (delta[0, 70].item() * 2, delta.median().item()):  # near pairs only, and others
        hold_to_the_rule(x.to(dtype), upstream, metric=metric, mode="paper", lower=low, upper=high)


def test_a_tiny_row_does_not_round_the_others() -> None:
    """Its factor is the largest, and fp16 has no weight below 2^-24 of the largest."""
    x = rows(150, 120)
    x[7] *= 1e-5
    for mode, low, high in (("paper", 0.5, 1.5), ("official", -5.0, 0.9)):
        hold_to_the_rule(x.half(), None, metric="cosine", mode=mode, lower=low, upper=high)


@pytest.mark.parametrize(("metric", "D"), [("cosine", 37), ("cosine", 2), ("l2", 37)])
def test_blocks_of_rows_give_what_one_does(
    metric: str, D: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = rows(140, D)
    low, high = band(x, metric)
    options = {"metric": metric, "mode": "paper", "lower": low, "upper": high}
    whole = results(x, "triton", **options)
    monkeypatch.setattr(_score_gradients, "_MOST_ROWS", 128)
    for found, wanted in zip(results(x, "triton", **options), whole, strict=True):
        torch.testing.assert_close(found, wanted)


@beyond_finite
@pytest.mark.parametrize("mode", ["paper", "official"])
def test_a_nan_row_shows(mode: str) -> None:
    x = rows(70, 37)
    x[66, 3] = torch.nan
    found, grad = results(x, "triton", metric="cosine", mode=mode, lower=0.5, upper=0.9)
    assert found.isnan().all()
    assert grad.isnan().all()


def test_few_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three kernels forward; four and a product backward per block; no other pass over pairs."""
    counted: list[str] = []

    def count(module: object, name: str) -> None:
        kernel = getattr(module, name)

        class Counted:
            def __getitem__(self, grid: object) -> Callable[..., object]:
                counted.append(name)
                return kernel[grid]

        monkeypatch.setattr(module, name, Counted())

    count(intra_modal, "band_sums_kernel")
    count(intra_modal, "band_totals_kernel")
    count(_score_gradients, "_gradient_scale_kernel")
    count(_score_gradients, "_score_gradients_kernel")
    results(rows(70, 37), "triton", metric="cosine", mode="paper", lower=0.5, upper=0.9)
    assert counted == [
        "band_sums_kernel", "band_totals_kernel",
        "_gradient_scale_kernel", "_score_gradients_kernel",
    ]  # fmt: skip
