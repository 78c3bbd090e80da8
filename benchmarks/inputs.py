"""Embeddings whose scores look like a trained model's.

Independent random rows at D = 1024 are all orthogonal: no hinge would be active and no band would
hold a pair, and a kernel that skips what is empty would look faster than it is. So both modalities
share a latent of a few dimensions, which spreads the cosines: with the constants below positives
score .85, and 5 % of all pairs lie in IMC's band (cosine .5 to .95).
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.shapes import Size

LATENT = 8
SHARED = 0.85  # part of a row's squared length that the latent holds


def generator(seed: int = 0) -> torch.Generator:
    """Return a generator of its own for every row, so that rows do not depend on their order."""
    return torch.Generator().manual_seed(seed)


def paired(size: Size, device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return image and text embeddings [N, D] of length 1, row n of both a pair."""
    image, text = _drawn(size.N, size.D, seed)
    return image.to(device, size.dtype, copy=True), text.to(device, size.dtype, copy=True)


@lru_cache(2)
def _drawn(N: int, D: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw the rows on the host: seconds at 32,768 rows, for the many losses that take the same."""
    draw = generator(seed)
    rank = min(LATENT, D)
    latent = normalize(torch.randn(N, rank, generator=draw), dim=-1)
    basis = torch.linalg.qr(torch.randn(D, rank, generator=draw)).Q.T  # [rank, D]

    def view() -> Tensor:
        own = normalize(torch.randn(N, D, generator=draw), dim=-1)
        rows = SHARED**0.5 * (latent @ basis) + (1 - SHARED) ** 0.5 * own
        return normalize(rows, dim=-1)

    return view(), view()


def band(x: Tensor, density: float, p: float = 1.0) -> tuple[float, float]:
    """Return bounds of the p-norm's distance that hold this share of all pairs.

    The nearest pairs, as IMC's defaults do.
    """
    rows = x[:512].float()
    distance = torch.cdist(rows, rows, p=p)
    others = distance[~torch.eye(len(rows), dtype=torch.bool, device=x.device)]
    ordered = others.sort().values
    # Every distance is there twice: between two pairs, so that none lies on the bound.
    place = 2 * max(1, round(density * len(ordered) / 2))
    return 0.0, (ordered[place - 1 : place + 1].sum() / 2).item()


def density(x: Tensor, lower: float, upper: float) -> float:
    """Return the share of pairs whose cosine lies strictly between two bounds."""
    rows = x[:2048].float()
    cosine = rows @ rows.T
    inside = (cosine > lower) & (cosine < upper)
    inside.fill_diagonal_(False)
    return inside.float().mean().item()


def violations(image: Tensor, text: Tensor, margin: float) -> dict[str, float]:
    """Return which share of the negatives, and of the anchors, violates the margin."""
    scores = image.float() @ text.float().T
    excess = scores - scores.diagonal()[:, None] + margin
    excess.fill_diagonal_(0)
    active = excess > 0
    return {
        "violating_pairs": active.float().mean().item(),
        "violating_anchors": active.any(1).float().mean().item(),
    }
