"""Cross attention on CPUs: tiles, kept products, threads, instruction sets, odd sizes."""

import pytest
import torch

from compiled import assert_agrees_with_lower_sets, every_instruction_set
from itm_kernels import _policies, ops
from itm_kernels.backends import NAMESPACES
from kernels import MARKS
from operator_inputs import sample_inputs
from sets_of_rows import EVERY_NORM, Sets, assert_precise, close, drawn, graded

pytestmark = MARKS["native"]
ODD = [(1, 2, 3, 4, 1), (2, 1, 5, 7, 3), (33, 2, 1, 5, 96), (3, 33, 7, 1, 333), (2, 3, 9, 8, 1000)]
# More than the 1,024 rows of contexts and the 4,096 of queries that a tile has.
TILES = (55, 84, 20, 50, 3)


@pytest.mark.any_set
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("shape", [*ODD, TILES], ids=str)
def test_sizes_and_tiles(shape: tuple[int, ...], direction: str) -> None:
    sets = drawn(shape, counts=shape != TILES)
    expected = graded(ops.cross_attention, sets, direction=direction, backend="reference")
    found = graded(ops.cross_attention, sets, direction=direction, backend="native")
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [*ODD, TILES], ids=str)
def test_recomputed_products_give_the_same_gradients(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = drawn(shape, counts=shape != TILES, dtype=dtype)
    kept = graded(ops.cross_attention, sets, backend="native")
    monkeypatch.setattr(_policies, "KEPT_BYTES", 0)
    computed = graded(ops.cross_attention, sets, backend="native")
    for ours, theirs in zip(kept, computed, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.any_set
def test_a_backward_pass_leaves_kept_products_as_they_were() -> None:
    sets = drawn((4, 5, 6, 7, 9), counts=True)
    scores = ops.cross_attention(*sets, backend="native")
    first, second = (
        torch.autograd.grad(scores.sum(), sets.leaves, retain_graph=True) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("norm", EVERY_NORM)
def test_fp64_takes_over_where_attended_rows_nearly_cancel(norm: str) -> None:
    """Independent rows are computed in fp32, rows with an opposite in fp64."""
    in_double = torch.ops.itm_testing.cosines_in_double
    regions, words = (rows.detach() for rows in drawn((6, 5, 36, 7, 64), dtype=torch.float32)[:2])
    assert in_double(regions, words, 1.0) == 0
    near = torch.cat([regions, -regions + 1e-2 * regions.roll(1, 0)], 1)
    assert in_double(near, words, 1e-3) == 6 * 5 * 7
    sets = Sets(near.requires_grad_(), words.requires_grad_(), None, None)
    options = {"feature_norm": norm, "smooth": 1e-3, "aggregate": "mean"}
    assert_precise(ops.cross_attention, sets, "native", **options)


@pytest.mark.any_set
def test_any_number_of_threads_gives_the_same_bits() -> None:
    # 256 columns: the library divides the sums of narrower products among 4 threads.
    sets = drawn((40, 41, 12, 9, 256), counts=True, dtype=torch.float32)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(graded(ops.cross_attention, sets, backend="native"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.any_set
def test_padded_sets_give_the_bits_of_packed_ones() -> None:
    """Counts only select rows: as many rows without padding have the same scores."""
    sets = drawn((6, 5, 7, 8, 33), dtype=torch.float32)
    wider = [torch.cat([rows.detach(), torch.full_like(rows, torch.nan)], 1) for rows in sets[:2]]
    counts = torch.full((6,), 7), torch.full((5,), 8)
    padded = Sets(*(rows.requires_grad_() for rows in wider), *counts)
    packed = graded(ops.cross_attention, sets, backend="native")
    found = graded(ops.cross_attention, padded, backend="native")
    assert torch.equal(found[0], packed[0])
    for ours, theirs in zip(found[1:], packed[1:], strict=True):
        assert torch.equal(ours[:, : theirs.shape[1]], theirs)
        assert (ours[:, theirs.shape[1] :] == 0).all()


@pytest.mark.any_set
@pytest.mark.parametrize("part", ["forward", "backward"])
def test_schema_and_fake_describe_the_native_kernel(part: str) -> None:
    name = f"cross_attention_{part}"
    operator = getattr(getattr(torch.ops, NAMESPACES["native"]), name).default
    for inputs in sample_inputs(name):
        torch.library.opcheck(operator, inputs)


REPORT = """
import torch
from itm_kernels import ops
from sets_of_rows import EVERY_NORM, drawn, graded
for shape in ((5, 33, 36, 12, 96), (2, 3, 5, 7, 333)):
    for norm in EVERY_NORM:
        sets = drawn(shape, counts=True, dtype=torch.float32)
        found = graded(ops.cross_attention, sets, feature_norm=norm, backend="native")
        print(*[t.double().square().sum().item() for t in found])
"""


@pytest.mark.any_set
@every_instruction_set
def test_lower_instruction_sets_agree(capability: str) -> None:
    assert_agrees_with_lower_sets(capability, REPORT)
