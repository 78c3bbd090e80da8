"""Which pairs of a score matrix are positive, and which may not be negatives."""

import torch
from torch import Tensor


def same_id(
    scores: Tensor,  # [N, M]
    image_ids: Tensor | None,  # [N]
    text_ids: Tensor | None,  # [M]
) -> Tensor:  # [N, M]
    """Mark the pairs that share an id and so are never negatives; without ids, the diagonal."""
    if image_ids is None or text_ids is None:
        return torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
    return image_ids[:, None] == text_ids[None, :]


def is_positive(
    scores: Tensor,  # [N, M]
    positive: Tensor | None,  # [M]
) -> Tensor:  # [N, M]
    """Mark the one positive image of every text."""
    if positive is None:
        return torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
    return torch.arange(scores.shape[0], device=scores.device)[:, None] == positive


def positive_scores(
    scores: Tensor,  # [N, M]
    positive: Tensor | None,  # [M]
) -> Tensor:  # [M]
    """Return s+, the score of every text with its positive image.

    It is NaN for a positive of -1, a text without exactly one image, and 0 for a positive of N, a
    text that is a negative only.
    """
    if positive is None:
        return scores.diagonal()
    N = scores.shape[0]
    found = scores.gather(0, positive.clamp(0, N - 1)[None])[0]
    return found.masked_fill(positive < 0, torch.nan).masked_fill(positive >= N, 0)


def rows_of_pairs(
    scores: Tensor,  # [N, M]
    positive: Tensor | None,  # [M]
) -> Tensor:  # [M, M]
    """Return, for every pair, the row of its image."""
    return scores if positive is None else scores[positive.clamp_min(0)]


def show_not_finite(scores: Tensor) -> Tensor:
    """Return 0 for a finite score and NaN otherwise, to add to a loss that may not depend on it.

    A pair without negatives has no term that would show a NaN, and [-inf]+ = 0 hides an infinite
    positive score.
    """
    return 0 * scores
