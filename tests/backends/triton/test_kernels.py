"""Properties of Triton kernels only: tiles, masks, precisions, memory.

Kernels run in Triton's interpreter: `make test-triton`. It does not see races, registers or shared
memory; `tools/compile_report/triton_kernels.py` compiles the kernels and checks the last two.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from interpreted import needs_interpreter
from itm_kernels import backends, ops
from loss_cases import BY_NAME, gradients

OPERATORS = [name for name in backends.OPERATORS if backends.triton_file(name)]
LOSSES = [
    name
    for name in ("max_of_hinges", "semihard", "sum_of_hinges", "info_nce", "sigmoid")
    if name in BY_NAME
]
# 1, 2: less than a tile; 33: less than one; 127: two tiles of 64, ragged. D 1, 3, 333: aligned to
# nothing; 96: to a chunk's part; 1000: eight chunks of 128, ragged.
SIZES = [(1, 96), (2, 3), (33, 1), (33, 333), (127, 96), (70, 1000)]


@pytest.fixture(params=["highest", "high"])
def fp32(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def captions(N: int, D: int, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return unit rows, up to five texts per image in shuffled order, and their ids."""
    generator = torch.Generator().manual_seed(N + D)
    M = N if N < 3 else (5 * N) // 3
    rows = [torch.randn(size, D, generator=generator, dtype=torch.float64) for size in (N, M)]
    text_ids = (torch.randperm(M, generator=generator) * N) // M
    unit = [torch.nn.functional.normalize(side, dim=1).to(dtype) for side in rows]
    ids = {"image_ids": torch.arange(N), "text_ids": text_ids}
    return [side.requires_grad_() for side in unit], ids


@needs_interpreter
def test_every_file_is_offered_and_run() -> None:
    assert OPERATORS
    for operator in OPERATORS:
        assert backends.why_not(operator, "cpu", "triton") is None


