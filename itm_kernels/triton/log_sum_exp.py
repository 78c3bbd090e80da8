"""Log-sum-exp of the rows and columns of a matrix of logits, from one pass.

A tile stores two values for each of its rows and columns: the maximum, and the log-sum-exp relative
to it. Their sum in one value would lose the low bits, from which the loss is computed.
"""

import torch
import triton.language as tl
from torch import Tensor

from itm_kernels.triton import _scaled_operands, gluon
from itm_kernels.triton._blocked_products import no_scores, products_in_parts
from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._log_sums import (
    log_sums_of_tiles,
    scaled_logits,
    shares_exponentials,
    store_column_log_sums,
    store_masked_log_sums,
    store_row_log_sums,
)
from itm_kernels.triton._operand_gradients import gradients_of_rows
from itm_kernels.triton._operands import Operands, wide_dtype
from itm_kernels.triton._positives import id_arguments
from itm_kernels.triton._products import weight_scale
from itm_kernels.triton._score_tiles import program_tile, score_tile
from itm_kernels.triton._softmax_weights import (
    disjoint_ids,
    finite_shift,
    store_softmax_weights,
)


@jit(do_not_specialize=["N", "M"])
def _forward_kernel(
    operands,  # `ScoreOperands`
    scale,  # []
    x_ids,
    y_ids,
    positive,  # [M]
    row,  # [2, column tiles, N]
    column,  # [2, row tiles, M]
    of_positive,  # [M]
    N,
    M,
    HAS_IDS: tl.constexpr,
    OF_POSITIVE: tl.constexpr,
    SHARED: tl.constexpr,
):
    ROWS: tl.constexpr = operands.ROWS
    COLUMNS: tl.constexpr = operands.COLUMNS
    FACTORS: tl.constexpr = operands.FACTORS
    n, m, row_tile, column_tile = program_tile(tl.program_id(0), ROWS, COLUMNS, N, M)
    rows, columns = tl.minimum(n, N - 1), tl.minimum(m, M - 1)
    scores = score_tile(operands, rows, columns)
    # Most tiles are complete, contain no positive and, with sorted ids, no equal ids.
    ordinary = ((row_tile + 1) * ROWS <= N) & ((column_tile + 1) * COLUMNS <= M)
    if HAS_IDS:
        ordinary &= disjoint_ids(tl.load(x_ids + rows), tl.load(y_ids + columns))
    if OF_POSITIVE:
        of = tl.load(positive + columns)
        here = (of >= row_tile * ROWS) & (of < tl.minimum(N, row_tile * ROWS + ROWS))
        ordinary &= tl.max(here.to(tl.int32), 0) == 0
        if row_tile == 0:
            nobody = tl.full((COLUMNS,), float("nan"), scores.dtype)
            tl.store(of_positive + m, nobody, mask=((of < 0) | (of >= N)) & (m < M))
    of_logit = tl.zeros((ROWS,), scores.dtype) + tl.load(scale)
    if FACTORS:
        of_logit *= tl.load(operands.x_factor + rows)
    column += row_tile.to(tl.int64) * M
    column_sum = column + tl.cast(tl.cdiv(N, ROWS), tl.int64) * M
    if ordinary:
        logits = scaled_logits(scores, column_tile * COLUMNS, of_logit, operands.y_factor, FACTORS)
        at = column_tile * COLUMNS
        highest, total = store_column_log_sums(logits, column + at, column_sum + at, SHARED)
    else:
        highest, total = store_masked_log_sums(
            scores, column_tile * COLUMNS, row_tile * ROWS, N, M, of_logit,
            (operands.y_factor, x_ids, y_ids, positive), (column, column_sum, of_positive),
            FACTORS, HAS_IDS, OF_POSITIVE,
        )  # fmt: skip
    row += column_tile.to(tl.int64) * N + n
    row_sum = row + tl.cast(tl.cdiv(M, COLUMNS), tl.int64) * N
    store_row_log_sums(highest, total, row, row_sum, n < N)


