"""Values and gradients of chunked encoders are those of a loop over the chunks with a graph."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from chunk_loops import EXACT, gradients, in_a_loop, perceptron, rows
from itm_kernels import chunked, losses


@pytest.mark.parametrize("chunk_size", [1, 3, 5, 10, 64])
def test_chunks_equal_the_whole_batch(chunk_size: int) -> None:
    encoder, x = perceptron(), rows()
    out, whole = chunked(encoder, x, chunk_size=chunk_size), encoder(x)
    torch.testing.assert_close(out, whole, **EXACT)
    of = x, *encoder.parameters()
    torch.testing.assert_close(gradients(out, *of), gradients(whole, *of), **EXACT)


def test_node_has_inputs_and_parameters_only() -> None:
    """Parts of inputs are leaves of the chunks' graphs, too, and must not be kept."""
    encoder, x = perceptron(), rows()
    out = chunked(encoder, x, chunk_size=3)
    leaves = [node.variable for node, _ in out.grad_fn.next_functions]
    assert set(map(id, leaves)) == set(map(id, (x, *encoder.parameters())))


@pytest.mark.parametrize("chunk_size", [3, 10])
def test_dropout_has_the_masks_of_a_loop(chunk_size: int) -> None:
    encoder, x = perceptron(dropout=0.5), rows()
    of = x, *encoder.parameters()
    torch.manual_seed(1)
    loop = in_a_loop(encoder, x, chunk_size)
    after = torch.get_rng_state()
    expected = gradients(loop, *of)
    torch.manual_seed(1)
    out = chunked(encoder, x, chunk_size=chunk_size)
    assert torch.equal(out, loop)
    assert torch.equal(torch.get_rng_state(), after)
    torch.rand(7)  # something else draws between the passes
    before = torch.get_rng_state()
    torch.testing.assert_close(gradients(out, *of), expected, **EXACT)
    assert torch.equal(torch.get_rng_state(), before)


def test_two_encoders_with_different_chunks_feed_one_loss() -> None:
    image, text, x, y = perceptron(dropout=0.3), perceptron(), rows(), rows()
    criterion = losses.InfoNCELoss(learnable=True).double()
    of = x, y, *image.parameters(), *text.parameters(), *criterion.parameters()
    torch.manual_seed(2)
    loss = criterion(chunked(image, x, chunk_size=3), chunked(text, y, chunk_size=4))
    found = torch.autograd.grad(loss, of)
    torch.manual_seed(2)
    expected = criterion(in_a_loop(image, x, 3), in_a_loop(text, y, 4))
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(found, torch.autograd.grad(expected, of), rtol=1e-10, atol=1e-12)


def test_one_encoder_used_twice_gets_both_gradients() -> None:
    encoder, x, y = perceptron(), rows(), rows(7)
    of = tuple(encoder.parameters())
    loss = chunked(encoder, x, chunk_size=4).sum(0) @ chunked(encoder, y, chunk_size=2).sum(0)
    whole = encoder(x).sum(0) @ encoder(y).sum(0)
    found, expected = torch.autograd.grad(loss, of), torch.autograd.grad(whole, of)
    torch.testing.assert_close(found, expected, **EXACT)


def test_gradients_accumulate_in_grad_once_per_backward() -> None:
    encoder, x = perceptron(), rows()
    for _ in range(2):
        chunked(encoder, x, chunk_size=4).square().sum().backward()
    expected = torch.autograd.grad(encoder(x).square().sum(), (x, *encoder.parameters()))
    found = [p.grad for p in (x, *encoder.parameters())]
    torch.testing.assert_close(found, [2 * grad for grad in expected], **EXACT)


def test_frozen_encoder_gives_no_graph() -> None:
    encoder = perceptron().requires_grad_(False)
    out = chunked(encoder, rows(grad=False), chunk_size=4)
    assert not out.requires_grad and out.grad_fn is None


def test_frozen_encoder_passes_gradients_to_inputs() -> None:
    encoder, x = perceptron().requires_grad_(False), rows()
    out = chunked(encoder, x, chunk_size=4)
    torch.testing.assert_close(gradients(out, x), gradients(encoder(x), x), **EXACT)


