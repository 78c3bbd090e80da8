"""The losses of the projects that `itm_kernels.compat` replaces, in plain PyTorch.

These functions are ours, written from what those projects return; no code is theirs.
"""

import torch
from torch import Tensor
from torch.nn import functional as torch_functional


def triplet_loss(
    im: Tensor, s: Tensor, margin: float, measure: str | bool, max_violation: bool
) -> Tensor:
    """VSE++: hinges against the diagonal, summed or the largest per row and column."""
    if measure == "order":
        above = (s[None, :, :] - im[:, None, :]).clamp(min=0)
        scores = -above.pow(2).sum(2).sqrt()
    else:
        scores = im @ s.T
    return triplet_loss_of_scores(scores, margin, max_violation)


def triplet_loss_of_scores(scores: Tensor, margin: float, max_violation: bool) -> Tensor:
    """SGRAF, and VSE++ and SCAN after their scores: hinges against the diagonal."""
    positive = scores.diagonal()
    own = torch.eye(len(scores), dtype=torch.bool)
    of_text = (margin + scores - positive[:, None]).clamp(min=0).masked_fill(own, 0)
    of_image = (margin + scores - positive[None, :]).clamp(min=0).masked_fill(own, 0)
    if max_violation:
        of_text, of_image = of_text.max(1).values, of_image.max(0).values
    return of_text.sum() + of_image.sum()


def scan_scores(
    images: Tensor,  # [N, R, D]
    captions: Tensor,  # [M, L, D]
    lengths: list[int],
    direction: str,
    norm: str,
    aggregate: str,
    smooth: float,
    scale: float,
) -> Tensor:  # [N, M]
    """SCAN: a loop over captions, in which words attend to regions or regions to words."""
    columns = []
    for caption, length in zip(captions, lengths, strict=True):
        words = caption[:length].expand(len(images), -1, -1)
        asking, attended = (words, images) if direction == "t2i" else (images, words)
        # similarity[n, c, q] of what is attended, c, and what asks, q; normalised over q
        similarity = torch.einsum("ncd,nqd->ncq", attended, asking)
        if "clipped" in norm:
            similarity = similarity.where(similarity > 0, 0.1 * similarity)
        if "l2norm" in norm:
            similarity = similarity / (similarity.pow(2).sum(2, keepdim=True).sqrt() + 1e-8)
        if norm == "softmax":
            similarity = similarity.softmax(2)
        weight = (smooth * similarity).softmax(1)
        context = torch.einsum("ncq,ncd->nqd", weight, attended)
        lengths_of_both = asking.norm(dim=2) * context.norm(dim=2)
        cosine = (asking * context).sum(2) / lengths_of_both.clamp(min=1e-8)  # [N, q]
        if aggregate == "LogSumExp":
            columns.append((scale * cosine).exp().sum(1).log() / scale)
        elif aggregate == "Max":
            columns.append(cosine.max(1).values)
        else:
            columns.append(cosine.sum(1) if aggregate == "Sum" else cosine.mean(1))
    return torch.stack(columns, 1)


def intra_loss(mx: Tensor, measure: str, up: float, down: float, lamb: float) -> Tensor:
    """IMC: the sum over a band of similarities, or of row-normalised distances by rank."""
    size = len(mx)
    if measure == "cosine":
        scores = mx @ mx.T - torch.eye(size, dtype=mx.dtype)
        kept = (scores > up) & (scores < 1 - down)
        return scores[kept].sum() / size * lamb
    difference = mx[:, None, :] - mx[None, :, :]
    if measure == "l1":
        distances = difference.abs().sum(2)
    else:
        squares = difference.pow(2).sum(2)
        zero = squares == 0
        distances = squares.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)
        if measure == "msd":
            distances = squares
    distances = distances / distances.norm(dim=1, keepdim=True).clamp_min(1e-12)
    ranked = distances[0].detach().sort().values
    low = ranked[round(down * size)]
    high = ranked[round(up * size)]  # the original too fails when the rank exceeds the batch
    kept = (distances > low) & (distances < high)
    return distances[kept].sum() / size * lamb


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
) -> Tensor:
    """OpenCLIP: the mean of both cross-entropies, features as they come."""
    logits = logit_scale * image_features @ text_features.T
    if logit_bias is not None:
        logits = logits + logit_bias
    labels = torch.arange(len(logits))
    return (
        torch_functional.cross_entropy(logits, labels)
        + torch_functional.cross_entropy(logits.T, labels)
    ) / 2


def siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
) -> Tensor:
    """OpenCLIP: every pair a binary decision, summed and divided by the batch."""
    logits = logit_scale * image_features @ text_features.T
    if logit_bias is not None:
        logits = logits + logit_bias
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -torch_functional.logsigmoid(signs * logits).sum() / len(logits)
