"""Checks for hinge losses of a score matrix that the model computes itself (SCAN, SGRAF)."""

from torch import Tensor

from itm_kernels import _checks, _positives
from itm_kernels._public import UnnamedValueError


def pairs_of_scores(
    scores: Tensor,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    unmatched: str,
) -> _positives.Matched:
    """Check a score matrix [N, M] and find the positive of every text.

    Raises:
        TypeError: scores is not a floating-point tensor.
        ValueError: scores is not a matrix, or not square without ids.
    """
    _checks.floating("scores", scores, "[N, M]")
    if image_ids is None and text_ids is None and scores.shape[0] != scores.shape[1]:
        raise UnnamedValueError(
            f"scores {list(scores.shape)} is not square; "
            "pass image_ids and text_ids for unequal batches"
        )
    return _positives.match(scores, scores.T, image_ids, text_ids, unmatched)
