"""The backward pass restores what the encoder depended on, and disturbs nothing else."""

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from chunk_loops import EXACT, gradients, in_a_loop, perceptron, rows
from itm_kernels import chunked, losses


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("inside", [False, True])
def test_bf16_autocast(dropout: float, inside: bool) -> None:
    """Backward outside of autocast, as PyTorch recommends, and inside."""
    encoder, x = perceptron(dropout=dropout).float(), rows().float().detach()
    of = tuple(encoder.parameters())

    def step(out: Tensor) -> list[Tensor]:
        assert out.dtype == torch.bfloat16
        return gradients(out.double(), *of)

    results = []
    for run in (lambda: chunked(encoder, x, chunk_size=4), lambda: in_a_loop(encoder, x, 4)):
        torch.manual_seed(4)
        with torch.autocast("cpu", torch.bfloat16):
            out = run()
            grads = step(out) if inside else []
        results.append((out, grads or step(out)))
    (out, found), (loop, expected) = results
    assert torch.equal(out, loop)
    assert torch.is_autocast_enabled("cpu") is False
    for grad, wanted in zip(found, expected, strict=True):
        # Both add bf16 products chunk by chunk, in another order.
        torch.testing.assert_close(grad, wanted, rtol=2e-2, atol=2e-2)
        assert grad.dtype == torch.float32


def test_autocast_of_the_forward_pass_only_where_it_was_on() -> None:
    encoder, x = perceptron().float(), rows().float()
    seen: list[tuple[bool, torch.dtype]] = []

    def watched(part: Tensor) -> Tensor:
        seen.append((torch.is_autocast_enabled("cpu"), encoder(part).dtype))
        return encoder(part).float()

    out = chunked(watched, x, chunk_size=5)
    with torch.autocast("cpu", torch.bfloat16):
        out.sum().backward()
    assert seen == [(False, torch.float32)] * 4


def test_plain_use_after_chunked_within_one_autocast_keeps_its_gradient() -> None:
    """Casts that are cached without a graph would hide the parameters from the second use."""
    encoder, x = perceptron().float(), rows().float()
    with torch.autocast("cpu", torch.bfloat16):
        chunked(encoder, x, chunk_size=4)
        out = encoder(x)
    grads = torch.autograd.grad(out.sum(), list(encoder.parameters()))
    assert all(grad.any() for grad in grads)


def test_batch_normalisation_is_updated_once() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)).double()
    loop, x = copy.deepcopy(encoder), rows()
    expected = in_a_loop(loop, x, 4)
    wanted = gradients(expected, x, *loop.parameters())
    out = chunked(encoder, x, chunk_size=4)
    after = [buffer.clone() for buffer in encoder.buffers()]
    found = gradients(out, x, *encoder.parameters())
    torch.testing.assert_close(found, wanted, **EXACT)
    for buffer, now, other in zip(encoder.buffers(), after, loop.buffers(), strict=True):
        assert torch.equal(buffer, now) and torch.equal(buffer, other)
    assert encoder[1].num_batches_tracked == 3


def test_buffers_that_change_the_outputs_have_the_values_of_the_forward_pass() -> None:
    """Spectral normalisation iterates in a buffer: each chunk has another norm."""
    torch.manual_seed(0)
    encoder = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5)).double()
    loop, x = copy.deepcopy(encoder), rows()
    expected = in_a_loop(loop, x, 3)
    out = chunked(encoder, x, chunk_size=3)
    assert torch.equal(out, expected)
    for _ in range(2):  # a second backward pass restores them again
        found = torch.autograd.grad(out.sin().sum(), [x, *encoder.parameters()], retain_graph=True)
        wanted = torch.autograd.grad(
            expected.sin().sum(), [x, *loop.parameters()], retain_graph=True
        )
        torch.testing.assert_close(found, wanted, **EXACT)
    for one, other in zip(encoder.buffers(), loop.buffers(), strict=True):
        assert torch.equal(one, other)


