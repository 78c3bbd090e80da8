"""Regions and words for tests of late interaction and cross attention."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

EVERY_NORM = ("clipped_l2norm", "l2norm", "softmax", "clipped", "none")
EVERY_AGGREGATE = ("log_sum_exp", "mean", "sum", "max")
# N, M, R, L, D
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 3, 4, 5, 3),
    (3, 2, 36, 12, 96),
    (33, 5, 3, 17, 8),
    (2, 7, 2, 3, 333),
]


class Sets(NamedTuple):
    """Regions `[N, R, D]` and words `[M, L, D]`, with counts or without."""

    regions: Tensor
    words: Tensor
    region_counts: Tensor | None
    word_counts: Tensor | None

    def cast(self, dtype: torch.dtype) -> "Sets":
        """Return the rows as leaves of another dtype."""
        rows = (side.detach().to(dtype).requires_grad_() for side in self[:2])
        return Sets(*rows, *self[2:])

    def arrays(self) -> list[Any]:
        """Return the arguments of an oracle."""
        return [None if t is None else t.detach().numpy() for t in self]

    @property
    def leaves(self) -> tuple[Tensor, Tensor]:
        """The rows, to differentiate for."""
        return self.regions, self.words


def drawn(
    shape: tuple[int, int, int, int, int],
    *,
    counts: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Sets:
    """Draw rows, and counts that include 0, 1 and all rows where there are sets enough."""
    N, M, R, L, D = shape
    generator = torch.Generator().manual_seed(seed)
    regions = torch.randn(N, R, D, generator=generator, dtype=torch.float64)
    words = torch.randn(M, L, D, generator=generator, dtype=torch.float64)
    # A shared direction, as features of a network have it: attention then differs from a mean.
    regions, words = (rows / D**0.25 + 0.2 for rows in (regions, words))
    found: list[Tensor | None] = [None, None]
    if counts:
        for k, (sets, rows) in enumerate(((N, R), (M, L))):
            some = torch.randint(0, rows + 1, (sets,), generator=generator)
            some[: min(3, sets)] = torch.tensor([rows, 1, 0])[: min(3, sets)]
            found[k] = some
    return Sets(regions, words, *found).cast(dtype)


def padded_with(sets: Sets, value: float) -> Sets:
    """Return the sets with a value in all padded rows."""
    rows = []
    for side, counts in zip(sets.leaves, sets[2:], strict=True):
        assert counts is not None
        beyond = torch.arange(side.shape[1]) >= counts[:, None]
        rows.append(side.detach().masked_fill(beyond[..., None], value))
    return Sets(*rows, *sets[2:]).cast(sets.regions.dtype)


def graded(
    score: Callable[..., Tensor], sets: Sets, *, every: int = 1, **options: Any
) -> list[Tensor]:
    """Return scores, and gradients for upstream gradients of both signs, 0 but for every n-th."""
    scores = score(*sets, **options)
    upstream = torch.linspace(-1, 2, scores.numel(), dtype=scores.dtype)
    upstream[torch.arange(scores.numel()) % every != 0] = 0
    upstream = upstream.view(scores.shape)
    return [scores.detach(), *torch.autograd.grad(scores, sets.leaves, upstream)]


def close(found: Tensor, expected: Any, tolerance: float = 1e-12) -> None:
    """Compare with the values of an oracle or of the reference."""
    expected = torch.as_tensor(expected, dtype=found.dtype)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def assert_precise(score: Callable[..., Tensor], sets: Sets, backend: str, **options: Any) -> None:
    """Assert an error against fp64 of at most twice that of the reference in the same dtype."""
    exact = graded(score, sets.cast(torch.float64), **options, backend="reference")
    eager = graded(score, sets, **options, backend="reference")
    found = graded(score, sets, **options, backend=backend)
    for ours, theirs, true in zip(found, eager, exact, strict=True):
        unit = torch.finfo(ours.dtype).eps * true.abs().max()
        error, allowed = ((t.double() - true).abs().max() for t in (ours, theirs))
        assert error <= 2 * allowed + 2 * unit
