"""Library products of weights in parts, and cosines of unnormalised rows."""

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interpreted import beyond_finite, needs_interpreter
from itm_kernels.reference._precision import wide
from itm_kernels.reference._unit_rows import unit_rows

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from itm_kernels.triton import _blocked_products, _operand_gradients, _products, _scaled_operands  # noqa: E402
from itm_kernels.triton._products import store_parts  # noqa: E402
from itm_kernels.triton._score_tiles import program_tile, scale_scores, score_tile  # noqa: E402

pytestmark = needs_interpreter
EPS = torch.finfo(torch.float32).eps
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# 1, 2, 3: less than a tile; 127, 33: ragged blocks; D = 3: fp32 as it is; 333: aligned to nothing.
SIZES = [(1, 2, 3), (3, 5, 3), (127, 33, 96), (33, 300, 333)]


@triton.jit
def write_kernel(
    value, weights, rest, part, stride, M,
    PARTS: tl.constexpr, PRECISION: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, m = tl.program_id(0), tl.arange(0, COLUMNS)
    found = tl.load(value + row * M + m, mask=m < M, other=0.0)
    found = store_parts(weights + row * stride + m, part, found, m < M, PARTS, PRECISION)
    tl.store(rest + row * M + m, found, mask=m < M)


def write(value: Tensor, weights: Tensor) -> Tensor:
    """Let a kernel write weights, and return the values that their parts represent."""
    value = value.contiguous()
    rest = torch.empty_like(value)
    write_kernel[(value.shape[0],)](
        value, weights, rest, weights.stride(0), weights.stride(1), value.shape[1],
        PARTS=weights.shape[0], PRECISION=_products.precision_of(weights),
        COLUMNS=triton.next_power_of_2(value.shape[1]),
    )  # fmt: skip
    return rest


def sides(N: int, M: int, D: int, dtype: torch.dtype) -> list[Tensor]:
    """Return rows with norms from 1e-3 to 10."""
    generator = torch.Generator().manual_seed(N + D)
    rows = [torch.randn(n, D, generator=generator, dtype=torch.float64) for n in (N, M)]
    return [(side * torch.logspace(-3, 1, len(side))[:, None] / D**0.5).to(dtype) for side in rows]


def gradients(x: Tensor, y: Tensor, weights: Tensor, cosine: bool) -> list[Tensor]:
    """Return the gradients of the sum of weights times scores, as an operator forms them."""
    both = _scaled_operands.scaled_operands(x, y, cosine)
    unit = _products.weight_scale(x, both, torch.ones(()), weights)

    def fill(first: int, block: Tensor) -> None:
        value = weights[first : first + block.shape[1]]
        if len(both.x_factor):
            value = value * both.x_factor[first : first + block.shape[1], None] * both.y_factor
        write(value if unit is None else value * unit, block)

    found = _blocked_products.products_in_parts(x, both, fill)
    return [
        _operand_gradients.gradient_of_rows(*side, unit, cosine)
        for side in zip((x, y), found, strict=True)
    ]


def scores(x: Tensor, y: Tensor, cosine: bool) -> Tensor:
    return unit_rows(x) @ unit_rows(y).T if cosine else wide(x) @ wide(y).T


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("peaked", [True, False])
def test_error_of_gradients_is_at_most_twice_the_references(
    size: tuple[int, int, int], dtype: torch.dtype, cosine: bool, peaked: bool
) -> None:
    x, y = sides(*size, dtype)
    weights = torch.randn(size[:2], generator=torch.Generator().manual_seed(0))
    weights = (20 * weights).softmax(1) if peaked else weights
    weights = weights.to(wide(x).dtype)

    def eager(dtype: torch.dtype) -> list[Tensor]:
        leaves = [side.to(dtype).requires_grad_() for side in (x, y)]
        total = (weights.to(wide(leaves[0]).dtype) * scores(*leaves, cosine)).sum()
        return [grad.double() for grad in torch.autograd.grad(total, leaves)]

    ours = gradients(x, y, weights, cosine)
    for wanted, theirs, found in zip(eager(torch.float64), eager(dtype), ours, strict=True):
        assert found.dtype == dtype
        size = wanted.abs().max()
        allowed = 2 * (theirs - wanted).abs().max() + 4 * EPS * size
        assert (found.double() - wanted).abs().max() <= allowed


@triton.jit
def scores_kernel(operands, scores, N, M):
    n, m, _, _ = program_tile(tl.program_id(0), operands.ROWS, operands.COLUMNS, N, M)
    rows, columns = tl.minimum(n, N - 1), tl.minimum(m, M - 1)
    found = scale_scores(operands, score_tile(operands, rows, columns), rows, columns)
    tl.store(scores + n[:, None] * M + m, found, mask=(n < N)[:, None] & (m < M)[None, :])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cosine", [True, False])
def test_error_of_scores_is_at_most_twice_the_references(
    size: tuple[int, int, int], dtype: torch.dtype, cosine: bool
) -> None:
    x, y = sides(*size, dtype)
    both = _scaled_operands.scaled_operands(x, y, cosine)
    found = wide(x).new_empty(size[:2])
    scores_kernel[both.tile.programs(*size[:2])](
        **both.arguments(), scores=found, N=size[0], M=size[1]
    )
    wanted, theirs = scores(x.double(), y.double(), cosine), scores(x, y, cosine)
    allowed = 2 * (theirs - wanted).abs().max() + 4 * EPS * wanted.abs().max()
    assert (found - wanted).abs().max() <= allowed


def test_powers_of_two_do_not_depend_on_the_order_of_a_sum() -> None:
    """The backward pass finds them again, in another kernel. Norms of 1 lie between two powers."""
    x = torch.nn.functional.normalize(torch.randn(64, 333), dim=1)
    _, factor = _scaled_operands.scaled_rows(x, "parts", cosine=False)
    for columns in (torch.arange(332, -1, -1), torch.randperm(333)):
        _, other = _scaled_operands.scaled_rows(x[:, columns], "parts", cosine=False)
        assert torch.equal(factor, other)


@beyond_finite
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_norm_zero_have_no_direction_and_nan_shows(dtype: torch.dtype) -> None:
    x = torch.ones(6, 40, dtype=dtype)
    x[1], x[2, 3], x[3, 3] = 0, torch.nan, torch.inf
    x[4] = torch.finfo(dtype).max / 2  # squares overflow in fp32
    x[5] = torch.finfo(dtype).tiny
    weights = torch.ones(6, 6, dtype=wide(x).dtype)
    found = gradients(x, torch.ones_like(x), weights, True)[0]
    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(scores(leaf, torch.ones_like(x), True).sum(), leaf)
    assert torch.equal(found[1], torch.zeros(40, dtype=dtype))
    assert found.isnan().all(1).tolist() == wanted.isnan().all(1).tolist()


def test_weights_of_any_size_fit_fp16() -> None:
    x = torch.randn(5, 40)
    weights = torch.randn(5, 5)
    (one, _) = gradients(x, x, weights, True)
    for magnitude in (1e-20, 1e25):
        (found, _) = gradients(x, x, weights * magnitude, True)
        torch.testing.assert_close(found / magnitude, one)


@pytest.mark.parametrize("setting", ["highest", "high"])
def test_weights_that_the_library_multiplies_as_tf32_are_rounded(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensor cores truncate low bits: a bias that sums of weights must not have."""
    monkeypatch.setattr(_products, "_INTERPRETED", tl.constexpr(False))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        value = torch.rand(3, 100)
        weights = _products.weights_empty(3, 100, torch.empty(3, 8), parts=1).float()
        rest = write(value, weights)
        half = torch.rand(3, 100).half()
        narrow = torch.empty(1, 3, 100, dtype=torch.float16)
        assert not write(half.float(), narrow).any()  # only tf32 loses more bits than necessary
    finally:
        torch.set_float32_matmul_precision(before)
    low = weights.view(torch.int32) & 0x1FFF
    assert low.any() == (setting == "highest")
    assert torch.equal(rest, value - weights[0])
    assert (rest.abs() <= value * 2.0**-11).all()


def test_no_device_function_has_a_default_that_is_a_string() -> None:
    """Triton 3.6 compiles a call that uses the default as if it were a tensor."""
    found = []
    for file in sorted(Path(_products.__file__).parent.glob("*.py")):
        functions = [
            n for n in ast.walk(ast.parse(file.read_text())) if hasattr(n, "decorator_list")
        ]
        jitted = [f for f in functions if any("jit" in ast.dump(d) for d in f.decorator_list)]
        defaults = [(f.name, d) for f in jitted for d in f.args.defaults]
        found += [name for name, d in defaults if isinstance(getattr(d, "value", None), str)]
    assert not found