def test_frozen_parts_get_no_gradient() -> None:
    encoder, x = perceptron(), rows(grad=False)
    encoder[0].requires_grad_(False)
    chunked(encoder, x, chunk_size=4).square().sum().backward()
    got = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert got == {"3.weight", "3.bias", "4.weight", "4.bias"}


class Holder:
    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = encoder

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x) * 2

    def __call__(self, x: Tensor) -> Tensor:
        return self.encode(x)


@pytest.mark.parametrize("kind", ["method", "partial", "closure", "object", "container"])
def test_parameters_behind_any_callable_get_gradients(kind: str) -> None:
    encoder, x = perceptron(), rows()
    scale = torch.tensor(3.0, dtype=torch.double, requires_grad=True)
    table: dict[str, Any] = {"hidden": [encoder]}
    callables = {
        "method": Holder(encoder).encode,
        "partial": partial(torch.nn.Sequential.forward, encoder),
        "closure": lambda x: encoder(x) * scale,
        "object": Holder(encoder),
        "container": lambda x: table["hidden"][0](x).exp(),
    }
    of = x, *encoder.parameters(), *([scale] if kind == "closure" else [])
    found = gradients(chunked(callables[kind], x, chunk_size=3), *of)
    torch.testing.assert_close(found, gradients(callables[kind](x), *of), **EXACT)


def test_parameters_used_by_some_chunks_only_get_their_gradient() -> None:
    experts, x = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)]).double(), rows()

    def encoder(part: Tensor) -> Tensor:
        return experts[int(part[0, 0] > 0)](part)

    with torch.no_grad():
        x[0, 0], x[4, 0], x[8, 0] = -1.0, 1.0, -1.0
    of = x, *experts.parameters()
    found = gradients(chunked(encoder, x, chunk_size=4), *of)
    torch.testing.assert_close(found, gradients(in_a_loop(encoder, x, 4), *of), **EXACT)


class Structured(NamedTuple):
    first: Tensor
    others: dict[str, Any]


def test_nested_inputs_and_outputs() -> None:
    linear, x, y = perceptron(), rows(), rows()
    mask = torch.rand(6, 10, dtype=torch.double).t()  # not contiguous
    bias = torch.randn(4, dtype=torch.double, requires_grad=True)

    def encoder(batch: dict[str, Any], scale: float, *, bias: Tensor, temperature: Tensor):
        assert temperature.dim() == 0
        first = linear(batch["x"] * batch["deep"]["mask"]) * scale + bias
        second = [linear(batch["deep"]["list"][0]), first.argmax(1), None, "word"]
        return Structured(first, {"other": second, "half": first[:, :2] / temperature})

    batch = {"x": x, "deep": {"mask": mask, "list": [y]}}
    args = batch, 2.0
    named = {"bias": bias, "temperature": torch.tensor(0.5, dtype=torch.double)}
    found = chunked(encoder, *args, chunk_size=4, shared=("bias",), **named)
    expected = encoder(*args, **named)
    assert isinstance(found, Structured)
    torch.testing.assert_close(found.first, expected.first, **EXACT)
    other = found.others["other"]
    assert torch.equal(other[1], expected.others["other"][1]) and not other[1].requires_grad
    assert other[2:] == [None, "word"]
    of = x, y, bias, *linear.parameters()

    def total(result: Structured) -> Tensor:
        sums = result.first, result.others["other"][0], result.others["half"]
        return torch.stack([value.sin().sum() for value in sums]).prod()

    wanted = torch.autograd.grad(total(expected), of)
    torch.testing.assert_close(torch.autograd.grad(total(found), of), wanted, **EXACT)


