"""The sigmoid loss; Triton forms its gradients in the forward pass, one exponential per score."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import small_batch
from interpreted import INTERPRETED
from itm_kernels import functional
from itm_kernels._positives import Pairs
from itm_kernels.ops._sigmoid import fused_sigmoid_total
from kernels import on, only

EPS = torch.finfo(torch.float32).eps

if INTERPRETED:
    import triton
    import triton.language as tl

    from itm_kernels.triton._logistic import _log_of_one_plus

    @triton.jit
    def _logarithms(x, out, BLOCK: tl.constexpr):
        at = tl.arange(0, BLOCK)
        tl.store(out + at, _log_of_one_plus(tl.load(x + at)))


def rows(N: int, M: int, D: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(N + D)
    drawn = (torch.randn(size, D, generator=generator, dtype=torch.float64) for size in (N, M))
    return [side.to(dtype).requires_grad_() for side in drawn]


def scalars(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.tensor(number, dtype=dtype, requires_grad=True) for number in (20.0, -8.0)]


def results(
    sides: list[Tensor], dtype: torch.dtype, backend: str, upstream: float = 1.0, **options: Any
) -> list[Tensor]:
    inputs = [side.detach().to(dtype).requires_grad_() for side in sides]
    wide = torch.promote_types(dtype, torch.float32)
    scale, bias = scalars(wide)
    loss = functional.sigmoid_loss(
        *inputs, logit_scale=scale, logit_bias=bias, backend=backend, **options
    )
    grads = torch.autograd.grad(upstream * loss, (*inputs, scale, bias))
    return [t.detach().double() for t in (loss, *grads)]


def assert_rule(sides: list[Tensor], **options: Any) -> None:
    exact = results(sides, torch.float64, "reference", **options)
    eager = results(sides, sides[0].dtype, "reference", **options)
    found = results(sides, sides[0].dtype, "triton", **options)
    for wanted, theirs, ours in zip(exact, eager, found, strict=True):
        allowed = 2 * (theirs - wanted).abs().max() + 4 * EPS * wanted.abs().max()
        assert (ours - wanted).abs().max() <= allowed


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the blocks of weights that are multiplied."""
    from itm_kernels.triton import _blocked_products

    blocks: list[int] = []
    add_product = _blocked_products.add_product

    def counted(total: Tensor | None, weights: Tensor, *rest: Any, **options: Any) -> Tensor:
        blocks.append(weights.shape[1])
        return add_product(total, weights, *rest, **options)

    monkeypatch.setattr(_blocked_products, "add_product", counted)
    yield blocks


@pytest.mark.any_set
@on("native", "emulated")
def test_opcheck(kernels: Any) -> None:
    x, y = small_batch.rows(3, 6), small_batch.rows(5, 6, seed=1)
    scale, positive = torch.tensor(3.0).double(), torch.tensor([2, 0, 1, 1, 0])
    given = x, y, scale, -scale, positive, torch.arange(3), positive.clone()
    for scores in (x @ y.T, torch.empty(0, 0).double()):
        torch.library.opcheck(kernels.sigmoid_forward, (*given, bool(scores.numel()), False))
        inputs = torch.ones(5).double(), scores, *given, False
        torch.library.opcheck(kernels.sigmoid_backward, inputs)


@only("triton")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_texts_without_an_image_are_in_the_whole(reduction: str) -> None:
    ids = torch.arange(40), torch.tensor([3, 3, 90, 7, 91] + list(range(8, 40)))
    sides = rows(40, 37, 33)
    assert_rule(sides, reduction=reduction, unmatched="negative", image_ids=ids[0], text_ids=ids[1])


@only("triton")
def test_weights_of_one_part_keep_the_rule_of_their_precision() -> None:
    """bf16 rows with more elements than `_products` splits into two parts."""
    assert_rule(rows(130, 130, 128, torch.bfloat16))


@only("triton")
def test_the_backward_pass_multiplies_no_scores(products: list[int]) -> None:
    image, text = rows(70, 70, 20)
    loss = functional.sigmoid_loss(image, text, backend="triton")
    assert products == [70, 70]  # W y and W^T x
    loss.backward()
    assert products == [70, 70]


