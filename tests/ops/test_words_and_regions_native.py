"""Both scores of words against regions on CPUs: tiles, kept values, threads, instruction sets."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from compiled import assert_agrees_with_lower_sets, every_instruction_set
from itm_kernels import _policies, ops
from itm_kernels.backends import NAMESPACES
from kernels import MARKS
from operator_inputs import sample_inputs
from sets_of_rows import Sets, assert_precise, close, drawn, graded

pytestmark = MARKS["native"]
# The gradient is 0 but for every n-th score: if n is large, kernels leave out the other pairs.
EVERY = [1, 2, 9, 1000]
ODD = [(1, 2, 3, 4, 1), (2, 1, 5, 7, 3), (33, 2, 1, 5, 96), (3, 33, 7, 1, 333), (2, 3, 9, 8, 1000)]
# More than the 1,024 rows of contexts and the 4,096 of queries that a tile has.
TILES = (55, 84, 20, 50, 3)


class Case(NamedTuple):
    """An operator, and what its tests need of their own."""

    name: str
    score: Callable[..., Tensor]
    tolerance: float
    threaded: tuple[int, int, int, int, int]  # a shape that several threads divide
    options: str  # of the calls whose results instruction sets must agree on


CASES = [
    Case(
        "late_interaction",
        ops.late_interaction,
        1e-12,
        (65, 70, 12, 9, 40),
        '[{"direction": name} for name in ("t2i", "i2t")]',
    ),
    Case(
        "cross_attention",
        ops.cross_attention,
        1e-10,
        # 256 columns: the library divides the sums of narrower products among 4 threads.
        (40, 41, 12, 9, 256),
        '[{"feature_norm": name} for name in EVERY_NORM]',
    ),
]


@pytest.fixture(params=CASES, ids=[case.name for case in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    """Give each of the operators."""
    return request.param


def on_kernels(case: Case, sets: Sets, **options: Any) -> list[Tensor]:
    """Return scores and gradients of the native kernels."""
    return graded(case.score, sets, **options, backend="native")


@pytest.mark.any_set
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("shape", [*ODD, TILES], ids=str)
def test_sizes_and_tiles(shape: tuple[int, ...], direction: str, case: Case) -> None:
    sets = drawn(shape, counts=shape != TILES)
    for every in EVERY:
        options = {"direction": direction, "every": every}
        expected = graded(case.score, sets, **options, backend="reference")
        found = on_kernels(case, sets, **options)
        for ours, theirs in zip(found, expected, strict=True):
            close(ours, theirs, case.tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [*ODD, TILES], ids=str)
def test_recomputed_values_give_the_same_gradients(
    shape: tuple[int, ...], dtype: torch.dtype, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Winners of late interaction and products of cross attention, if they are not kept."""
    sets = drawn(shape, counts=shape != TILES, dtype=dtype)
    kept = on_kernels(case, sets)
    for most in ("KEPT_BYTES", "KEPT_PRODUCTS"):
        monkeypatch.setattr(_policies, most, 0)
    computed = on_kernels(case, sets)
    assert all(torch.equal(a, b) for a, b in zip(kept, computed, strict=True))


def test_recomputed_values_of_few_pairs(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The products of a pair are rounded otherwise than in the product of a tile."""
    sets = drawn((6, 9, 36, 12, 96), counts=True)
    kept = on_kernels(case, sets, every=9)
    for most in ("KEPT_BYTES", "KEPT_PRODUCTS"):
        monkeypatch.setattr(_policies, most, 0)
    for ours, theirs in zip(on_kernels(case, sets, every=9), kept, strict=True):
        close(ours, theirs, case.tolerance)


def test_few_pairs_of_some_tiles(case: Case) -> None:
    """Tiles with a gradient for all, some and no pairs follow each other on both sides."""
    sets = drawn(TILES)
    gradients = torch.zeros(TILES[:2], dtype=torch.float64)
    gradients[:20, :40] = 1  # all contexts of the first tile, and all queries
    gradients[40, 1::5] = gradients[1, 60] = -2
    expected, found = (
        torch.autograd.grad(case.score(*sets, backend=backend), sets.leaves, gradients)
        for backend in ("reference", "native")
    )
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs, case.tolerance)


def test_few_pairs_are_precise(case: Case) -> None:
    for counts, every in ((False, 9), (True, 11)):
        sets = drawn((12, 11, 36, 20, 128), counts=counts, dtype=torch.float32)
        assert_precise(case.score, sets, "native", every=every)


@pytest.mark.any_set
def test_any_number_of_threads_gives_the_same_bits(case: Case) -> None:
    sets = drawn(case.threaded, counts=True, dtype=torch.float32)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            every = on_kernels(case, sets)
            results.append([*every, *on_kernels(case, sets, every=41)[1:]])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.any_set
def test_padded_sets_give_the_bits_of_packed_ones(case: Case) -> None:
    """Counts only select rows: as many rows without padding have the same scores."""
    sets = drawn((6, 5, 7, 8, 33), dtype=torch.float32)
    wider = [torch.cat([rows.detach(), torch.full_like(rows, torch.nan)], 1) for rows in sets[:2]]
    counts = torch.full((6,), 7), torch.full((5,), 8)
    padded = Sets(*(rows.requires_grad_() for rows in wider), *counts)
    packed, found = on_kernels(case, sets), on_kernels(case, padded)
    assert torch.equal(found[0], packed[0])
    for ours, theirs in zip(found[1:], packed[1:], strict=True):
        assert torch.equal(ours[:, : theirs.shape[1]], theirs)
        assert (ours[:, theirs.shape[1] :] == 0).all()


@pytest.mark.any_set
@pytest.mark.parametrize("part", ["forward", "backward"])
def test_schema_and_fake_describe_the_native_kernel(part: str, case: Case) -> None:
    name = f"{case.name}_{part}"
    operator = getattr(getattr(torch.ops, NAMESPACES["native"]), name).default
    for inputs in sample_inputs(name):
        torch.library.opcheck(operator, inputs)


REPORT = """
import torch
from itm_kernels import ops
from sets_of_rows import EVERY_NORM, drawn, graded
for shape in ((5, 33, 36, 12, 96), (2, 3, 5, 7, 333)):
    for options in {options}:
        sets = drawn(shape, counts=True, dtype=torch.float32)
        found = graded(ops.{name}, sets, **options, backend="native")
        print(*[t.double().square().sum().item() for t in found])
"""


@pytest.mark.any_set
@every_instruction_set
def test_lower_instruction_sets_agree(capability: str, case: Case) -> None:
    report = REPORT.replace("{options}", case.options).replace("{name}", case.name)
    assert_agrees_with_lower_sets(capability, report)
