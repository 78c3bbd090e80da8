"""Sigmoid loss: a tile of logits stores one sum per text, or one sum and a tile of weights.

In a whole loss every text has the same gradient. The gradients of the inputs are therefore computed
in the forward pass, up to a factor that the backward pass applies, which saves a pass over the
scores.

Weights of bf16 rows are one bf16 part, for positives and negatives alike: in 24 settings (random,
aligned, nearly equal rows; scales of 10 to 100) the error of gradients was 1 to 1.8 times the
rounding of the reference. The gradients of scale and bias use fp32 weights.
"""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._blocked_products import no_scores, products_in_parts
from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._logistic import (
    exp_in_base,
    has_diagonal_or_edge,
    logits,
    sigmoid_totals_kernel,
    softplus_sums,
)
from itm_kernels.triton._operand_gradients import gradients_of_rows
from itm_kernels.triton._operands import Operands, kind_of, wide_dtype
from itm_kernels.triton._positives import id_arguments
from itm_kernels.triton._products import weight_scale
from itm_kernels.triton._scaled_operands import scaled_operands
from itm_kernels.triton._score_tiles import program_tile, score_tile
from itm_kernels.triton._sigmoid_weights import store_sigmoid_weights
from itm_kernels.triton._softmax_weights import disjoint_ids


@jit
def _forward_kernel(
    operands,  # `ScoreOperands`
    scale,  # []
    bias,  # []
    positive,  # [M]
    x_ids,
    y_ids,
    sums,  # [row tiles, M]
    N,
    M,
    HAS_IDS: tl.constexpr,
):
    ROWS: tl.constexpr = operands.ROWS
    COLUMNS: tl.constexpr = operands.COLUMNS
    FACTORS: tl.constexpr = operands.FACTORS
    n, m, row_tile, column_tile = program_tile(tl.program_id(0), ROWS, COLUMNS, N, M)
    rows, columns = tl.minimum(n, N - 1), tl.minimum(m, M - 1)
    scores = score_tile(operands, rows, columns)
    special = has_diagonal_or_edge(row_tile * ROWS, 0, column_tile * COLUMNS, N, M, ROWS, COLUMNS)
    of_row = tl.zeros((ROWS,), scores.dtype) + tl.load(scale).to(scores.dtype)
    if FACTORS:
        of_row *= tl.load(operands.x_factor + rows)
        scores *= tl.load(operands.y_factor + columns)[None, :]
    z, _, _ = logits(
        scores, n, m, N, M, rows, columns, of_row, bias, positive, x_ids, y_ids, special, HAS_IDS
    )
    loss = softplus_sums(z, exp_in_base(-tl.abs(z)), 0)
    tl.store(sums + row_tile.to(tl.int64) * M + m, loss, mask=m < M)


def sigmoid_forward(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    scale: Tensor,  # []
    bias: Tensor,  # []
    positive: Tensor | None,  # [M]
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    keep_scores: bool,  # False
    cosine: bool,
) -> tuple[Tensor, Tensor]:  # [M], [0, 0]
    """Return every text's sum of -log sigmoid over the images."""
    both = scaled_operands(image, text, cosine, epilogue="narrow")
    N, M = both.shape
    shape = cdiv(N, both.tile.rows), M
    sums = torch.empty(shape, dtype=wide_dtype(text), device=text.device)
    _forward_kernel[both.tile.programs(N, M)](
        **_arguments(both, scale, bias, positive, image_ids, text_ids), sums=sums, N=N, M=M
    )
    return sums.sum(0), no_scores(image)


def _arguments(
    both: Operands,
    scale: Tensor,
    bias: Tensor,
    positive: Tensor | None,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
) -> dict[str, Any]:
    placeholder = both.x if positive is None else positive.contiguous()
    ids = id_arguments(both, image_ids, text_ids)
    return {**both.arguments(), **ids, "scale": scale, "bias": bias, "positive": placeholder}


