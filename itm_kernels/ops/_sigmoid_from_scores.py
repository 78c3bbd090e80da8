"""Sigmoid loss of a score matrix that the model computes itself."""

from torch import Tensor

from itm_kernels import reference
from itm_kernels._autocast import outside_autocast
from itm_kernels._positives import Pairs


@outside_autocast
def fused_sigmoid_from_scores(
    scores: Tensor,  # [N, M]
    scale: Tensor,  # []
    bias: Tensor,  # []
    pairs: Pairs,
    backend: str,
) -> Tensor:  # [M]
    """Compute the sums over images of checked arguments."""
    return reference.sigmoid_from_scores(scores, scale, bias, *pairs)
