"""Inputs of InfoCMR as one operator, random draws included, and its formula."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from itm_kernels import reference


class Problem(NamedTuple):
    """Unnormalised rows, and everything that is drawn."""

    image: Tensor  # [N, D]
    text: Tensor  # [M, D]
    scale: Tensor  # []
    noise: Tensor | None  # [Z, D]
    image_draws: Tensor | None  # [K, N]
    text_draws: Tensor | None  # [K, M]
    positive: Tensor | None
    image_ids: Tensor | None
    text_ids: Tensor | None

    def to(self, dtype: torch.dtype, wide: torch.dtype | None = None) -> "Problem":
        noise = None if self.noise is None else self.noise.to(dtype)
        scale = self.scale.to(wide or torch.promote_types(dtype, torch.float32))
        return self._replace(
            image=self.image.to(dtype), text=self.text.to(dtype), scale=scale, noise=noise
        )


class Options(NamedTuple):
    """The options in the order of the operator's arguments."""

    num_clusters: int = 3
    iterations: int = 10
    sigma: float = 0.1
    weights: str = "kam"
    ridge: float = 1e-4
    weight: float = 1.0


def problem(
    N: int, M: int, D: int, K: int = 3, Z: int = 5, draw: bool = True, seed: int = 0
) -> Problem:
    """Draw one; with N != M every text has an image, several texts one."""
    generator = torch.Generator().manual_seed(seed + N + M + D)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def draws(rows: int) -> Tensor | None:
        return torch.empty(K, rows).exponential_(generator=generator) if K and draw else None

    image, text = 3 * numbers(N, D), numbers(M, D)
    noise = numbers(Z, D) if Z else None
    ids: tuple[Tensor | None, ...] = (None, None, None)
    if N != M:
        positive = torch.arange(M).flip(0) % N
        ids = positive, 7 * torch.arange(N), 7 * positive
    scale = torch.tensor(14.0, dtype=torch.float64)
    return Problem(image, text, scale, noise, draws(N), draws(M), *ids)


def clusters(unit: Tensor, draws: Tensor | None, options: Options) -> Tensor:
    """Return every row's cluster."""
    if draws is None:
        draws = torch.ones(options.num_clusters, len(unit))
    start = reference.kmeans_plus_plus(unit, None, draws)
    return reference.kmeans(unit, None, start, options.iterations)[0][0]


def formula(case: Problem, options: Options) -> Tensor:
    """Return the loss by the formulas of its parts, in the rows' precision."""
    v, c = (reference.unit_rows(rows) for rows in (case.image, case.text))
    N, M = len(v), len(c)
    v_ids = torch.arange(N) if case.image_ids is None else case.image_ids
    c_ids = torch.arange(M) if case.text_ids is None else case.text_ids
    own = torch.arange(M) if case.positive is None else case.positive
    scores = case.scale * v @ c.T
    total = scores.new_zeros(())
    sides = (
        (scores, v, v_ids, c, c_ids, case.text_draws),
        (scores.T, c, c_ids, v, v_ids, case.image_draws),
    )
    for side, (logits, q, q_ids, x, x_ids, draws) in enumerate(sides):
        negatives = [logits.masked_fill(q_ids[:, None] == x_ids, -torch.inf)]
        if options.num_clusters:
            with torch.no_grad():
                assignment = clusters(x, draws, options)
            _, _, sigma, weights, ridge, _ = options
            found, valid = reference.rbf_synthesis_logits(
                q, x, assignment, q_ids, x_ids, options.num_clusters, sigma, weights, ridge, True
            )
            negatives.append((case.scale * found).masked_fill(~valid, -torch.inf))
        if case.noise is not None:
            negatives.append(case.scale * q @ reference.unit_rows(case.noise).T)
        both = torch.cat(negatives, 1)
        rows = both[own] if side == 0 else both
        positive = scores[own, torch.arange(M)]
        total = total + (torch.cat([rows, positive[:, None]], 1).logsumexp(1) - positive).sum()
    return options.weight * total


def near_duplicates(seed: int) -> Problem:
    case = problem(34, 34, 64, seed=seed)
    for rows in (case.image, case.text):
        rows[:] = normalize(rows)
        rows[17:] = normalize(rows[:17] + 1e-3 * rows[17:])
    return case
