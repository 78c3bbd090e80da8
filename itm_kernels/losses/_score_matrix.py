"""Checks for losses of a score matrix that the model computes itself (SCAN, SGRAF)."""

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from itm_kernels import _checks, _positives
from itm_kernels._public import UnnamedValueError


def pairs_of_scores(
    scores: Tensor,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    unmatched: str,
    group: ProcessGroup | None,
) -> _positives.Matched:
    """Check a score matrix [N, M] and find the positive of every text.

    Raises:
        TypeError: scores is not a floating-point tensor.
        ValueError: scores is not a matrix, or not square without ids, or the group has several
            ranks.
    """
    if group is not None and dist.get_world_size(group) > 1:
        raise UnnamedValueError(
            f"a score matrix is that of a whole batch, and group spreads the batch over "
            f"{dist.get_world_size(group)} ranks; set group = None for the loss of the given matrix"
        )
    _checks.floating("scores", scores, "[N, M]")
    if image_ids is None and text_ids is None and scores.shape[0] != scores.shape[1]:
        raise UnnamedValueError(
            f"scores {list(scores.shape)} is not square; "
            "pass image_ids and text_ids for unequal batches"
        )
    return _positives.match(scores, scores.T, image_ids, text_ids, unmatched)


def embeddings_of_scores(
    scores: Tensor,  # [N, M]
    image: object,
    text: object,
) -> tuple[Tensor, Tensor]:  # [N, D], [M, D]
    """Check the embeddings of the images and texts that a score matrix compares.

    Raises:
        TypeError: an embedding is not a floating-point tensor, or their dtypes differ.
        ValueError: their rows are not those of the scores, or on another device.
    """
    image, text = _checks.embeddings(image=image, text=text)
    N, M = scores.shape
    if (image.shape[0], text.shape[0]) != (N, M) or image.device != scores.device:
        raise UnnamedValueError(
            f"scores [{N}, {M}] on {scores.device} needs image [{N}, D] and text [{M}, D] there, "
            f"got {_checks.describe(image)} and {_checks.describe(text)}"
        )
    return image, text
