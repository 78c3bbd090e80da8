"""Row and column log-sum-exp of a score matrix that the model computes itself."""

from torch import Tensor

from itm_kernels import reference
from itm_kernels._autocast import outside_autocast
from itm_kernels.ops._log_sum_exp import RelativeSums


@outside_autocast
def fused_log_sum_exp_from_scores(
    scores: Tensor,  # [N, M]
    scale: Tensor,  # []
    x_ids: Tensor | None,  # [N]
    y_ids: Tensor | None,  # [M]
    positive: Tensor,  # [M]
    backend: str,
) -> RelativeSums:
    """Compute the sums of checked arguments, relative to the highest logits."""
    return RelativeSums(*reference.log_sum_exp_from_scores(scores, scale, x_ids, y_ids, positive))
