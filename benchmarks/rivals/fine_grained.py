"""Scores of words against regions in eager PyTorch: SCAN's loop, vectorised forms, MaxSim.

Words attend to regions. SCAN's options are those of its README for MSCOCO.
"""

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, normalize

SMOOTH, SCALE, EPS = 9.0, 6.0, 1e-8


def scan_loop(regions: Tensor, words: Tensor) -> Tensor:  # [N, R, D], [M, L, D] -> [N, M]
    """Return the scores of SCAN's `xattn_score_t2i`: a loop over captions, which are repeated."""
    columns = []
    for caption in words:
        query = caption.expand(regions.shape[0], -1, -1).contiguous()
        attended = _attended(query, regions)
        columns.append(_log_sum_exp(_cosine(query, attended)))
    return torch.stack(columns, 1)


def _attended(query: Tensor, context: Tensor) -> Tensor:  # [N, L, D], [N, R, D] -> [N, L, D]
    """Return what SCAN's `func_attention` returns first."""
    attention = leaky_relu(torch.bmm(context, query.transpose(1, 2)), 0.1)  # [N, R, L]
    attention = attention / (attention.pow(2).sum(2, keepdim=True).sqrt() + EPS)
    weights = (SMOOTH * attention.transpose(1, 2)).softmax(2)
    return torch.bmm(context.transpose(1, 2), weights.transpose(1, 2)).transpose(1, 2)


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1)).clamp(min=EPS)


def _log_sum_exp(cosine: Tensor) -> Tensor:
    return (SCALE * cosine).exp().sum(-1).log() / SCALE


def _attention(regions: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """Return all products and attention weights `[N, M, R, L]`."""
    (N, R, _), (M, L, _) = regions.shape, words.shape
    products = (regions.flatten(0, 1) @ words.flatten(0, 1).T).view(N, R, M, L).transpose(1, 2)
    clipped = leaky_relu(products, 0.1)
    normalised = clipped / (torch.linalg.vector_norm(clipped, dim=3, keepdim=True) + EPS)
    return products, (SMOOTH * normalised).softmax(2)


def attends(regions: Tensor, words: Tensor) -> Tensor:
    """Return SCAN's scores with all attended vectors `[N, M, L, D]` at once."""
    _, weights = _attention(regions, words)
    attended = torch.einsum("nmrl,nrd->nmld", weights, regions)
    return _log_sum_exp(_cosine(words, attended))


def from_gram(regions: Tensor, words: Tensor) -> Tensor:
    """Return SCAN's scores without attended vectors, whose norms the regions' products give."""
    products, weights = _attention(regions, words)
    gram = regions @ regions.transpose(1, 2)  # [N, R, R]
    squares = (weights * (gram[:, None] @ weights)).sum(2)  # [N, M, L]
    norms = squares.clamp(min=1e-30).sqrt() * torch.linalg.vector_norm(words, dim=2)
    return _log_sum_exp((products * weights).sum(2) / norms.clamp(min=EPS))


def max_sim(regions: Tensor, words: Tensor) -> Tensor:
    """Return FILIP's text-to-image scores: the mean over words of the best cosine."""
    products = torch.einsum("nrd,mld->nmrl", normalize(regions, dim=2), normalize(words, dim=2))
    return products.max(2).values.mean(2)
