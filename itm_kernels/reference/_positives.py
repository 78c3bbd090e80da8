"""Positive and negative pairs of a score matrix."""

import torch
from torch import Tensor


def same_id(
    scores: Tensor,  # [N, M]
    image_ids: Tensor | None,  # [N]
    text_ids: Tensor | None,  # [M]
) -> Tensor:  # [N, M]
    """Mark the pairs that share an id, which are never negatives; without ids, the diagonal."""
    if image_ids is None or text_ids is None:
        return torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
    return image_ids[:, None] == text_ids[None, :]


def is_positive(
    scores: Tensor,  # [N, M]
    positive: Tensor | None,  # [M]
) -> Tensor:  # [N, M]
    """Mark the positive image of every text."""
    if positive is None:
        return torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
    return torch.arange(scores.shape[0], device=scores.device)[:, None] == positive


def positive_scores(
    scores: Tensor,  # [N, M]
    positive: Tensor | None,  # [M]
) -> Tensor:  # [M]
    """Return s+, the score of every text with its positive image.

    It is NaN if the positive is -1, for a text without exactly one image, and 0 if it is N, for a
    text that is a negative only.
    """
    if positive is None:
        return scores.diagonal()
    N = scores.shape[0]
    found = scores.gather(0, positive.clamp(0, N - 1)[None])[0]
    return found.masked_fill(positive < 0, torch.nan).masked_fill(positive >= N, 0)


def positive_rows(
    scores: Tensor,  # [N, M]
    positive: Tensor | None,  # [M]
) -> Tensor:  # [M, M]
    """Return the scores of the positive image of every text with all texts."""
    return scores if positive is None else scores[positive.clamp_min(0)]


def hardest(
    scores: Tensor,  # [N, M]
    excluded: Tensor,  # [N, M]
    dim: int,
) -> tuple[Tensor, Tensor]:
    """Return the maximum and its index along an axis over pairs that are not excluded.

    Without such pairs they are -inf and -1. Among equal scores the lowest index is returned. A
    score that overflows to -inf is still a negative.
    """
    found = scores.masked_fill(excluded, -torch.inf).max(dim)
    first = excluded.to(torch.uint8).argmin(dim)
    index = torch.where(found.values == -torch.inf, first, found.indices)
    none = excluded.all(dim)
    score = scores.gather(dim, index.unsqueeze(dim)).squeeze(dim)
    return score.masked_fill(none, -torch.inf), index.masked_fill(none, -1)
