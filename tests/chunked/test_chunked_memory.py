"""Encoding in chunks keeps the memory of one chunk and of the embeddings."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from itm_kernels import chunked, losses


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of storages that operators allocate, until they are freed."""

    def __enter__(self) -> "PeakMemory":
        self.sizes: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.peak = 0
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                self.sizes[storage] = storage.nbytes()
        self.peak = max(self.peak, sum(self.sizes.values()))
        return out


class Transformer(nn.Module):
    """A small text transformer with dropout."""

    def __init__(self, dim: int = 64) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, batch_first=True)
        self.embedding = nn.Embedding(100, dim)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(self.embedding(tokens)).mean(1)


def step(encode: Callable[[Tensor], Tensor], tokens: Tensor, text: Tensor) -> None:
    losses.MaxOfHingesLoss()(encode(tokens), text).backward()


def peak(*args: Any) -> int:
    with PeakMemory() as memory:
        step(*args)
    return memory.peak


def test_a_transformer_needs_less_than_a_fifth_of_the_memory() -> None:
    """4,096 rows in chunks of 64, with a loss that keeps no scores."""
    torch.manual_seed(0)
    encoder, tokens, text = Transformer(), torch.randint(100, (4096, 4)), torch.randn(4096, 64)
    whole = peak(encoder, tokens, text)
    encoder.zero_grad(set_to_none=True)
    chunks = peak(lambda tokens: chunked(encoder, tokens, chunk_size=64), tokens, text)
    assert chunks < whole / 5, f"{chunks / 2**20:.0f} MiB against {whole / 2**20:.0f} MiB"


def test_memory_does_not_grow_with_the_batch_but_for_rows() -> None:
    torch.manual_seed(0)
    encoder = Transformer()

    def needs(rows: int) -> int:
        encoder.zero_grad(set_to_none=True)
        tokens = torch.randint(100, (rows, 4))

        def loss(tokens: Tensor) -> None:
            chunked(encoder, tokens, chunk_size=16).sin().sum().backward()

        with PeakMemory() as memory:
            loss(tokens)
        return memory.peak

    # Embeddings, their gradient, and the loss's own tensors: 64 numbers a row, 6 times.
    assert needs(256) - needs(128) <= 128 * 64 * 4 * 6


def test_cost_is_one_more_forward_pass() -> None:
    encoder, tokens = Transformer(), torch.randint(100, (64, 4))

    def operations(run: Callable[[], Tensor], *, backward: bool = True) -> int:
        with FlopCounterMode(display=False) as counter:
            out = run()
            if backward:
                out.sin().sum().backward()
        return counter.get_total_flops()

    whole, forward = (operations(lambda: encoder(tokens), backward=b) for b in (True, False))
    chunks = operations(lambda: chunked(encoder, tokens, chunk_size=16))
    assert whole > 2 * forward > 0
    assert chunks == whole + forward
