"""Sum of hinges: a tile of scores stores one sum per row and one per column.

With ids several texts may belong to one image. Rows are then pairs, and a second pass compares the
texts with the images.

The gradient multiplies rows by the number of active hinges of every score, 0 to 2. If all pairs
have the same gradient, as after a sum or a mean, these weights are exact in half precision.
"""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._blocked_products import blocked_products, no_scores, rows_per_block
from itm_kernels.triton._hinge_gradients import HingeWeights, hinge_weights, is_uniform
from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._operands import Operands
from itm_kernels.triton._positives import id_arguments, positive_images, positive_scores
from itm_kernels.triton._products import row_parts, store_parts
from itm_kernels.triton._scaled_operands import scaled_operands
from itm_kernels.triton._score_tiles import hinge, program_tile, same_id, scale_scores, score_tile
from itm_kernels.triton._segment_sum import add_rows


@jit
def _hinges_kernel(
    operands,  # `ScoreOperands`
    x_ids,
    y_ids,
    offset,  # [M] margin - s+
    grad,  # [M]
    unit,  # [] of weights
    of_row,  # [column tiles, N] sums of hinges, or the number of active ones
    of_column,  # [row tiles, M]
    weights,  # [WEIGHTS, R, M] of rows from `first` on
    grad_stride,
    weights_stride,
    weights_part,
    first,
    N,
    R,
    M,
    HAS_IDS: tl.constexpr,
    HAS_UNIT: tl.constexpr,
    OF_ROWS: tl.constexpr,
    OF_COLUMNS: tl.constexpr,
    UNIFORM: tl.constexpr,  # the gradient is the same for all pairs, and not part of weights
    WEIGHTS: tl.constexpr,  # parts; 0 in the forward pass
):
    ROWS: tl.constexpr = operands.ROWS
    COLUMNS: tl.constexpr = operands.COLUMNS
    PRECISION: tl.constexpr = operands.PRECISION
    r, m, row_tile, column_tile = program_tile(tl.program_id(0), ROWS, COLUMNS, R, M)
    rows, columns = first + tl.minimum(r, R - 1), tl.minimum(m, M - 1)
    scores = score_tile(operands, rows, columns)
    scores = scale_scores(operands, scores, rows, columns)
    # Excluded scores have no active hinge, whatever the offset; an infinite offset gives NaN
    # anyway.
    off = same_id(rows, columns, x_ids, y_ids, HAS_IDS) | (r >= R)[:, None] | (m >= M)[None, :]
    scores = tl.where(off, float("-inf"), scores)
    weight = tl.zeros_like(scores)
    if OF_ROWS:
        value = scores + tl.load(offset + rows)[:, None]
        if WEIGHTS > 0:
            value = (value > 0).to(scores.dtype)
            if UNIFORM:
                weight += value
            else:
                row_grad = tl.load(grad + rows.to(tl.int64) * grad_stride).to(scores.dtype)
                weight += value * row_grad[:, None]
        else:
            value = hinge(value)
        at = column_tile.to(tl.int64) * N + first + r
        tl.store(of_row + at, tl.sum(value, 1), mask=r < R)
    if OF_COLUMNS:
        value = scores + tl.load(offset + columns)[None, :]
        if WEIGHTS > 0:
            value = (value > 0).to(scores.dtype)
            if UNIFORM:
                weight += value
            else:
                column_grad = tl.load(grad + columns.to(tl.int64) * grad_stride).to(scores.dtype)
                weight += value * column_grad[None, :]
        else:
            value = hinge(value)
        at = (first // ROWS + row_tile).to(tl.int64) * M + m
        tl.store(of_column + at, tl.sum(value, 0), mask=m < M)
    if WEIGHTS > 0:
        if HAS_UNIT:  # implies factors
            weight *= (tl.load(operands.x_factor + rows) * tl.load(unit))[:, None]
            weight *= tl.load(operands.y_factor + columns)[None, :]
        inside = (r < R)[:, None] & (m < M)[None, :]
        at = weights + r[:, None].to(tl.int64) * weights_stride + m[None, :]
        # 0, 1 and 2 are exact.
        ROUNDED: tl.constexpr = "ieee" if UNIFORM else PRECISION
        store_parts(at, tl.cast(weights_part, tl.int64), weight, inside, WEIGHTS, ROUNDED)


@jit
def _totals_kernel(
    of_row,  # [row_tiles, M]
    of_column,  # [column_tiles, M]
    offset,  # [M]
    total,  # [M]
    row_tiles,
    column_tiles,
    M,
    LOSS: tl.constexpr,
    PAIRS: tl.constexpr,
    TILES: tl.constexpr,
):
    """Add up the sums of the tiles, in fp64 because their number grows with M."""
    m = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    found = tl.zeros((PAIRS,), tl.float64)
    for first in range(0, row_tiles, TILES):
        tile = (first + tl.arange(0, TILES))[:, None]
        inside = (tile < row_tiles) & (m < M)[None, :]
        sums = tl.load(of_row + tile.to(tl.int64) * M + m[None, :], mask=inside, other=0.0)
        found += tl.sum(sums.to(tl.float64), 0)
    for first in range(0, column_tiles, TILES):
        tile = (first + tl.arange(0, TILES))[:, None]
        inside = (tile < column_tiles) & (m < M)[None, :]
        sums = tl.load(of_column + tile.to(tl.int64) * M + m[None, :], mask=inside, other=0.0)
        found += tl.sum(sums.to(tl.float64), 0)
    found = found.to(total.dtype.element_ty)
    if LOSS:  # NaN if the positive score is not finite
        found += 0 * tl.load(offset + m, mask=m < M, other=0.0)
    tl.store(total + m, found, mask=m < M)


class _Pass:
    """Scores of the rows of x and the texts; rows are pairs, or images, or both if equal."""

    def __init__(
        self,
        x: Tensor,
        text: Tensor,
        ids: tuple[Tensor | None, Tensor | None],
        of: str,
        epilogue: str,
    ) -> None:
        self.x = x  # [N, D] images, or [M, D] images of the pairs
        self.both: Operands = scaled_operands(x, text, cosine=False, epilogue=epilogue)
        self.arguments: dict[str, Any] = {
            **self.both.arguments(),
            **id_arguments(self.both, *ids),
            **{"OF_ROWS": of != "columns", "OF_COLUMNS": of != "rows"},
        }
        (N, M), tile = self.both.shape, self.both.tile
        wide = no_scores(x)
        self.of_row = wide.new_empty((cdiv(M, tile.columns) if of != "columns" else 0, N))
        self.of_column = wide.new_empty((cdiv(N, tile.rows) if of != "rows" else 0, M))

    def run(
        self,
        offset: Tensor,
        first: int = 0,
        weights: Tensor | None = None,  # [parts, R, M]
        weights_of: HingeWeights | None = None,
    ) -> None:
        """Launch the kernel for the rows of a block of weights, or for all rows."""
        (N, M), tile = self.both.shape, self.both.tile
        R, parts, stride, part = N, 0, 0, 0
        if weights is not None:
            (parts, R, _), (part, stride, _) = weights.shape, weights.stride()
        grad, unit = (offset, None) if weights_of is None else (weights_of.grad, weights_of.unit)
        _hinges_kernel[tile.programs(R, M)](
            **self.arguments, offset=offset, grad=grad, grad_stride=grad.stride(0),
            unit=offset if unit is None else unit, HAS_UNIT=unit is not None,
            of_row=self.of_row, of_column=self.of_column,
            weights=offset if weights is None else weights, weights_stride=stride,
            weights_part=part, first=first, N=N, R=R, M=M, WEIGHTS=parts,
            UNIFORM=weights_of is not None and weights_of.uniform,
        )  # fmt: skip


def _passes(
    image: Tensor,
    text: Tensor,
    positive: Tensor | None,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    margin: float,
    epilogue: str,
) -> tuple[list[_Pass], Tensor]:  # margin - s+ [M]
    if positive is None:
        only = _Pass(image, text, (None, None), "both", epilogue)
        return [only], positive_scores(only.both, margin=margin)
    pairs, pair_ids = positive_images(image, image_ids, positive)
    of_pairs = _Pass(pairs, text, (pair_ids, text_ids), "rows", epilogue)
    of_images = _Pass(image, text, (image_ids, text_ids), "columns", epilogue)
    return [of_pairs, of_images], positive_scores(of_pairs.both, positive, margin)


def _totals(passes: list[_Pass], offset: Tensor, loss: bool) -> Tensor:  # [M]
    of_row, of_column, M = passes[0].of_row, passes[-1].of_column, offset.shape[0]
    total = torch.empty_like(offset)
    _totals_kernel[(cdiv(M, 128),)](
        of_row, of_column, offset, total, of_row.shape[0], of_column.shape[0], M,
        LOSS=loss, PAIRS=128, TILES=16,
    )  # fmt: skip
    return total


def sum_of_hinges_forward(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    positive: Tensor | None,  # [M]
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    margin: float,
    keep_scores: bool,  # False
) -> tuple[Tensor, Tensor]:  # [M], [0, 0]
    """Return, for every pair, the sum of hinges over texts plus the sum over images."""
    passes, offset = _passes(image, text, positive, image_ids, text_ids, margin, "weights")
    for one in passes:
        one.run(offset)
    return _totals(passes, offset, loss=True), no_scores(image)


def sum_of_hinges_backward(
    grad: Tensor,  # [M]
    scores: Tensor,  # [0, 0]
    image: Tensor,
    text: Tensor,
    positive: Tensor | None,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    margin: float,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of image and text from the weights of active hinges."""
    # In the wider tile, two parts of unequal weights cause 24 spills on sm_90.
    epilogue = "weights" if is_uniform(grad) else "masks"
    passes, offset = _passes(image, text, positive, image_ids, text_ids, margin, epilogue)
    D = text.shape[1]
    weights_of = hinge_weights(grad, image, passes[-1].both)
    of_x, of_text = [], None
    for one in passes:

        def fill(first: int, weights: Tensor, one: _Pass = one) -> None:
            one.run(offset, first, weights, weights_of)

        found, of_text = blocked_products(
            *row_parts(one.both, D), weights_of.weights_empty, fill,
            rows_per_block(one.x, text, weights_of.width(text.shape[0])), of_text,
        )  # fmt: skip
        of_x.append(found)
    assert of_text is not None
    active = _totals(passes, offset, loss=False)
    x, own = passes[0].x, passes[0].both
    if positive is None:
        return weights_of.pair_gradients(x, text, own, of_x[0], of_text, active, image.dtype)
    of_pairs, grad_text = weights_of.pair_gradients(
        x, text, own, of_x[0], of_text, active, offset.dtype
    )
    of_images = weights_of.row_gradient(of_x[1], passes[1].both)
    return add_rows(of_images, of_pairs, positive, image), grad_text
