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


def with_gradient_of_nan(
    loss: Tensor,  # [M]
    positive: Tensor | None = None,  # [M]
) -> Tensor:  # [M]
    """Return a loss whose gradient is NaN wherever a pair's loss is.

    The rows that a NaN is made of may be finite, and so would be the gradient of a hinge. A text
    without an image is no pair: its NaN pulls nothing, so that a loss may leave it out.
    """
    nan = loss.isnan() if positive is None else loss.isnan() & (positive >= 0)
    return loss * torch.where(nan, torch.nan, 1.0)


def hardest(
    scores: Tensor,  # [N, M]
    excluded: Tensor,  # [N, M]
    dim: int,
) -> tuple[Tensor, Tensor]:
    """Return score and index of the largest of the others along an axis; -inf and -1 for none.

    The lowest index wins. A score of -inf, which overflow makes, is a negative as any other.
    """
    found = scores.masked_fill(excluded, -torch.inf).max(dim)
    first = excluded.to(torch.uint8).argmin(dim)
    index = torch.where(found.values == -torch.inf, first, found.indices)
    none = excluded.all(dim)
    score = scores.gather(dim, index.unsqueeze(dim)).squeeze(dim)
    return score.masked_fill(none, -torch.inf), index.masked_fill(none, -1)