@only("triton")
@pytest.mark.parametrize("ids", [False, True])
def test_a_value_alone_has_the_same_bits_and_no_weights(ids: bool, products: list[int]) -> None:
    image, text = rows(70, 70, 20)
    given = {"image_ids": torch.arange(70), "text_ids": torch.arange(70).flip(0)} if ids else {}
    wanted = functional.sigmoid_loss(image, text, backend="triton", **given)
    products.clear()
    with torch.no_grad():
        assert torch.equal(functional.sigmoid_loss(image, text, backend="triton", **given), wanted)
    assert not products


@only("triton")
def test_blocks_of_rows_are_one_loss(products: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    from itm_kernels.triton import _blocked_products

    sides = rows(150, 150, 20)
    whole = results(sides, torch.float32, "triton")
    monkeypatch.setattr(_blocked_products, "_MOST_ROWS", 64)
    products.clear()
    found = results(sides, torch.float32, "triton")
    assert products[::2] == [64, 64, 22]
    assert torch.equal(found[0], whole[0])
    for ours, theirs in zip(found, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@only("triton")
@pytest.mark.parametrize("upstream", [0.0, 4.0, -0.5])
def test_gradients_are_multiplied_by_that_of_the_loss(upstream: float) -> None:
    sides = rows(33, 33, 12)
    once, found = (results(sides, torch.float32, "triton", by) for by in (1.0, upstream))
    for ours, theirs in zip(found[1:], once[1:], strict=True):
        assert torch.equal(ours, upstream * theirs)


@only("triton")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_wrong_ids_show_in_the_loss_and_in_its_gradients(dtype: torch.dtype) -> None:
    image, text = rows(5, 6, 7, dtype)
    scale, bias = scalars()
    positive = torch.tensor([0, 1, -1, 2, 3, 5])  # none, and an index out of range: absent
    pairs = Pairs(positive, torch.arange(5), torch.tensor([0, 1, 8, 2, 3, 9]))
    loss = fused_sigmoid_total(image, text, scale, bias, pairs, False, "triton", cosine=True)
    assert loss is not None
    assert loss.isnan()
    of_image, of_text, *others = torch.autograd.grad(loss, (image, text, scale, bias))
    assert of_image.isnan().all()
    assert of_text.isnan().any(1).tolist() == [False, False, True, False, False, False]
    assert all(grad.isnan() for grad in others)


@only("triton")
def test_its_gradient_has_no_derivative() -> None:
    image, text = rows(5, 5, 4)
    loss = functional.sigmoid_loss(image, text, backend="triton")
    (grad,) = torch.autograd.grad(loss, image, create_graph=True)
    with pytest.raises(RuntimeError, match="sigmoid_total_backward has no derivative"):
        grad.sum().backward()


@only("triton")
def test_logarithm_of_one_plus_an_exponential() -> None:
    x = torch.cat([torch.linspace(0, 1, 3072), torch.logspace(-38, 0, 1024)])
    out = torch.empty_like(x)
    _logarithms[(1,)](x, out, BLOCK=4096)
    torch.testing.assert_close(out.double(), x.double().log1p(), rtol=2.4e-7, atol=0)


@pytest.mark.triton
def test_memory_of_a_large_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 700 MB besides inputs and gradients, and no scores."""
    pytest.importorskip("triton")
    from itm_kernels.triton import sigmoid as kernels
    from tests.backends.triton.test_workspace import watched

    N, D = 32768, 1024
    image, text = (torch.empty((N, D), dtype=torch.bfloat16, device="meta") for _ in range(2))
    scale, bias, grad = (torch.empty((), device="meta") for _ in range(3))
    with watched(monkeypatch) as workspace:
        given = image, text, scale, 0.0, bias, 0.0, None, None, None, 1.0, True
        _, *parts = kernels.sigmoid_total_forward(*given, True, False)
        kernels.sigmoid_total_backward(grad, *parts, *given)
    assert workspace.largest <= 256 << 20
    assert workspace.peak <= 2 * (image.nbytes + text.nbytes) + (700 << 20)
