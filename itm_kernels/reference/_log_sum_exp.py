"""Row and column log-sum-exp of a scaled score matrix."""

import torch
from torch import Tensor

from itm_kernels.reference._positives import positive_scores, same_id
from itm_kernels.reference._precision import wide


def log_sum_exp(
    x: Tensor,  # [N, D]
    y: Tensor,  # [M, D]
    scale: Tensor,  # []
    x_ids: Tensor | None,  # [N]
    y_ids: Tensor | None,  # [M]
    positive: Tensor | None,  # [M]
) -> tuple[Tensor, ...]:  # [N], [M], [M] or [0], [N], [M]
    """Return log sum_m e^(z_nm - z_n) for logits z and their row maximum z_n, and for columns.

    With ids, pairs that share one are excluded; an empty sum is -inf. The third result is the
    logits of positives, and the last two are the maxima, which are constants.
    """
    return log_sum_exp_from_scores(wide(x) @ wide(y).T, scale, x_ids, y_ids, positive)


def log_sum_exp_from_scores(
    scores: Tensor,  # [N, M]
    scale: Tensor,  # []
    x_ids: Tensor | None,  # [N]
    y_ids: Tensor | None,  # [M]
    positive: Tensor | None,  # [M]
) -> tuple[Tensor, ...]:  # [N], [M], [M] or [0], [N], [M]
    """Do the same for a given score matrix."""
    logits = scale * wide(scores)
    positive_logits = logits[0, :0] if positive is None else positive_scores(logits, positive)
    if x_ids is not None:
        logits = logits.masked_fill(same_id(logits, x_ids, y_ids), -torch.inf)
    row_highest, column_highest = (logits.detach().amax(dim) for dim in (1, 0))
    row_highest, column_highest = (
        h.masked_fill(h.isinf(), 0) for h in (row_highest, column_highest)
    )
    row = (logits - row_highest[:, None]).logsumexp(1)
    column = (logits - column_highest).logsumexp(0)
    return row, column, positive_logits, row_highest, column_highest