def log_sum_exp_forward(
    x: Tensor,  # [N, D]
    y: Tensor,  # [M, D]
    scale: Tensor,  # []
    x_ids: Tensor | None,
    y_ids: Tensor | None,
    positive: Tensor | None,  # [M]
    cosine: bool,
    keep_scores: bool,  # False
) -> tuple[Tensor, ...]:  # [N], [M], [M] or [0], [N], [M], [0, 0]
    """Return the log-sum-exp of every row and column of the logits, and those of the positives.

    The log-sum-exps are relative to the maxima, which follow the positives' logits.
    """
    both = _scaled_operands.scaled_operands(x, y, cosine, fine=True, epilogue="sums")
    if gluon.is_selected("log_sum_exp", both):
        from itm_kernels.triton.gluon.log_sum_exp import tile_log_sums

        return _result(x, *tile_log_sums(both, scale, x_ids, y_ids, positive))
    N, M = both.shape
    dtype, device = wide_dtype(x), x.device
    row = torch.empty((2, cdiv(M, both.tile.columns), N), dtype=dtype, device=device)
    column = torch.empty((2, cdiv(N, both.tile.rows), M), dtype=dtype, device=device)
    of_positive = row.new_empty(0 if positive is None else M)
    _forward_kernel[both.tile.programs(N, M)](
        **both.arguments(), **id_arguments(both, x_ids, y_ids), **_positives(both, positive),
        scale=scale, row=row, column=column, of_positive=of_positive, N=N, M=M,
        SHARED=shares_exponentials(),
    )  # fmt: skip
    return _result(x, row, column, of_positive)


def _result(x: Tensor, row: Tensor, column: Tensor, of_positive: Tensor) -> tuple[Tensor, ...]:
    """Return the result of `log_sum_exp_forward` from the sums of tiles."""
    of_row, row_highest, of_column, column_highest = log_sums_of_tiles(row, column)
    return of_row, of_column, of_positive, row_highest, column_highest, no_scores(x)


def _positives(both: Operands, positive: Tensor | None) -> dict[str, object]:
    placeholder = both.x if positive is None else positive.contiguous()
    return {"positive": placeholder, "OF_POSITIVE": positive is not None}


