"""Embeddings whose scores look like a trained model's.

Independent random rows at D = 1024 are all orthogonal: no hinge would be active and no band would
hold a pair, and a kernel that skips what is empty would look faster than it is. So both modalities
share a latent of a few dimensions, which spreads the cosines: with the constants below positives
score .85, and 5 % of all pairs lie in IMC's band (cosine .5 to .95).
"""

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
    N, D, dtype = size
    draw = generator(seed)
    rank = min(LATENT, D)
    latent = normalize(torch.randn(N, rank, generator=draw), dim=-1)
    basis = torch.linalg.qr(torch.randn(D, rank, generator=draw)).Q.T  # [rank, D]

    def view() -> Tensor:
        own = normalize(torch.randn(N, D, generator=draw), dim=-1)
        rows = SHARED**0.5 * (latent @ basis) + (1 - SHARED) ** 0.5 * own
        return normalize(rows, dim=-1).to(device, dtype)

    return view(), view()


def band(x: Tensor, density: float) -> tuple[float, float]:
    """Return l1 bounds that hold this share of all pairs: the nearest, as IMC's defaults do."""
    rows = x[:512].float()
    distance = torch.cdist(rows, rows, p=1.0)
    others = distance[~torch.eye(len(rows), dtype=torch.bool, device=x.device)]
    return 0.0, others.quantile(density).item()


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
