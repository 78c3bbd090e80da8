"""Operands of tensor cores: rounded to tf32, and aligned wherever a view begins."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from interpreted import needs_interpreter

pytestmark = needs_interpreter


def tf32_rows(x: Tensor) -> Tensor:
    from itm_kernels.triton._operands import tf32_rows

    return tf32_rows(x)[0, :, : x.shape[1]]


def nearest(x: Tensor) -> Tensor:
    """Round normal numbers to 11 bits, ties to even, through fp64 and its exponents."""
    fraction, exponent = torch.frexp(x.double())
    return torch.ldexp(torch.round(fraction * 2**11), exponent - 11).float()


def cut(x: Tensor) -> Tensor:
    """Drop the bits of fp32 that tf32 lacks, as tensor cores do."""
    return (x.contiguous().view(torch.int32) & -0x2000).view(torch.float32)


def test_tf32_is_the_nearest_even() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 130) * 2.0 ** torch.randint(-100, 100, (7, 130))
    ties = 1 + torch.arange(-40, 40)[None] * 2.0**-12  # every other one lies halfway
    for rows in (x, ties, -ties, x[:, ::3], x.mT):
        assert torch.equal(tf32_rows(rows), nearest(rows))
    assert torch.equal(tf32_rows(nearest(x)), nearest(x))


def test_tf32_keeps_what_is_not_finite_and_makes_nothing_infinite() -> None:
    inf = torch.inf
    x = torch.tensor([[inf, -inf, torch.nan, 0.0, -0.0, 3.4028235e38, -3.4028235e38, 1e-45]])
    found = tf32_rows(x)
    assert found[0, :2].tolist() == [inf, -inf]
    assert found[0, 2].isnan()
    assert torch.equal(found[0, 3:5].signbit(), torch.tensor([False, True]))
    assert torch.equal(found[0, 3:], cut(x)[0, 3:])
    # The only bits set in this NaN's fraction are among those that tf32 lacks.
    low = torch.tensor([[0x7F800001, -0x7FFFFF]], dtype=torch.int32).view(torch.float32)
    assert cut(low).isinf().all()
    assert tf32_rows(low).isnan().all()


def test_a_gpu_multiplies_rounded_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from itm_kernels.triton import _operands

    x = torch.randn(3, 40)
    assert torch.equal(_operands.prepare(x, "tf32")[0], x)  # the interpreter multiplies in fp32
    monkeypatch.setattr(_operands, "INTERPRETED", False)
    found = _operands.prepare(x, "tf32")[0]
    assert torch.equal(found[:, :40], nearest(x))
    assert not found[:, 40:].any()


@pytest.mark.parametrize("D", [64, 333, 1024])
def test_rounding_keeps_the_error_rule_and_cutting_breaks_it(D: int) -> None:
    """At most twice eager's error: its library rounds unit rows, half up; our kernels raw rows."""
    torch.manual_seed(0)
    x = torch.randn(64, D)
    x, y = 3 * x, F.normalize(torch.randn(64, D)) + 0.7 * F.normalize(x)
    half_up = (F.normalize(side).view(torch.int32) + 0x1000 for side in (x, y))
    eager = [cut(side.view(torch.float32)) for side in half_up]
    lengths = x.double().norm(dim=1)[:, None] * y.double().norm(dim=1)
    exact = x.double() @ y.double().mT / lengths

    def error(of_x: Tensor, of_y: Tensor, divisor: Tensor | float) -> float:
        return (of_x.double() @ of_y.double().mT / divisor - exact).abs().max().item()

    allowed = 2 * error(*eager, 1.0) + torch.finfo(torch.float32).eps
    assert error(tf32_rows(x), tf32_rows(y), lengths) <= allowed
    assert error(cut(x), cut(y), lengths) > allowed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_view_that_begins_anywhere_is_laid_out_for_vector_loads(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from itm_kernels.triton import _operands

    monkeypatch.setattr(_operands, "INTERPRETED", False)
    whole = torch.randn(5, 81).to(dtype)
    for kind in ("half", "ieee"):
        for first, last in ((1, 81), (1, 17), (0, 80), (0, 81)):
            view = whole[:, first:last]
            meta = torch.empty(whole.shape, dtype=dtype, device="meta")[:, first:last]
            found, planned = _operands.prepare(view, kind), _operands.prepare(meta, kind)
            assert torch.equal(found[0, :, : last - first], view)
            assert not found[0, :, last - first :].any()
            assert found.data_ptr() % 16 == 0
            assert (planned.shape, planned.stride()) == (found.shape, found.stride())
    aligned = torch.randn(6, 80).to(dtype)
    for rows in (aligned, aligned[1:], aligned[:, 16:], aligned[::2]):
        assert _operands.prepare(rows, "half").data_ptr() == rows.data_ptr()  # nothing is copied