@jit(do_not_specialize=["first", "R", "M"])
def _softmax_weights_kernel(
    operands,  # `ScoreOperands`
    scale,
    unit,
    x_ids,
    y_ids,
    positive,  # [M]
    row,  # [N] log-sum-exp
    column,  # [M]
    row_highest,  # [N], the maximum that it is relative to
    column_highest,  # [M]
    grad_row,
    grad_column,
    grad_positive,
    weights,  # [parts, R, M] of rows from `first` on
    slope,  # [programs], the gradient of the scale
    weights_part,
    weights_stride,
    first,
    R,
    M,
    HAS_IDS: tl.constexpr,
    OF_POSITIVE: tl.constexpr,
    UNIT: tl.constexpr,
    WEIGHTS: tl.constexpr,
):
    ROWS: tl.constexpr = operands.ROWS
    COLUMNS: tl.constexpr = operands.COLUMNS
    PRECISION: tl.constexpr = operands.PRECISION
    FACTORS: tl.constexpr = operands.FACTORS
    r, m, row_tile, column_tile = program_tile(tl.program_id(0), ROWS, COLUMNS, R, M)
    rows, columns = first + tl.minimum(r, R - 1), tl.minimum(m, M - 1)
    products = score_tile(operands, rows, columns)
    lse, highest = finite_shift(tl.load(row + rows), tl.load(row_highest + rows))
    # Most tiles are complete, contain no positive and, with sorted ids, no equal ids.
    ordinary = ((row_tile + 1) * ROWS <= R) & ((column_tile + 1) * COLUMNS <= M)
    if HAS_IDS:
        ordinary &= disjoint_ids(tl.load(x_ids + rows), tl.load(y_ids + columns))
    if OF_POSITIVE:
        of = tl.load(positive + columns) - first
        here = (of >= row_tile * ROWS) & (of < (row_tile + 1) * ROWS)
        ordinary &= tl.max(here.to(tl.int32), 0) == 0
    of_logit = tl.zeros((ROWS,), products.dtype) + tl.load(scale)
    if FACTORS:
        of_logit *= tl.load(operands.x_factor + rows)
    of_weight = of_logit * tl.load(unit) if UNIT else of_logit
    of_rows = lse, highest, tl.load(grad_row + rows), of_logit, of_weight
    of_columns = (
        column, column_highest, grad_column, y_ids, operands.y_factor, positive, grad_positive
    )  # fmt: skip
    stored = weights, tl.cast(weights_part, tl.int64), weights_stride
    nothing = tl.zeros((ROWS, 8), products.dtype)
    if ordinary:
        slopes = store_softmax_weights(
            products, nothing, r, column_tile * COLUMNS, R, M, first, of_rows, x_ids, of_columns,
            stored, True, FACTORS, HAS_IDS, OF_POSITIVE, WEIGHTS, PRECISION,
        )  # fmt: skip
    else:
        slopes = store_softmax_weights(
            products, nothing, r, column_tile * COLUMNS, R, M, first, of_rows, x_ids, of_columns,
            stored, False, FACTORS, HAS_IDS, OF_POSITIVE, WEIGHTS, PRECISION,
        )  # fmt: skip
    of_row = tl.sum(slopes, 1)
    if FACTORS:  # loaded again: kept, they or their addresses would spill
        of_row *= tl.load(operands.x_factor + first + r, r < R, 0.0)
    tl.store(slope + tl.program_id(0), tl.sum(of_row, 0))


def log_sum_exp_backward(
    grad_row: Tensor,  # [N]
    grad_column: Tensor,  # [M]
    grad_positive: Tensor,  # [M] or [0]
    row: Tensor,  # [N]
    column: Tensor,  # [M]
    row_highest: Tensor,  # [N]
    column_highest: Tensor,  # [M]
    scores: Tensor,  # [0, 0]
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    x_ids: Tensor | None,
    y_ids: Tensor | None,
    positive: Tensor | None,  # [M]
    cosine: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, y and scale, with softmax weights from the saved log-sum-exps."""
    both = _scaled_operands.scaled_operands(x, y, cosine, fine=True, epilogue="pieces")
    given = {
        **{"grad_row": grad_row.contiguous(), "grad_column": grad_column.contiguous()},
        **{"grad_positive": grad_positive.contiguous()},
    }
    unit = weight_scale(x, both, scale, *given.values())
    arguments = {
        **{**both.arguments(), **id_arguments(both, x_ids, y_ids), **_positives(both, positive)},
        **{**given, "scale": scale, "unit": scale if unit is None else unit},
        **{"row": row.contiguous(), "row_highest": row_highest.contiguous()},
        **{"column": column.contiguous(), "column_highest": column_highest.contiguous()},
        "UNIT": unit is not None,
    }
    slopes = []

    def fill(first: int, weights: Tensor) -> None:
        parts, R, M = weights.shape
        grid = both.tile.programs(R, M)
        slopes.append(torch.empty(grid, dtype=wide_dtype(x), device=x.device))
        _softmax_weights_kernel[grid](
            **arguments, weights=weights, slope=slopes[-1], first=first, R=R, M=M,
            weights_part=weights.stride(0), weights_stride=weights.stride(1), WEIGHTS=parts,
        )  # fmt: skip

    sums = products_in_parts(x, both, fill, fine=True)
    grad_x, grad_y = gradients_of_rows([x, y], sums, unit, cosine, fine=True)
    grad_scale = (slopes[0] if len(slopes) == 1 else torch.cat(slopes)).sum(dtype=torch.float64)
    return grad_x, grad_y, grad_scale.to(scale.dtype)
