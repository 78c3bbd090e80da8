"""Sum of hinges: a tile of scores leaves one sum per row and per column.

With ids several texts may belong to one image: rows are then pairs, and columns are compared with
images in a pass of their own.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import Operands, operands
from itm_kernels.triton._pairs import id_arguments, positive_scores, rows_of_pairs
from itm_kernels.triton._segments import add_rows
from itm_kernels.triton._tiles import hinge, place, same_id, score_tile
from itm_kernels.triton._weights import no_scores, products_of_weights


@triton.jit
def _tiles_kernel(
    x,
    y,
    x_ids,
    y_ids,
    offset,  # [M] margin - s+
    grad,  # [M]
    of_row,  # [column tiles, R] sums of hinges, or how many are active
    of_column,  # [row tiles, M]
    weights,  # [R, M] of rows from `first` on
    x_stride,
    y_stride,
    x_part,
    y_part,
    first,
    R,
    M,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    HAS_IDS: tl.constexpr,
    OF_ROWS: tl.constexpr,
    OF_COLUMNS: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    r, m, row_tile, column_tile = place(tl.program_id(0), ROWS, COLUMNS, R, M)
    rows, columns = first + tl.minimum(r, R - 1), tl.minimum(m, M - 1)
    scores = score_tile(
        x, y, x_stride, y_stride, x_part, y_part, D, rows, columns,
        DEPTH, PARTS, PRECISION, ALIGN, EVEN,
    )  # fmt: skip
    inside = (r < R)[:, None] & (m < M)[None, :]
    off = same_id(rows, columns, x_ids, y_ids, HAS_IDS) | ~inside
    weight = tl.zeros_like(scores)
    if OF_ROWS:
        value = scores + tl.load(offset + rows)[:, None]
        if GRADIENT:  # not of the hinge: that is 2 spills on sm_80
            value = tl.where(off, 0.0, (value > 0).to(scores.dtype))
            weight += value * tl.load(grad + rows)[:, None]
        else:
            value = tl.where(off, 0.0, hinge(value))
        tl.store(of_row + column_tile.to(tl.int64) * R + r, tl.sum(value, 1), mask=r < R)
    if OF_COLUMNS:
        value = scores + tl.load(offset + columns)[None, :]
        if GRADIENT:
            value = tl.where(off, 0.0, (value > 0).to(scores.dtype))
            weight += value * tl.load(grad + columns)[None, :]
        else:
            value = tl.where(off, 0.0, hinge(value))
        tl.store(of_column + row_tile.to(tl.int64) * M + m, tl.sum(value, 0), mask=m < M)
    if GRADIENT:
        tl.store(weights + r[:, None].to(tl.int64) * M + m[None, :], weight, mask=inside)


class _Pass:
    """Rows of x against the texts: pairs, images, or both where these are the same."""

    def __init__(
        self, x: Tensor, text: Tensor, ids: tuple[Tensor | None, Tensor | None], of: str
    ) -> None:
        self.x = x  # [N, D] images, or [M, D] images of the pairs
        self.both: Operands = operands(x, text, epilogue="weights")
        self.arguments: dict[str, Any] = {
            **self.both.arguments(),
            **id_arguments(self.both, *ids),
            **{"OF_ROWS": of != "columns", "OF_COLUMNS": of != "rows"},
        }

    def run(
        self, offset: Tensor, grad: Tensor | None, weights: Tensor | None, first: int, R: int
    ) -> tuple[Tensor, Tensor]:
        """Run over R rows; return the sums of every row `[R]` and column `[M]`."""
        M, tile = self.both.shape[1], self.both.tile
        of_row = offset.new_empty((triton.cdiv(M, tile.columns), R))
        of_column = offset.new_empty((triton.cdiv(R, tile.rows), M))
        _tiles_kernel[tile.programs(R, M)](
            **self.arguments, offset=offset, grad=offset if grad is None else grad,
            of_row=of_row, of_column=of_column, weights=offset if weights is None else weights,
            first=first, R=R, M=M, GRADIENT=weights is not None,
        )  # fmt: skip
        return of_row.sum(0), of_column.sum(0)


def _passes(
    image: Tensor,
    text: Tensor,
    positive: Tensor | None,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    margin: float,
) -> tuple[list[_Pass], Tensor]:  # margin - s+ [M]
    if positive is None:
        only = _Pass(image, text, (None, None), "both")
        return [only], margin - positive_scores(only.both)
    pairs, pair_ids = rows_of_pairs(image, image_ids, positive)
    of_pairs = _Pass(pairs, text, (pair_ids, text_ids), "rows")
    of_images = _Pass(image, text, (image_ids, text_ids), "columns")
    # A text without exactly one image is a mistake that shows as NaN.
    own = positive_scores(of_pairs.both).masked_fill_(positive < 0, torch.nan)
    return [of_pairs, of_images], margin - own


def sum_of_hinges_forward(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    positive: Tensor | None,  # [M]
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    margin: float,
    keep_scores: bool,  # False
) -> tuple[Tensor, Tensor]:  # [M], [0, 0]
    """Return every pair's sum of hinges over texts plus its sum over images."""
    passes, offset = _passes(image, text, positive, image_ids, text_ids, margin)
    loss = 0 * offset  # NaN where the positive score is not finite
    for one in passes:
        rows, columns = one.run(offset, None, None, 0, one.x.shape[0])
        loss += rows if one.arguments["OF_ROWS"] else 0
        loss += columns if one.arguments["OF_COLUMNS"] else 0
    return loss, no_scores(image)


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
    """Return the gradients of image and text: weights are shares of the active hinges."""
    passes, offset = _passes(image, text, positive, image_ids, text_ids, margin)
    grad = grad.to(offset.dtype).contiguous()
    active = torch.zeros_like(offset)  # hinges of every pair
    of_x, grad_text = [], torch.zeros(text.shape, dtype=offset.dtype, device=text.device)
    for one in passes:

        def fill(first: int, weights: Tensor, one: _Pass = one) -> None:
            rows, columns = one.run(offset, grad, weights, first, weights.shape[0])
            if one.arguments["OF_ROWS"]:
                active[first : first + weights.shape[0]] += rows
            if one.arguments["OF_COLUMNS"]:
                active.add_(columns)

        to_x, to_text = products_of_weights(one.x, text, fill)
        of_x.append(to_x)
        grad_text += to_text
    # Every active hinge also pulls on its pair's own score.
    pull = (active * grad)[:, None]
    grad_text -= pull * passes[0].x
    of_x[0] -= pull * text
    if positive is None:
        return of_x[0].to(image.dtype), grad_text.to(text.dtype)
    return add_rows(of_x[1], of_x[0], positive, image), grad_text.to(text.dtype)