def test_buffers_are_the_same_tensors_after_an_error() -> None:
    encoder, x = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)).double(), rows()
    buffers, broken = [*encoder.buffers()], []

    def run(part: Tensor) -> Tensor:
        if broken:
            raise KeyError("broken")
        return encoder(part)

    out = chunked(run, x, chunk_size=4)
    broken.append(True)
    state = torch.get_rng_state()
    with pytest.raises(KeyError, match="broken"):
        out.sum().backward()
    assert all(a is b for a, b in zip(buffers, encoder.buffers(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_hooks_of_parameters_run_once_on_the_sum() -> None:
    encoder, x = perceptron(), rows()
    weight, seen, stored = encoder[0].weight, [], []
    weight.register_hook(lambda grad: (seen.append(grad.clone()), grad / 2)[1])
    weight.register_post_accumulate_grad_hook(lambda p: stored.append(p.grad.clone()))
    for _ in range(2):
        seen.clear()
        chunked(encoder, x, chunk_size=3).sin().sum().backward()
    whole = copy.deepcopy(encoder)
    expected = torch.autograd.grad(whole(x).sin().sum(), whole[0].weight)[0]
    assert len(seen) == 1 and len(stored) == 2
    torch.testing.assert_close(seen[0], expected, **EXACT)
    torch.testing.assert_close(stored[-1], expected, **EXACT)


def test_optimizer_within_backward_steps_once() -> None:
    """A hook that updates and clears the gradient must not run between chunks."""
    encoder, x = perceptron(), rows()
    whole = copy.deepcopy(encoder)

    def update(p: Tensor) -> None:
        p.data.sub_(p.grad.sign(), alpha=0.1)
        p.grad = None

    for p in (*encoder.parameters(), *whole.parameters()):
        p.register_post_accumulate_grad_hook(update)
    chunked(encoder, x, chunk_size=3).sin().sum().backward()
    whole(x).sin().sum().backward()
    for p, q in zip(encoder.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p, q, **EXACT)


def test_backward_twice_with_retain_graph() -> None:
    encoder, x = perceptron(dropout=0.5), rows()
    out = chunked(encoder, x, chunk_size=4)
    loss = out.sin().sum()
    of = x, *encoder.parameters()
    first = torch.autograd.grad(loss, of, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, of), first, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, of)


def test_gradients_of_some_inputs_only() -> None:
    encoder, x = perceptron(), rows()
    chunked(encoder, x, chunk_size=4).sin().sum().backward(inputs=[encoder[0].weight])
    assert x.grad is None and encoder[0].bias.grad is None
    expected = torch.autograd.grad(encoder(x).sin().sum(), encoder[0].weight)[0]
    torch.testing.assert_close(encoder[0].weight.grad, expected, **EXACT)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: type) -> None:
    encoder, x = perceptron(), rows()
    with mode():
        out = chunked(encoder, x, chunk_size=4)
    assert not out.requires_grad
    torch.testing.assert_close(out.clone(), encoder(x).detach(), **EXACT)


def test_grad_scaler_unscales_the_gradients() -> None:
    encoder, x = perceptron().float(), rows().float()
    expected = torch.autograd.grad(encoder(x).sin().sum(), list(encoder.parameters()))
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(chunked(encoder, x, chunk_size=4).sin().sum()).backward()
    scaler.unscale_(optimizer)
    for p, wanted in zip(encoder.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, wanted, rtol=1e-4, atol=1e-5)


def test_saved_tensor_hooks_around_the_call() -> None:
    encoder, x = perceptron(), rows()
    of = x, *encoder.parameters()
    with torch.autograd.graph.save_on_cpu():
        out = chunked(encoder, x, chunk_size=4)
    torch.testing.assert_close(gradients(out, *of), gradients(encoder(x), *of), **EXACT)


class Watched(torch.autograd.Function):
    alive: list[weakref.ref] = []

    @staticmethod
    def forward(ctx, x):
        y = x * 1
        ctx.save_for_backward(y)
        Watched.alive.append(weakref.ref(ctx))
        return y

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_graphs_of_chunks_and_the_node_are_freed_without_garbage_collection() -> None:
    encoder, x = perceptron(), rows()
    Watched.alive.clear()
    alive: list[int] = []

    def run(part: Tensor) -> Tensor:
        alive.append(sum(ref() is not None for ref in Watched.alive))
        return Watched.apply(encoder(part))

    gc.disable()
    try:
        out = chunked(run, x, chunk_size=3)
        (out * 2).sum().backward()
        reference = weakref.ref(out)
        del out
        assert reference() is None
        assert not any(ref() is not None for ref in Watched.alive)
    finally:
        gc.enable()
    assert alive == [0] * 8


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_graph_break_in_a_compiled_step() -> None:
    encoder, x = perceptron(), rows()
    step = torch.compile(lambda x: chunked(encoder, x * 2, chunk_size=4) + 1, backend="eager")
    of = x, *encoder.parameters()
    expected = gradients(encoder(x * 2) + 1, *of)
    for _ in range(2):
        torch.testing.assert_close(gradients(step(x), *of), expected, **EXACT)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_encoder() -> None:
    encoder = perceptron(dropout=0.5)
    compiled, x = torch.compile(encoder, backend="aot_eager"), rows()
    of = x, *encoder.parameters()
    torch.manual_seed(5)
    loop = gradients(in_a_loop(compiled, x, 4), *of)
    torch.manual_seed(5)
    found = gradients(chunked(compiled, x, chunk_size=4), *of)
    torch.testing.assert_close(found, loop, **EXACT)


def test_loss_with_a_tied_parameter() -> None:
    """The loss uses a parameter of the encoder, too."""
    encoder, x = perceptron(), rows()
    criterion = losses.InfoNCELoss()
    of = x, *encoder.parameters()
    anchors = rows(10, grad=False)[:, :4].contiguous()

    def loss(out: Tensor) -> Tensor:
        return criterion(out + encoder[4].bias, anchors)

    found = torch.autograd.grad(loss(chunked(encoder, x, chunk_size=3)), of)
    expected = torch.autograd.grad(loss(encoder(x)), of)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
