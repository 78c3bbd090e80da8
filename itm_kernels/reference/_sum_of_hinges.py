"""Sum of hinges: every anchor against all its negatives."""

from torch import Tensor

from itm_kernels.reference._nan import nan_unless_finite, with_nan_gradient
from itm_kernels.reference._positives import positive_rows, positive_scores, same_id
from itm_kernels.reference._precision import wide


def sum_of_hinges_from_scores(
    scores: Tensor,  # [N, M]
    positive: Tensor | None,  # [M]
    image_ids: Tensor | None,  # [N]
    text_ids: Tensor | None,  # [M]
    margin: float,
) -> Tensor:  # [M]
    """Return sum over texts of [margin + s - s+]+ plus sum over images of the same, per pair."""
    scores = wide(scores)
    s_positive = positive_scores(scores, positive)
    same = same_id(scores, image_ids, text_ids)
    a = (margin + positive_rows(scores, positive) - s_positive[:, None]).relu()
    b = (margin + scores - s_positive[None, :]).relu()
    loss = a.masked_fill(positive_rows(same, positive), 0).sum(1) + b.masked_fill(same, 0).sum(0)
    return with_nan_gradient(loss + nan_unless_finite(s_positive), positive)


def sum_of_hinges(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    positive: Tensor | None,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    margin: float,
) -> Tensor:  # [M]
    """Apply `sum_of_hinges_from_scores` to the dot products of all pairs."""
    scores = wide(image) @ wide(text).T
    return sum_of_hinges_from_scores(scores, positive, image_ids, text_ids, margin)