@needs_interpreter
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("N", "D"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_with_ids_is_at_most_twice_the_references(
    name: str, N: int, D: int, dtype: torch.dtype
) -> None:
    rows, ids = captions(N, D, dtype)
    case = BY_NAME[name]

    def results(dtype: torch.dtype, backend: str) -> list[Tensor]:
        inputs = [side.detach().to(dtype).requires_grad_() for side in rows]
        loss = case.loss(*inputs, backend, **ids)
        return [t.detach().double() for t in (loss, *gradients(loss, *inputs))]

    exact = results(torch.float64, "reference")
    eager, found = results(dtype, "reference"), results(dtype, "triton")
    for wanted, theirs, ours in zip(exact, eager, found, strict=True):
        size = max(1.0, wanted.abs().max().item())
        allowed = 2 * (theirs - wanted).abs().max() + 64 * torch.finfo(torch.float32).eps * size
        assert (ours - wanted).abs().max() <= allowed


@needs_interpreter
@pytest.mark.parametrize("metric", ["dot", "cosine", "l1", "l2", "sqeuclidean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_similarity_error_is_at_most_twice_the_references(metric: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    # Two tiles both ways; a broadcast batch; some rows equal and some near, where squares cancel.
    x = torch.randn(2, 1, 70, 33, generator=generator, dtype=torch.float64)
    y = torch.randn(3, 65, 33, generator=generator, dtype=torch.float64)
    y[:, :5], y[:, 5:9] = x[0, 0, 3:8], x[1, 0, 9:13] * 1.01
    grad = torch.randn(2, 3, 70, 65, generator=generator, dtype=torch.float64)
    x, y, grad = x.to(dtype), y.to(dtype), grad.to(dtype)

    def results(dtype: torch.dtype, backend: str) -> list[Tensor]:
        sides = [side.to(dtype).requires_grad_() for side in (x, y)]
        found = ops.similarity(*sides, metric, backend=backend)
        grads = torch.autograd.grad(found, sides, grad.to(dtype))
        return [t.detach().double() for t in (found, *grads)]

    exact = results(torch.float64, "reference")
    eager, found = results(dtype, "reference"), results(dtype, "triton")
    for wanted, theirs, ours in zip(exact, eager, found, strict=True):
        size = max(1.0, wanted.abs().max().item())
        allowed = 2 * (theirs - wanted).abs().max() + 64 * torch.finfo(torch.float32).eps * size
        assert (ours - wanted).abs().max() <= allowed


@needs_interpreter
def test_fp32_follows_the_setting(fp32: str) -> None:
    """The interpreter multiplies tf32 in fp32: the test shows that both paths are correct."""
    rows, ids = captions(70, 96, torch.float32)
    for name in LOSSES:
        wanted, found = (BY_NAME[name].loss(*rows, b, **ids) for b in ("reference", "triton"))
        torch.testing.assert_close(found, wanted)


@needs_interpreter
def test_parts_carry_every_bit_of_fp32() -> None:
    from itm_kernels.triton import _operands

    x = torch.randn(7, 40) * torch.logspace(-20, 20, 7)[:, None]
    parts = _operands.operands(x, x).x.double()
    assert parts.shape == (3, 7, 128)
    assert torch.equal(parts.sum(0)[:, :40], x.double())
    assert torch.equal(parts[..., 40:], torch.zeros(3, 7, 88, dtype=torch.float64))


@needs_interpreter
@pytest.mark.parametrize(("N", "D"), [(2, 3), (127, 96)])
def test_gradient_of_hardest_negatives(N: int, D: int) -> None:
    rows, ids = captions(N, D, torch.float64)

    def gradients_of(backend: str) -> tuple[Tensor, ...]:
        found = ops.hardest_negatives(*rows, **ids, backend=backend)
        scores = found.positive, found.text_score, found.image_score
        finite = [torch.where(score.isfinite(), score, 0) for score in scores]
        return torch.autograd.grad(sum(t.square().sum() for t in finite), rows)

    for ours, theirs in zip(gradients_of("triton"), gradients_of("reference"), strict=True):
        torch.testing.assert_close(ours, theirs)


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_and_nan_across_tiles(dtype: torch.dtype) -> None:
    image, text = torch.ones(130, 2, dtype=dtype), torch.ones(130, 2, dtype=dtype)
    found = ops.hardest_negatives(image, text, backend="triton")
    assert found.text_index.tolist() == found.image_index.tolist() == [1] + [0] * 129
    text[100] = torch.nan
    found = ops.hardest_negatives(image, text, backend="triton")
    assert found.text_index.tolist() == [100] * 100 + [0] + [100] * 29
    assert found.text_score.isnan().tolist() == [True] * 100 + [False] + [True] * 29
    image[5], text[100] = -torch.inf, 1
    assert ops.hardest_negatives(image, text, backend="triton").text_score[5] == -torch.inf


@needs_interpreter
@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of numpy, which is the interpreter's maximum
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wide", [True, False])
def test_log_sum_exp_of_more_tiles_than_are_read_at_once(dtype: torch.dtype, wide: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    few, many = (torch.randn(size, 3, generator=generator, dtype=dtype) for size in (5, 1100))
    few[1, 0], few[2, 1] = torch.nan, torch.inf
    labels = torch.tensor([0, 0, 0, 1, 2]), torch.ones(1100, dtype=torch.int64)  # row 3 has none
    x, y = (few, many) if wide else (many, few)
    x_ids, y_ids = labels if wide else labels[::-1]
    found, wanted = (
        ops.log_sum_exp(x, y, torch.tensor(9.0, dtype=dtype), x_ids=x_ids, y_ids=y_ids, backend=b)
        for b in ("triton", "reference")
    )
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert (found.row if wide else found.column)[3] == -torch.inf


@needs_interpreter
def test_a_duplicate_of_the_positive_is_not_semihard() -> None:
    """Rounding may not put an equal score below the bound, whatever tile it is in."""
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(70, 40, generator=generator), dim=1)
    text = image[torch.arange(70) % 35]
    text[35:] = text[:35]
    image[35:] = image[:35]
    wanted, found = (
        BY_NAME["semihard"].loss(image, text, backend) for backend in ("reference", "triton")
    )
    torch.testing.assert_close(found, wanted)


@needs_interpreter
@pytest.mark.parametrize("name", [*LOSSES, "constraint-paper-cosine", "itm"])
def test_ids_may_be_a_column_of_a_table(name: str) -> None:
    rows, ids = captions(33, 5, torch.float64)
    strided = {side: torch.stack([of, -of], 1)[:, 0] for side, of in ids.items()}
    plain, found = (BY_NAME[name].loss(*rows, "triton", **labels) for labels in (ids, strided))
    assert torch.equal(found, plain)
