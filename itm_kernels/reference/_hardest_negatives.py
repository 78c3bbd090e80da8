"""The hardest negative of every anchor, in both directions."""

from torch import Tensor

from itm_kernels.reference._positives import hardest, positive_scores, same_id
from itm_kernels.reference._precision import wide


def hardest_negatives(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    positive: Tensor | None,  # [M]
    image_ids: Tensor | None,  # [N]
    text_ids: Tensor | None,  # [M]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return s+ `[M]`, the hardest text per image `[N]` and the hardest image per text `[M]`.

    A hardest negative is a score and an index, -inf and -1 if an anchor has no negative.
    """
    scores = wide(image) @ wide(text).T
    same = same_id(scores, image_ids, text_ids)
    return positive_scores(scores, positive), *hardest(scores, same, 1), *hardest(scores, same, 0)
