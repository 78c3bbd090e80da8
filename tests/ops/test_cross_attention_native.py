"""Cross attention on CPUs: kept products, and cosines that are computed in fp64."""

import pytest
import torch

from itm_kernels import ops
from kernels import MARKS
from sets_of_rows import EVERY_NORM, Sets, assert_precise, drawn

pytestmark = MARKS["native"]


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


@pytest.mark.parametrize("norm", EVERY_NORM)
def test_large_exponents_do_not_overflow(norm: str) -> None:
    """A maximum is subtracted above an exponent of 30."""
    sets = drawn((5, 4, 36, 12, 24), counts=True, dtype=torch.float32)
    for smooth in (-200.0, -30.0, 30.0, 31.0, 200.0):
        options = {"feature_norm": norm, "smooth": smooth, "aggregate": "mean"}
        assert_precise(ops.cross_attention, sets, "native", **options)