@jit(do_not_specialize=["first", "tiles"])
def _sigmoid_weights_kernel(
    scale,
    bias,
    positive,
    x_ids,
    y_ids,
    operands,  # `ScoreOperands`; as the first parameter: 8 spills on sm_120
    grad,  # [M] of every text's sum; 1 in a whole loss
    unit,  # [] factor of stored weights
    weights,  # [parts, R, M] of rows from `first` on
    sums,  # [3, tiles]: gradient of scale, gradient of bias, loss
    weights_stride,
    weights_part,
    first,
    tiles,
    R,
    M,
    HAS_IDS: tl.constexpr,
    UNIT: tl.constexpr,
    WEIGHTS_PARTS: tl.constexpr,
    WHOLE: tl.constexpr,
    WEIGHTS: tl.constexpr,
):
    ROWS: tl.constexpr = operands.ROWS
    COLUMNS: tl.constexpr = operands.COLUMNS
    PRECISION: tl.constexpr = operands.PRECISION
    FACTORS: tl.constexpr = operands.FACTORS
    r, m, row_tile, column_tile = program_tile(tl.program_id(0), ROWS, COLUMNS, R, M)
    rows, columns = first + tl.minimum(r, R - 1), tl.minimum(m, M - 1)
    scores = score_tile(operands, rows, columns)
    if HAS_IDS:
        ordinary = ((row_tile + 1) * ROWS <= R) & ((column_tile + 1) * COLUMNS <= M)
        of = tl.load(positive + columns) - first
        here = (of < row_tile * ROWS + ROWS) & ((of >= row_tile * ROWS) | (of < -first))
        ordinary &= tl.max(here.to(tl.int32), 0) == 0
        ordinary &= disjoint_ids(tl.load(x_ids + rows), tl.load(y_ids + columns))
    else:
        ordinary = not has_diagonal_or_edge(
            row_tile * ROWS, first, column_tile * COLUMNS, R, M, ROWS, COLUMNS
        )
    of_row = tl.zeros((ROWS,), scores.dtype) + tl.load(scale).to(scores.dtype)
    if FACTORS:
        of_row *= tl.load(operands.x_factor + rows)
    of_rows = of_row, of_row * tl.load(unit) if UNIT else of_row
    of_columns = y_ids, operands.y_factor, positive, grad
    stored = weights, tl.cast(weights_part, tl.int64), weights_stride
    PARTS: tl.constexpr = WEIGHTS_PARTS if WEIGHTS else 0
    zero = tl.zeros((ROWS, 8), scores.dtype)
    nothing = zero, zero, zero
    if ordinary:
        loss, total, slope = store_sigmoid_weights(
            scores, nothing, r, column_tile * COLUMNS, R, M, first, bias, of_rows, x_ids,
            of_columns, stored, True, FACTORS, HAS_IDS, WHOLE, PARTS, PRECISION,
        )  # fmt: skip
    else:
        loss, total, slope = store_sigmoid_weights(
            scores, nothing, r, column_tile * COLUMNS, R, M, first, bias, of_rows, x_ids,
            of_columns, stored, False, FACTORS, HAS_IDS, WHOLE, PARTS, PRECISION,
        )  # fmt: skip
    at = sums + (first // ROWS + row_tile) * tl.cdiv(M, COLUMNS) + column_tile
    if WHOLE:
        tl.store(at + 2 * tiles, tl.sum(loss))
    if WEIGHTS:
        tl.store(at + tiles, tl.sum(total))
        of_score = tl.sum(slope, 1)
        if FACTORS:  # loaded again: kept, they or their addresses would spill
            of_score *= tl.load(operands.x_factor + first + r, r < R, 0.0)
        tl.store(at, tl.sum(of_score))


def _gradients(
    grad: Tensor | None,  # [M]
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    positive: Tensor | None,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    cosine: bool,
    gradients: bool = True,
) -> tuple[Tensor, ...]:
    """Return the loss, sums for gradients of rows, gradients of scale and bias, and the unit."""
    whole = grad is None
    # In 128 registers, masks of ids cause 20 to 45 spills, and two parts of weights two.
    few = positive is None and kind_of(image) == "half"
    both = scaled_operands(image, text, cosine, epilogue="logistic" if few else "weights")
    N, M = both.shape
    tiles = both.tile.programs(N, M)[0]
    sums = torch.empty((3, tiles), dtype=wide_dtype(image), device=image.device)
    text_grad = scale if grad is None else grad.contiguous()
    bounded = gradients and both.x.dtype == torch.float16
    unit = None
    if bounded:
        unit = weight_scale(image, both, scale, torch.ones_like(scale) if whole else text_grad)
    placeholder = scale if unit is None else unit
    arguments = {
        **_arguments(both, scale, bias, positive, image_ids, text_ids),
        **{"grad": text_grad, "unit": placeholder, "UNIT": unit is not None, "WHOLE": whole},
        **{"sums": sums, "tiles": tiles, "M": M, "WEIGHTS": gradients},
    }

    def fill(first: int, weights: Tensor) -> None:
        parts, R = weights.shape[:2]
        _sigmoid_weights_kernel[both.tile.programs(R, M)](
            **arguments, weights=weights, weights_stride=weights.stride(1),
            weights_part=weights.stride(0), WEIGHTS_PARTS=parts, first=first, R=R,
        )  # fmt: skip

    if gradients:
        of_rows = products_in_parts(image, both, fill)
    else:
        fill(0, sums[:1, :1, None].expand(1, N, 1))  # not written
        of_rows = sums.new_empty((0, image.shape[1])), sums.new_empty((0, image.shape[1]))
    loss, stored = sums.new_empty(()), torch.empty_like(scale)
    of_scale, of_bias = torch.empty_like(scale), torch.empty_like(bias)
    sigmoid_totals_kernel[(3,)](
        sums, placeholder, of_scale, of_bias, loss, stored, tiles,
        UNIT=unit is not None, WHOLE=whole, WEIGHTS=gradients, BLOCK=4096,
    )  # fmt: skip
    return loss, *of_rows, of_scale, of_bias, stored


def sigmoid_backward(
    grad: Tensor,  # [M]
    scores: Tensor,  # [0, 0]
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    positive: Tensor | None,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    cosine: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of image, text, scale and bias."""
    given = image, text, scale, bias, positive, image_ids, text_ids
    _, of_image, of_text, of_scale, of_bias, unit = _gradients(grad, *given, cosine)
    of_image, of_text = gradients_of_rows([image, text], [of_image, of_text], unit, cosine)
    return of_image, of_text, of_scale, of_bias


def sigmoid_total_forward(
    image: Tensor,
    text: Tensor,
    scale: Tensor | None,
    fixed_scale: float,
    bias: Tensor | None,
    fixed_bias: float,
    *inputs: Any,
) -> tuple[Tensor, ...]:
    """Return weight times the sum of -log sigmoid over all pairs, and tensors for the backward."""
    *pairs, weight, cosine, gradients, _ = inputs  # no scores are kept
    positive, image_ids, text_ids = pairs
    dtype = wide_dtype(image)
    scale = image.new_full((), fixed_scale, dtype=dtype) if scale is None else scale
    bias = image.new_full((), fixed_bias, dtype=dtype) if bias is None else bias
    given = image, text, scale, bias, positive, image_ids, text_ids
    total, *parts, unit = _gradients(None, *given, cosine, gradients)
    unit = unit if gradients else unit.new_empty(0)
    none = no_scores(image), image.new_empty((0, 1), dtype=dtype)  # outputs may not share memory
    return total if weight == 1 else total * weight, *parts, *none, unit


def sigmoid_total_backward(grad: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of image, text, scale and bias: those of the sum, times `grad`."""
    of_image, of_text, of_scale, of_bias, _, _, unit, image, text, *_, weight, cosine = inputs
    grad = grad if weight == 1 else grad * weight
    sides, sums = [image, text], [of_image, of_text]
    return *gradients_of_rows(sides, sums, unit, cosine, grad), of_scale * grad, of_bias * grad
