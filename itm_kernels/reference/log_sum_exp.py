"""Row and column log-sum-exp of a scaled score matrix."""

import torch
from torch import Tensor

from itm_kernels.reference._pairs import same_id
from itm_kernels.reference._rows import wide


def log_sum_exp(
    x: Tensor,  # [N, D]
    y: Tensor,  # [M, D]
    scale: Tensor,  # []
    x_ids: Tensor | None,  # [N]
    y_ids: Tensor | None,  # [M]
) -> tuple[Tensor, Tensor]:  # [N], [M]
    """Return log sum_m e^(scale x_n . y_m) and log sum_n of the same.

    With ids, pairs that share one are left out; an empty sum is -inf.
    """
    logits = scale * (wide(x) @ wide(y).T)
    if x_ids is not None:
        logits = logits.masked_fill(same_id(logits, x_ids, y_ids), -torch.inf)
    return logits.logsumexp(1), logits.logsumexp(0)
