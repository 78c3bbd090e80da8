"""Max of hinges: every anchor against its hardest negative."""

import torch
from torch import Tensor

from itm_kernels.reference._nan import nan_unless_finite, with_nan_gradient
from itm_kernels.reference._positives import positive_rows, positive_scores, same_id
from itm_kernels.reference._precision import wide


def max_of_hinges_from_scores(
    scores: Tensor,  # [N, M]
    positive: Tensor | None,  # [M]
    image_ids: Tensor | None,  # [N]
    text_ids: Tensor | None,  # [M]
    margin: float,
    semihard: bool,
) -> Tensor:  # [M]
    """Return max over texts of [margin + s - s+]+ plus max over images of the same, per pair."""
    scores = wide(scores)
    s_positive = positive_scores(scores, positive)
    negatives = scores.masked_fill(same_id(scores, image_ids, text_ids), -torch.inf)
    texts = positive_rows(negatives, positive)  # [M, M]
    images = negatives.T  # [M, N]
    if semihard:
        texts = texts.masked_fill(texts >= s_positive[:, None], -torch.inf)
        images = images.masked_fill(images >= s_positive[:, None], -torch.inf)
    hardest_text = texts.max(1).values
    hardest_image = images.max(1).values
    text_hinge = (margin + hardest_text - s_positive).relu()
    image_hinge = (margin + hardest_image - s_positive).relu()
    loss = text_hinge + image_hinge + nan_unless_finite(s_positive)
    return with_nan_gradient(loss, positive)


def max_of_hinges(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    positive: Tensor | None,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    margin: float,
    semihard: bool,
) -> Tensor:  # [M]
    """Apply `max_of_hinges_from_scores` to the dot products of all pairs."""
    scores = wide(image) @ wide(text).T
    return max_of_hinges_from_scores(scores, positive, image_ids, text_ids, margin, semihard)
