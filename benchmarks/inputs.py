"""Embeddings whose scores are distributed like those of a trained model.

Independent random rows at D = 1024 are nearly orthogonal: no hinge would be active and no band
would hold a pair, so a kernel that skips empty tiles would look faster than it is. Both modalities
therefore share a latent of a few dimensions, which spreads the cosines. With the constants below,
positives score .85 and 5 % of all pairs lie in IMC's band (cosine .5 to .95).
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.shapes import Size

LATENT = 8
SHARED = 0.85  # share of a row's squared norm that comes from the latent


def generator(seed: int = 0) -> torch.Generator:
    """Return a new generator, so that a row's data does not depend on the order of the rows."""
    return torch.Generator().manual_seed(seed)


def paired(size: Size, device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return image and text embeddings [N, D] of norm 1; rows n form a pair."""
    image, text = _drawn(size.N, size.D, seed)
    return image.to(device, size.dtype, copy=True), text.to(device, size.dtype, copy=True)


@lru_cache(2)
def _drawn(N: int, D: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw the rows on the host; cached, because drawing 32,768 rows takes seconds."""
    draw = generator(seed)
    rank = min(LATENT, D)
    latent = normalize(torch.randn(N, rank, generator=draw), dim=-1)
    basis = torch.linalg.qr(torch.randn(D, rank, generator=draw)).Q.T  # [rank, D]

    def view() -> Tensor:
        own = normalize(torch.randn(N, D, generator=draw), dim=-1)
        rows = SHARED**0.5 * (latent @ basis) + (1 - SHARED) ** 0.5 * own
        return normalize(rows, dim=-1)

    return view(), view()


def words_and_regions(
    size: Size, regions: int, words: int, device: str
) -> tuple[Tensor, Tensor]:  # [N, regions, D], [N, words, D]
    """Return regions and words of norm 1, of which those of a pair share a direction."""
    draw = generator()
    found = []
    for side, number in zip(paired(size, "cpu"), (regions, words), strict=True):
        own = torch.randn(size.N, number, size.D, generator=draw) / size.D**0.5
        rows = normalize(0.5 * side[:, None].float() + own, dim=2)
        found.append(rows.to(device, size.dtype))
    return found[0], found[1]


def band(x: Tensor, density: float, p: float = 1.0) -> tuple[float, float]:
    """Return bounds on the p-norm distance that hold this share of all pairs.

    The share is that of the nearest pairs, as with IMC's defaults.
    """
    rows = x[:512].float()
    distance = torch.cdist(rows, rows, p=p)
    others = distance[~torch.eye(len(rows), dtype=torch.bool, device=x.device)]
    ordered = others.sort().values
    # Every distance occurs twice. The bound is halfway between two pairs, so that none lies on it.
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
    """Return the shares of negatives and of anchors that violate the margin."""
    scores = image.float() @ text.float().T
    excess = scores - scores.diagonal()[:, None] + margin
    excess.fill_diagonal_(0)
    active = excess > 0
    return {
        "violating_pairs": active.float().mean().item(),
        "violating_anchors": active.any(1).float().mean().item(),
    }
