"""The losses in eager PyTorch, as VSE++ and IMC write them, and the simplest form of the others.

As in those projects, several N x M matrices are live at once, and autograd keeps them.
"""

import torch
from torch import Tensor
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    logsigmoid,
    normalize,
)

MARGIN = 0.2
SCALE = 20.0  # 1 / temperature, which is .05 in the papers
BIAS = -10.0


def _hinges(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two cost matrices of VSE++'s `ContrastiveLoss.forward`, before the reduction."""
    diagonal = scores.diagonal().view(-1, 1)
    text_cost = (MARGIN + scores - diagonal.expand_as(scores)).clamp(min=0)
    image_cost = (MARGIN + scores - diagonal.T.expand_as(scores)).clamp(min=0)
    own = torch.eye(scores.shape[0], dtype=torch.bool, device=scores.device)
    return text_cost.masked_fill(own, 0), image_cost.masked_fill(own, 0)


def sum_of_hinges(image: Tensor, text: Tensor) -> Tensor:
    """Return VSE++'s loss without `max_violation`."""
    text_cost, image_cost = _hinges(image @ text.T)
    return text_cost.sum() + image_cost.sum()


def max_of_hinges(image: Tensor, text: Tensor) -> Tensor:
    """Return VSE++'s loss with `max_violation`."""
    return max_of_hinges_from_scores(image @ text.T)


def max_of_hinges_from_scores(scores: Tensor) -> Tensor:
    """Return the loss of VSE++ and SCAN with `max_violation` from scores `[N, N]`."""
    text_cost, image_cost = _hinges(scores)
    return text_cost.max(1)[0].sum() + image_cost.max(0)[0].sum()


def info_nce(image: Tensor, text: Tensor) -> Tensor:
    """Return CLIP's symmetric cross-entropy, from one score matrix."""
    return cross_entropies(SCALE * normalize(image, dim=-1) @ normalize(text, dim=-1).T)


def cross_entropies(logits: Tensor) -> Tensor:
    """Return the mean cross-entropy of rows and columns, whose labels are their numbers."""
    labels = torch.arange(logits.shape[0], device=logits.device)
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


def info_cmr(image: Tensor, text: Tensor) -> Tensor:
    """Return InfoCMR without synthesis and noise: the two directions are added."""
    return 2 * info_nce(image, text)


def sigmoid(image: Tensor, text: Tensor) -> Tensor:
    """Return SigLIP's loss: minus the log sigmoid of every pair, over the number of texts."""
    logits = SCALE * normalize(image, dim=-1) @ normalize(text, dim=-1).T + BIAS
    labels = 2 * torch.eye(logits.shape[0], device=logits.device, dtype=logits.dtype) - 1
    return -logsigmoid(labels * logits).sum() / logits.shape[0]


def intra_modal(
    x: Tensor,  # [N, D]
    metric: str = "cosine",
    mode: str = "official",
    lower: float = 0.05,
    upper: float = 0.5,
) -> Tensor:
    """Return IMC's constraint of one modality, from a score or distance matrix and masks."""
    N = x.shape[0]
    own = torch.eye(N, dtype=torch.bool, device=x.device)
    if metric == "cosine":
        rows = x if mode == "official" else normalize(x, dim=-1)
        values = rows @ rows.T if mode == "official" else 1 - rows @ rows.T
        low, high = (upper, 1 - lower) if mode == "official" else (lower, upper)
    else:
        values, low, high = torch.cdist(x, x, p=1.0 if metric == "l1" else 2.0), lower, upper
        if mode == "official":
            values = values / values.norm(dim=1, keepdim=True)
            ranked = values[0].detach().sort().values
            low, high = ranked[round(lower * N)], ranked[round(upper * N)]
    inside = (values > low) & (values < high) & ~own
    total = values.masked_fill(~inside, 0).sum()
    return total / N if mode == "official" else total


def imc(image: Tensor, text: Tensor) -> Tensor:
    """Return the whole loss of IMC's training loop: max of hinges and both constraints."""
    return max_of_hinges(image, text) + intra_modal(image) + intra_modal(text)


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Return the l1 distance matrix."""
    return torch.cdist(x, y, p=1.0)


def rbf_synthesis(
    anchors: Tensor,  # [N, D]
    members: Tensor,  # [M, D]
    assignment: Tensor,  # [M]
    num_clusters: int,
    sigma: float,
    weights: str,
    ridge: float,
) -> Tensor:  # [N, K, D]
    """Loop over the clusters: gather the members, softmax, Cholesky solve (kam only), product."""
    vectors = []
    for k in range(num_clusters):
        own = members[assignment == k]
        khat = (-torch.cdist(anchors, own).square() / (2 * sigma**2)).softmax(1)
        if weights == "kam":
            gram = torch.exp(-torch.cdist(own, own).square() / (2 * sigma**2))
            gram = gram + ridge * torch.eye(len(own), dtype=gram.dtype, device=gram.device)
            khat = torch.cholesky_solve(khat.T, torch.linalg.cholesky(gram)).T
        vectors.append(khat @ own)
    return torch.stack(vectors, 1)


def kmeans(x: Tensor, init: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Run Lloyd's iterations with a distance matrix and a sum per cluster."""
    centroids = init
    for _ in range(iterations):
        nearest = torch.cdist(x, centroids).argmin(1)
        count = torch.bincount(nearest, minlength=len(init)).to(x.dtype)[:, None]
        total = torch.zeros_like(centroids).index_add_(0, nearest, x)
        centroids = torch.where(count > 0, total / count.clamp(min=1), centroids)
    return torch.cdist(x, centroids).argmin(1), centroids


def sample_negatives(
    image: Tensor,
    text: Tensor,
    strategy: str,
    temperature: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw negatives as ALBEF, masked before the softmax: one per anchor, in both directions."""
    scores = image @ text.T / temperature
    own = torch.eye(scores.shape[0], dtype=torch.bool, device=scores.device)
    scores = scores.masked_fill(own, -torch.inf)
    if strategy == "hardest":
        return scores.argmax(1), scores.argmax(0)
    texts = torch.multinomial(scores.softmax(1), 1, generator=generator)[:, 0]
    images = torch.multinomial(scores.T.softmax(1), 1, generator=generator)[:, 0]
    return texts, images


def ranks(
    queries: Tensor,  # [Q, D]
    gallery: Tensor,  # [G, D]
    query_ids: Tensor,  # [Q]
    gallery_ids: Tensor,  # [G]
) -> Tensor:  # [Q]
    """Return the middle rank of the best positive among its ties, from the score matrix."""
    scores = queries @ gallery.T
    others = query_ids[:, None] != gallery_ids[None, :]
    best = scores.masked_fill(others, -torch.inf).max(1, keepdim=True).values
    ties = (others & (scores == best)).sum(1)
    return 1 + (scores > best).sum(1) + ties / 2


def itm(image: Tensor, text: Tensor) -> Tensor:
    """Return image-text matching on the hardest negatives; dot products replace a fusion model."""
    N = image.shape[0]
    with torch.no_grad():
        own = torch.eye(N, dtype=torch.bool, device=image.device)
        scores = (image @ text.T).masked_fill(own, -torch.inf)
        hardest_text, hardest_image = scores.argmax(1), scores.argmax(0)
    fused = torch.cat([image * text, image * text[hardest_text], image[hardest_image] * text])
    labels = torch.zeros(3 * N, dtype=fused.dtype, device=image.device)
    labels[:N] = 1
    return binary_cross_entropy_with_logits(fused.sum(1), labels)


def ito(images: Tensor, texts: Tensor, fused: Tensor) -> Tensor:
    """Return ITO: CLIP's loss over all pairs of views, plus NT-Xent between two fused vectors."""
    align = [info_nce(image, text) for image in images for text in texts]
    both = SCALE * normalize(fused.flatten(0, 1), dim=-1)  # [2 N, D]
    logits = both @ both.T / SCALE
    logits = logits.masked_fill(torch.eye(len(both), device=both.device).bool(), -torch.inf)
    other = torch.arange(len(both), device=both.device).roll(len(both) // 2)
    return torch.stack(align).mean() + 2 * cross_entropy(logits, other)