@pytest.mark.parametrize("position", [1, "table", "deep"])
def test_shared_tensors_are_passed_whole(position: int | str) -> None:
    table, x = torch.randn(10, 6, dtype=torch.double, requires_grad=True), rows()

    def encoder(x: Tensor, table: Any) -> Tensor:
        values = table["deep"][0] if isinstance(table, dict) else table
        assert values.shape[0] == 10
        return x @ values.t()

    named: dict[str, Any] = {} if position == 1 else {"table": table}
    if position == "deep":
        named = {"table": {"deep": [table]}}
    args = (x, table) if position == 1 else (x,)
    found = chunked(encoder, *args, chunk_size=3, shared=[position], **named)
    of = x, table
    torch.testing.assert_close(gradients(found, *of), gradients(x @ table.t(), *of), **EXACT)


def test_outputs_without_gradient_are_skipped() -> None:
    encoder, x = perceptron(), rows()
    first, second = chunked(lambda x: (encoder(x), encoder(2 * x)), x, chunk_size=4)
    of = x, *encoder.parameters()
    torch.testing.assert_close(gradients(second, *of), gradients(encoder(2 * x), *of), **EXACT)


@pytest.mark.parametrize("kind", [lambda x: x, lambda x: (x, x), lambda x: x[:, :2]])
def test_encoder_may_return_its_inputs(kind: Callable[[Tensor], Any]) -> None:
    x = rows()
    out, whole = chunked(kind, x, chunk_size=4), kind(x)
    out, whole = (v if isinstance(v, Tensor) else v[0] + v[1] for v in (out, whole))
    assert out is not x
    torch.testing.assert_close(gradients(out, x), gradients(whole, x), **EXACT)


def test_batch_without_rows() -> None:
    encoder, x = perceptron(), rows(0)
    out = chunked(encoder, x, chunk_size=4)
    assert out.shape == (0, 4)
    out.sum().backward()
    assert x.grad is not None and x.grad.shape == (0, 6)
    assert all(p.grad is not None and not p.grad.any() for p in encoder.parameters())


def test_input_that_is_not_a_leaf() -> None:
    encoder, before, x = perceptron(), nn.Linear(6, 6).double(), rows()
    of = x, *before.parameters()
    found = gradients(chunked(encoder, before(x), chunk_size=4), *of)
    torch.testing.assert_close(found, gradients(encoder(before(x)), *of), **EXACT)


def test_leaves_that_share_one_gradient_tensor() -> None:
    # Autograd returns one tensor for both biases: adding to it in place would add twice.
    x, a, b = rows(), *(torch.zeros(6, dtype=torch.double, requires_grad=True) for _ in range(2))
    found = gradients(chunked(lambda x: x + (a + b), x, chunk_size=3), a, b)
    torch.testing.assert_close(found, gradients(x + (a + b), a, b), **EXACT)


def test_sparse_gradients() -> None:
    table, tokens = nn.Embedding(9, 4, sparse=True), torch.randint(9, (10, 3))
    chunked(lambda t: table(t).sum(1), tokens, chunk_size=3).square().sum().backward()
    found = table.weight.grad
    assert found is not None and found.is_sparse
    table.weight.grad = None
    table(tokens).sum(1).square().sum().backward()
    torch.testing.assert_close(found.to_dense(), table.weight.grad.to_dense())


def test_checkpoints_inside_the_encoder() -> None:
    encoder, x = perceptron(dropout=0.5), rows()
    of = x, *encoder.parameters()

    def inner(part: Tensor) -> Tensor:
        return checkpoint(encoder, part, use_reentrant=False)

    torch.manual_seed(3)
    found = gradients(chunked(inner, x, chunk_size=3), *of)
    torch.manual_seed(3)
    torch.testing.assert_close(found, gradients(in_a_loop(encoder, x, 3), *of), **EXACT)


def test_copies_of_the_encoder_train_alike() -> None:
    one, x, y = perceptron(), rows(grad=False), rows(grad=False)
    other = copy.deepcopy(one)
    for encoder, size in ((one, 3), (other, 10)):
        optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1, momentum=0.9)
        for _ in range(4):
            optimizer.zero_grad()
            out = chunked(encoder, x, chunk_size=size)
            losses.InfoNCELoss()(out, encoder(y)).backward()
            optimizer.step()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
