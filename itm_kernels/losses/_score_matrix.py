"""The hinge losses of models that compute a score matrix themselves (SCAN, SGRAF)."""

from torch import Tensor

from itm_kernels import _checks, _positives


def pairs_of_scores(
    function: str,
    scores: Tensor,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    unmatched: str,
) -> _positives.Matched:
    """Check a score matrix [N, M] and find its pairs.

    Raises:
        TypeError: scores are no floating-point tensor.
        ValueError: scores are no matrix, or not square without ids.
    """
    _checks.floating(function, "scores", scores, "[N, M]")
    if image_ids is None and text_ids is None and scores.shape[0] != scores.shape[1]:
        raise ValueError(
            f"{function}: scores {list(scores.shape)} is not square; "
            "pass image_ids and text_ids for unequal batches"
        )
    return _positives.match(function, scores, scores.T, image_ids, text_ids, unmatched)
