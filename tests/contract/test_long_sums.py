"""Sums over a batch are exact at any length: error against fp64 <= 2 x eager's.

Rows that have nearly collapsed give sums of like terms, the worst case: every addition of a chain
rounds the same way. One side is long and the other has two rows, so that the sums are long and the
pairs few. 2^17 terms in one chain of fp32 are off by 1e-4 to 1e-2.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from compiled import needs_extension
from itm_kernels import functional, ops, reference
from itm_kernels._positives import Pairs
from itm_kernels.ops._sigmoid import fused_sigmoid

LONG = 1 << 17
EPS = torch.finfo(torch.float32).eps


def collapsed(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor([[0.63, 0.44]]) + 1e-3 * torch.randn(rows, 2, generator=generator)


def ids(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    return {"image_ids": torch.arange(len(x)), "text_ids": torch.arange(len(y)) % len(x)}


def pairs(x: Tensor, y: Tensor) -> Pairs:
    found = ids(x, y)
    return Pairs(found["text_ids"], **found)


Operation = Callable[[Tensor, Tensor, str], Any]
OPERATIONS: dict[str, Operation] = {
    "log_sum_exp": lambda x, y, b: ops.log_sum_exp(x, y, 3.0, backend=b),
    "sigmoid": lambda x, y, b: fused_sigmoid(
        x, y, torch.tensor(3.0).to(x), torch.tensor(-1.0).to(x), pairs(x, y), b
    ),
    "hardest_negatives": lambda x, y, b: ops.hardest_negatives(x, y, backend=b, **ids(x, y))[1::2],
    "sum_of_hinges": lambda x, y, b: functional.sum_of_hinges_loss(
        x, y, reduction="none", backend=b, **ids(x, y)
    ),
    "attention": lambda x, y, b: (
        ops.rbf_synthesis(
            y,
            x,
            torch.zeros(len(x)).long(),
            num_clusters=1,
            sigma=0.3,
            weights="attention",
            backend=b,
        ).vectors
    ),
}


def results(operation: Operation, x: Tensor, y: Tensor, backend: str) -> list[Tensor]:
    """Return the outputs and the gradients of a weighted sum of them, in fp64."""
    x, y = (t.detach().requires_grad_() for t in (x, y))
    found = operation(x, y, backend)
    found = [found] if isinstance(found, Tensor) else [t for t in found if t.is_floating_point()]
    generator = torch.Generator().manual_seed(0)
    upstreams = [torch.rand(t.shape, generator=generator).add(0.5).to(t) for t in found]
    grads = torch.autograd.grad(found, (x, y), upstreams, allow_unused=True, materialize_grads=True)
    return [t.detach().double() for t in (*found, *grads)]


def assert_exact(operation: Operation, x: Tensor, y: Tensor, backend: str) -> None:
    exact = results(operation, x.double(), y.double(), "reference")
    eager = results(operation, x, y, "reference")
    for wanted, theirs, ours in zip(exact, eager, results(operation, x, y, backend), strict=True):
        allowed = 2 * (theirs - wanted).abs().max() + 4 * EPS * wanted.abs().max()
        assert (ours - wanted).abs().max() <= allowed


@needs_extension
@pytest.mark.parametrize("name", ["log_sum_exp", "sigmoid", "hardest_negatives"])
def test_compiled_sums_over_many_texts(name: str) -> None:
    assert_exact(OPERATIONS[name], collapsed(2, 0), collapsed(LONG, 1), "native")


@needs_extension
@pytest.mark.parametrize("name", OPERATIONS)
def test_compiled_sums_over_many_images(name: str) -> None:
    assert_exact(OPERATIONS[name], collapsed(LONG, 0), collapsed(2, 1), "native")


@needs_extension
def test_compiled_sums_of_hinges_over_many_texts() -> None:
    # Every pair sums over all texts, and the formula holds [M, M] scores: fp64 of the same operator
    # replaces it.
    x, y = collapsed(2, 0), collapsed(1 << 13, 1)
    found, exact = (
        functional.sum_of_hinges_loss(*rows, reduction="none", backend="native", **ids(x, y))
        for rows in ((x, y), (x.double(), y.double()))
    )
    torch.testing.assert_close(found.double(), exact, rtol=4 * EPS, atol=0)


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_extension)])
def test_means_of_many_rows(backend: str) -> None:
    x = collapsed(1 << 19, 0)
    found = ops.kmeans(x, 1, iterations=1, init=x[:1], backend=backend).centroids
    torch.testing.assert_close(found[0].double(), x.double().mean(0), rtol=4 * EPS, atol=0)


def test_blocks_of_rows_are_one_mean() -> None:
    """Ragged blocks, members and empty clusters of the formula."""
    x = torch.randn(2500, 3, dtype=torch.float64)
    member = torch.rand(2, 2500) < 0.5
    start = torch.stack([x[:3], x[3:6]])
    start[0, 2] = 1e3
    before, _ = reference.kmeans(x, member, start, 0)
    _, found = reference.kmeans(x, member, start, 1)
    for b in range(2):
        for k in range(3):
            inside = before[b] == k
            wanted = x[inside].mean(0) if inside.any() else start[b, k]
            torch.testing.assert_close(found[b, k], wanted)
