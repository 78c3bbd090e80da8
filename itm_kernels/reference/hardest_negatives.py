"""The hardest negative of every anchor, in both directions."""

import torch
from torch import Tensor

from itm_kernels.reference._pairs import positive_scores, same_id
from itm_kernels.reference._rows import wide


def hardest_negatives(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    positive: Tensor | None,  # [M]
    image_ids: Tensor | None,  # [N]
    text_ids: Tensor | None,  # [M]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return s+ `[M]`, the hardest text per image `[N]` and the hardest image per text `[M]`.

    Each hardest negative is a score and an index, -inf and -1 where an anchor has no negative.
    """
    scores = wide(image) @ wide(text).T
    same = same_id(scores, image_ids, text_ids)
    negatives = scores.masked_fill(same, -torch.inf)
    text_score, text_index = negatives.max(1)
    image_score, image_index = negatives.max(0)
    return (
        positive_scores(scores, positive),
        text_score,
        text_index.masked_fill(same.all(1), -1),
        image_score,
        image_index.masked_fill(same.all(0), -1),
    )
