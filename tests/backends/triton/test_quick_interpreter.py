"""`quick_interpreter` changes no bit, and its patches end with it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from interpreted import INTERPRETED, needs_interpreter
from itm_kernels import losses, ops

pytestmark = needs_interpreter
if INTERPRETED:
    import triton
    import triton.language as tl

    from quick_interpreter import QUICK, SHIPPED, using

    @triton.jit
    def _half(x):
        return x / 2

    @triton.jit
    def _kernel(x, out, SIZE: tl.constexpr, BROKEN: tl.constexpr):
        at = tl.arange(0, SIZE)
        total = _half(tl.load(x + at)[:, None]) + tl.sum(tl.load(x + at))
        tl.static_assert(not BROKEN)
        tl.store(out + at[:, None], total)

    @triton.jit
    def _arithmetic(x, k, out, SIZE: tl.constexpr):
        at = tl.arange(0, SIZE)
        row, column = tl.load(x + at)[None, :], tl.load(x + at)[:, None]
        table = tl.zeros((SIZE, SIZE), out.dtype.element_ty)
        table += (0.0 - row) + (column - 1) * (1 - row) / 3 + 2 / (1.0 + row * row)
        whole = tl.load(k + at)
        table += (whole + 1)[:, None] // 2 + (whole > 1)[None, :] + (1 > whole)[:, None]
        table += tl.load(x) * row + column * tl.load(k)
        rounded = row / (column + 4) - row.to(tl.float32) / (column + 4).to(tl.float32)
        table += rounded * 1024
        table += tl.sum(row * 3.0, 0)[None, :] + tl.sum(column * 3.0, 1)[:, None]
        more, raised = whole + 1, whole + 1.0
        tl.static_assert(more.dtype.is_int() and raised.dtype.is_floating())
        table += (more + raised + (whole + True))[:, None]
        to = out + at[:, None] * SIZE + at[None, :]
        tl.store(to, table)
        tl.store(to + SIZE * SIZE, tl.where(row < column, row * 0.0, row * -0.0))


def hinges(image: Tensor, text: Tensor) -> Tensor:
    return losses.MaxOfHingesLoss(backend="triton")(image, text)


def synthesis(image: Tensor, text: Tensor) -> Tensor:
    return losses.InfoCMRLoss(num_clusters=2, num_noise=0, backend="triton")(image, text)


def contrast(image: Tensor, text: Tensor) -> Tensor:
    ids = torch.arange(len(image)) // 2
    return ops.log_sum_exp(image, text, 3.0, x_ids=ids, y_ids=ids, backend="triton")[0].sum()


@pytest.mark.parametrize(
    ("loss", "dtype"),
    [
        *((hinges, dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16)),
        *((contrast, dtype) for dtype in (torch.float64, torch.bfloat16)),
        (synthesis, torch.float32),  # seconds, as shipped
    ],
)
def test_bits_are_those_of_the_interpreter_as_shipped(
    loss: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    rows = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    bits = []
    for changes in (SHIPPED, QUICK):
        with using(changes):
            image, text = (t.clone().requires_grad_() for t in rows)
            torch.manual_seed(0)
            value = loss(image, text)
            bits.append([value, *torch.autograd.grad(value, (image, text))])
    assert all(map(torch.equal, *bits))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("whole", [torch.int64, torch.int32, torch.int8], ids=str)
def test_operands_are_converted_as_shipped(dtype: torch.dtype, whole: torch.dtype) -> None:
    """Numbers of equal value and other type or sign; rows, columns and scalars; both sides."""
    x = torch.tensor([0.0, -1.5, 2.0, -3.25], dtype=dtype)
    k = torch.tensor([0, 1, 2, 7], dtype=whole)
    bits = []
    for changes in (SHIPPED, QUICK, QUICK):  # the third finds everything cached
        out = torch.empty(2, 4, 4, dtype=dtype)
        with using(changes):
            _arithmetic[(1,)](x, k, out, SIZE=4)
        bits.append(out.view(torch.uint8))
    assert out.isfinite().all()
    assert torch.equal(bits[0], bits[1]) and torch.equal(bits[0], bits[2])


@pytest.mark.parametrize("broken", [False, True])
def test_a_launch_leaves_the_language_as_it_was(broken: bool) -> None:
    x, out = torch.arange(4.0), torch.zeros(4)
    expected = x / 2 + 6
    _kernel[(1,)](x, out, SIZE=4, BROKEN=False)  # functions' own patches stay from the first on
    before = dict(vars(tl)), dict(vars(tl.tensor)), dict(vars(tl.math))
    for _ in range(2):
        out.zero_()
        try:
            _kernel[(1,)](x, out, SIZE=4, BROKEN=broken)
        except Exception as error:
            assert broken and "AssertionError" in repr(error)
        assert torch.equal(out, torch.zeros(4) if broken else expected)
        assert (dict(vars(tl)), dict(vars(tl.tensor)), dict(vars(tl.math))) == before


def test_patches_of_the_language_are_found_once() -> None:
    from triton.runtime import interpreter

    from quick_interpreter import Patches

    x, out, calls = torch.arange(4.0), torch.zeros(4), []
    patches = Patches()
    shipped = dict((name, value) for _, name, value in SHIPPED)["_patch_lang"]
    patches.patch = lambda function: calls.append(function) or shipped(function)
    with using(((interpreter, "_patch_lang", patches),)):
        for _ in range(3):
            _kernel[(2,)](x, out, SIZE=4, BROKEN=False)
    assert len(calls) == 2  # for the kernel's file, and for that of tl.sum
