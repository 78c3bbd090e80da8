"""Both scores of words against regions: graphs, autocast, transforms and second derivatives."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from graphs import of_each_graph
from itm_kernels import losses, ops
from sets_of_rows import drawn

SCORES = {"late_interaction": ops.late_interaction, "cross_attention": ops.cross_attention}


@pytest.fixture(params=SCORES)
def score(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    """Give each of the operators."""
    return SCORES[request.param]


@pytest.mark.compiles
@of_each_graph
def test_a_training_step_is_one_graph(score: Callable[..., Tensor], backend: str) -> None:
    criterion = losses.MaxOfHingesLoss()

    def step(regions: Tensor, words: Tensor, *counts: Tensor) -> Tensor:
        return criterion.from_scores(score(regions, words, *counts, backend=backend))

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for size, counts in ((4, True), (5, True), (6, False)):
        sets = drawn((size, size, 3, 2, 4), counts=counts, dtype=torch.float32)
        given = [*sets] if counts else [*sets.leaves]
        found, expected = compiled(*given), step(*given)
        torch.testing.assert_close(found, expected)
        for ours, theirs in zip(
            torch.autograd.grad(found, sets.leaves),
            torch.autograd.grad(expected, sets.leaves),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)


def test_exports(score: Callable[..., Tensor], backend: str) -> None:
    class Scored(torch.nn.Module):
        def forward(self, *sets: Tensor) -> Tensor:
            return score(*sets, direction="i2t", backend=backend)

    sets = tuple(t.detach() for t in drawn((3, 4, 5, 6, 7), counts=True))
    exported = torch.export.export(Scored(), sets)
    assert torch.equal(exported.module()(*sets), Scored()(*sets))


def test_autocast_promotes_and_computes_outside_it(
    score: Callable[..., Tensor], backend: str
) -> None:
    sets = drawn((3, 4, 5, 6, 7), counts=True, dtype=torch.float32)
    half = sets.cast(torch.bfloat16)
    expected = score(half.regions.float(), *sets[1:], backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        found = score(half.regions, *sets[1:], backend=backend)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert half.regions.grad is not None and half.regions.grad.dtype == torch.bfloat16
    with pytest.raises(TypeError, match="differ in dtype, bfloat16 and float32; convert one with"):
        score(half.regions, *sets[1:], backend=backend)


def test_runs_under_functorch(score: Callable[..., Tensor]) -> None:
    sets = drawn((2, 3, 3, 2, 4))
    regions, words = (side.detach() for side in sets.leaves)
    (expected,) = torch.autograd.grad(score(*sets.leaves).sum(), sets.regions)
    found = torch.func.grad(lambda v: score(v, words).sum())(regions)
    torch.testing.assert_close(found, expected)


def test_repeated_tensors_get_the_sum_of_both_gradients(
    score: Callable[..., Tensor], backend: str
) -> None:
    one = drawn((3, 3, 4, 4, 5)).regions
    (found,) = torch.autograd.grad(score(one, one, backend=backend).sum(), one)
    first, second = (one.detach().clone().requires_grad_() for _ in range(2))
    parts = torch.autograd.grad(score(first, second, backend=backend).sum(), (first, second))
    torch.testing.assert_close(found, parts[0] + parts[1])


def test_each_call_gives_the_same_bits(score: Callable[..., Tensor], backend: str) -> None:
    sets = drawn((9, 7, 6, 5, 33), counts=True, dtype=torch.float32)
    results = []
    for _ in range(2):
        scores = score(*sets, backend=backend)
        results.append((scores, *torch.autograd.grad(scores.square().sum(), sets.leaves)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
