"""Log-sum-exp of the rows and columns of a score matrix that is spread over ranks."""

import torch
from torch import Tensor

from itm_kernels.distributed._collectives import attached, gather_rows, log_add
from itm_kernels.distributed._ring import Outputs, circulate
from itm_kernels.distributed._side import Side, local_index
from itm_kernels.losses._contrast import Embeddings, log_sums
from itm_kernels.ops._log_sum_exp import RelativeSums, fused_log_sum_exp, normalises_rows


def gathered(rows: Embeddings, side: Side) -> Embeddings:
    """Return the rows of all ranks."""
    return Embeddings(gather_rows(rows.raw, side), rows.backend, rows.cosine)


def log_sums_of_columns(
    x: Embeddings,  # [N, D], the rows of all ranks
    y: Embeddings,  # [m, D], of this rank
    scale: Tensor,  # []
    x_ids: Tensor,  # [N]
    y_ids: Tensor,  # [m]
    positive: Tensor,  # [m]
) -> RelativeSums:
    """Return `log_sum_exp` of all rows x with this rank's rows y.

    The sums of y are complete; those of x are combined by `with_all_columns`.
    """
    if y.raw.shape[0]:
        return log_sums(x, y, scale, x_ids, y_ids, positive)
    return _of_no_columns(x.raw, y.raw, scale)


def with_all_columns(found: RelativeSums, side: Side) -> RelativeSums:
    """Return the sums with those of x `[N]` over the rows y of all ranks, equal on all ranks."""
    row, row_highest = log_add(found.row, found.row_highest, side)
    return found._replace(row=row, row_highest=row_highest)


def log_sums_around(
    x: Embeddings,  # [n, D], of this rank
    y: Embeddings,  # [m, D]
    scale: Tensor,  # []
    x_ids: Tensor,  # [N]
    y_ids: Tensor,  # [m]
    positive: Tensor,  # [m]
    side: Side,  # of x
) -> RelativeSums:
    """Return the same; the rows x of all ranks visit this rank one block after another.

    Rows y are normalised once, unless the backend computes cosines of raw rows.
    """
    unit = y.cosine and not normalises_rows(x.raw, y.raw, y.backend)

    def of_block(block: Tensor, own: slice, own_y: Tensor, scale: Tensor) -> Outputs:
        if not block.shape[0] or not own_y.shape[0]:
            none = scale.new_full((block.shape[0],), -torch.inf)
            zeros = scale.new_zeros(own_y.shape[0])
            no_column = torch.full_like(zeros, -torch.inf), zeros
            return Outputs((none, torch.zeros_like(none)), (zeros,), (), (no_column,))
        local = local_index(positive, own, -1)
        visiting, options = Embeddings(block, x.backend, x.cosine), (x_ids[own], y_ids)
        if unit:
            found = fused_log_sum_exp(visiting.unit, own_y, scale, *options, y.backend, local)
        else:
            own_rows = Embeddings(own_y, y.backend, y.cosine)
            found = log_sums(visiting, own_rows, scale, *options, local)
        logits = found.positive.masked_fill((local < 0) & (positive >= 0), 0)
        columns = found.column, found.column_highest
        return Outputs((found.row, found.row_highest), (logits,), (), (columns,))

    found = circulate(of_block, side, x.raw, y.unit if unit else y.raw, scale)
    (row, row_highest), (column, column_highest) = found.rows, found.logs[0]
    return RelativeSums(row, column, found.sums[0], row_highest, column_highest)


def _of_no_columns(x: Tensor, y: Tensor, scale: Tensor) -> RelativeSums:
    row = attached(scale.new_full((x.shape[0],), -torch.inf), x, y, scale)
    none = scale.new_empty(0)
    return RelativeSums(row, none, none, torch.zeros_like(row), none)
