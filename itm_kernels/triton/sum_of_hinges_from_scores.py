"""Sum of hinges of given scores: a tile is read once and reduced both ways.

The gradient of a pair's own score needs the number of its active hinges. The backward pass counts
them with the kernel of the forward pass, and then writes the gradient.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._given_scores import (
    LANES,
    GivenScores,
    all_outside,
    given_scores,
    ids_at,
    pairs_by_image,
    positives,
    stripes_of,
    tile_columns,
    tile_of,
)
from itm_kernels.triton._launch import cdiv, jit

_TILE = (8, 4)  # rows and adjacent columns of a thread; 16 rows spill on sm_80
_ELEMENTS = 32  # of a thread in the backward pass


@triton.jit
def _active(scores, offsets, COUNT: tl.constexpr):
    """Return the hinges of scores plus offsets, or 1 for each that is positive."""
    value = scores + offsets
    if COUNT:
        return tl.where(value > 0, 1.0, 0.0).to(value.dtype)
    return tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)


@jit(do_not_specialize=["N", "M", "R", "splits", "tiles"])
def _sums_kernel(
    scores,  # [N, M]
    row_stride,
    column_stride,
    N,
    M,
    R,  # rows: of the matrix, or of the image of every pair
    positive,  # [M]
    x_ids,  # [N]
    y_ids,  # [M]
    offset,  # [M] margin - score of the pair
    row,  # [splits, R]
    column,  # [stripes, width]
    width,
    splits,
    tiles,
    HAS_IDS: tl.constexpr,
    OF_ROWS: tl.constexpr,
    OF_COLUMNS: tl.constexpr,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    stripe, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    n = stripe * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(n, R - 1)
    DTYPE: tl.constexpr = row.dtype.element_ty
    if OF_ROWS:
        row_offset = tl.load(offset + rows)
        if HAS_IDS:
            rows = tl.maximum(tl.load(positive + rows), 0).to(tl.int32)
    row_ids = ids_at(x_ids, rows, HAS_IDS)
    lowest, highest = tl.min(row_ids, 0), tl.max(row_ids, 0)
    whole = stripe * ROWS + ROWS <= R
    total = tl.zeros((LANES, ROWS), DTYPE)
    last = tl.minimum(split * tiles + tiles, tl.cdiv(M, LANES * VECTOR))
    for tile in range(split * tiles, last):
        m = tile_columns(tile, LANES, VECTOR)
        columns = tl.minimum(m, M - 1)
        at = tile_of(scores, row_stride, column_stride, rows, m)
        if whole & (tile * (LANES * VECTOR) + LANES * VECTOR <= M):
            found = tl.load(at).to(DTYPE)
        else:
            found = tl.load(at, mask=(m < M)[:, None, :], other=0.0).to(DTYPE)
            found = tl.where((n < R)[None, :, None], found, float("-inf"))
            found = tl.where((m < M)[:, None, :], found, float("-inf"))
        if all_outside(ids_at(y_ids, columns, HAS_IDS), lowest, highest) == 0:
            of_rows = ids_at(x_ids, rows, HAS_IDS)
            off = of_rows[None, :, None] == ids_at(y_ids, columns, HAS_IDS)[:, None, :]
            found = tl.where(off, float("-inf"), found)
        if OF_COLUMNS:
            active = _active(found, tl.load(offset + columns)[:, None, :], COUNT)
            tl.store(column + stripe.to(tl.int64) * width + m, tl.sum(active, 1))
        if OF_ROWS:
            total += tl.sum(_active(found, row_offset[None, :, None], COUNT), 2)
    if OF_ROWS:
        tl.store(row + split.to(tl.int64) * R + n, tl.sum(total, 0), mask=n < R)


@triton.jit
def _total(parts, count, width, m, M, PARTS: tl.constexpr):
    """Return the sums of `[count, width]`; the number of parts grows with the batch."""
    total = tl.zeros((PARTS, m.shape[0]), tl.float64)
    for first in range(0, count, PARTS):
        part = first + tl.arange(0, PARTS)[:, None].to(tl.int64)
        mask = (part < count) & (m < M)[None, :]
        total += tl.load(parts + part * width + m[None, :], mask=mask, other=0.0).to(tl.float64)
    return tl.sum(total, 0)


@jit(do_not_specialize=["M", "splits", "stripes"])
def _join_kernel(
    row,  # [splits, M]
    column,  # [stripes, width]
    offset,  # [M]
    positive,  # [M]
    grad,  # [M]
    loss,  # [M]
    found,  # [M] losses, or the gradients of the pairs' own scores
    M,
    width,
    splits,
    stripes,
    HAS_POSITIVE: tl.constexpr,
    GRADIENT: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
):
    m = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = _total(row, splits, M, m, M, PARTS) + _total(column, stripes, width, m, M, PARTS)
    DTYPE: tl.constexpr = found.dtype.element_ty
    if GRADIENT:
        own = (-tl.load(grad + m, mask=m < M, other=0.0).to(tl.float64) * total).to(DTYPE)
        value = tl.load(loss + m, mask=m < M, other=0.0)
        own = tl.where(value == value, own, float("nan"))
        tl.store(found + m, own, mask=m < M)
    else:
        # An infinite positive is NaN.
        tl.store(found + m, total.to(DTYPE) + 0 * tl.load(offset + m, mask=m < M), mask=m < M)


def _reduce(
    given: GivenScores,
    pairs: tuple[Tensor | None, ...],
    offset: Tensor,
    gradient: tuple[Tensor, Tensor] | None,  # of the loss, and the loss
) -> Tensor:  # [M]
    """Return the losses, or with a gradient those of the pairs' own scores."""
    positive, *ids = (given.scores if t is None else t.contiguous() for t in pairs)
    has_ids, M = pairs[0] is not None, given.M
    cuts, parts = [], []
    # An image has any number of pairs: rows are then read once per pair, and columns separately.
    for of_rows, of_columns in ((True, False), (False, True)) if has_ids else ((True, True),):
        R = M if of_rows else given.N
        cut = stripes_of(given._replace(N=R), *_TILE)
        row = given.empty(cut.splits, R if of_rows else 0)
        column = given.empty(cut.stripes, cut.width(M) if of_columns else 0)
        _sums_kernel[cut.grid](
            *given, R, positive, *ids, offset, row, column, column.shape[1], cut.splits, cut.tiles,
            HAS_IDS=has_ids, OF_ROWS=of_rows, OF_COLUMNS=of_columns, COUNT=gradient is not None,
            ROWS=cut.rows, LANES=LANES, VECTOR=cut.vector,
        )  # fmt: skip
        cuts.append(cut)
        parts.append((row, column))
    row, column = parts[0][0], parts[-1][1]
    found = torch.empty_like(offset)
    grad, loss = gradient or (offset, offset)
    _join_kernel[(cdiv(M, 32),)](
        row, column, offset, positive, grad, loss, found, M, column.shape[1], cuts[0].splits,
        cuts[-1].stripes, HAS_POSITIVE=has_ids, GRADIENT=gradient is not None, COLUMNS=32,
        PARTS=64,
    )  # fmt: skip
    return found


def sum_of_hinges_from_scores_forward(
    scores: Tensor,  # [N, M]
    positive: Tensor | None,  # [M]
    image_ids: Tensor | None,  # [N]
    text_ids: Tensor | None,  # [M]
    margin: float,
) -> Tensor:  # [M]
    """Return the sums of the hinges of every pair against all texts and all images."""
    given = given_scores(scores)
    offset = positives(given, positive, margin)
    return _reduce(given, (positive, image_ids, text_ids), offset, None)


@jit(do_not_specialize=["N", "M", "splits", "tiles"])
def _gradient_kernel(
    scores,  # [N, M]
    row_stride,
    column_stride,
    N,
    M,
    out_stride,  # M, between rows of the gradient
    positive,  # [M]
    x_ids,  # [N]
    y_ids,  # [M]
    order,  # [M] pairs sorted by image
    starts,  # [N + 1]
    offset,  # [M]
    grad,  # [M]
    of_positive,  # [M]
    grad_scores,  # [N, M]
    splits,
    tiles,
    HAS_IDS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    stripe, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    n = stripe * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(n, N - 1)
    DTYPE: tl.constexpr = offset.dtype.element_ty
    first, count, most = rows, rows * 0 + 1, 1
    if HAS_IDS:
        first = tl.load(starts + rows).to(tl.int32)
        count = tl.load(starts + rows + 1).to(tl.int32) - first
        most = tl.max(count, 0)
    row_ids = ids_at(x_ids, rows, HAS_IDS)
    lowest, highest = tl.min(row_ids, 0), tl.max(row_ids, 0)
    last = tl.minimum(split * tiles + tiles, tl.cdiv(M, LANES * VECTOR))
    for tile in range(split * tiles, last):
        m = tile_columns(tile, LANES, VECTOR)
        columns = tl.minimum(m, M - 1)
        at = tile_of(scores, row_stride, column_stride, rows, m)
        complete = tile * (LANES * VECTOR) + LANES * VECTOR <= M
        if complete:
            found = tl.load(at).to(DTYPE)
        else:
            found = tl.load(at, mask=(m < M)[:, None, :], other=0.0).to(DTYPE)
        active = found + tl.load(offset + columns)[:, None, :] > 0
        weight = tl.where(active, tl.load(grad + columns)[:, None, :], 0.0).to(DTYPE)
        for k in range(0, most):
            pair, there = first + k, k < count
            if HAS_IDS:
                pair = tl.load(order + pair, mask=there, other=0).to(tl.int32)
            of_row = tl.load(offset + pair, mask=there, other=float("-inf"))
            of_loss = tl.load(grad + pair, mask=there, other=0.0).to(DTYPE)
            active = found + of_row[None, :, None] > 0
            weight += tl.where(active, of_loss[None, :, None], 0.0)
        if all_outside(ids_at(y_ids, columns, HAS_IDS), lowest, highest) == 0:
            of_rows = ids_at(x_ids, rows, HAS_IDS)
            off = of_rows[None, :, None] == ids_at(y_ids, columns, HAS_IDS)[:, None, :]
            own = rows[None, :, None] == ids_at(positive, columns, HAS_IDS)[:, None, :]
            of_own = tl.load(of_positive + columns)[:, None, :]
            weight = tl.where(off, tl.where(own, of_own, 0.0), weight)
        # A row beyond the last repeats it, and writes the same values.
        to = tile_of(grad_scores, out_stride, 1, rows, m)
        values = weight.to(grad_scores.dtype.element_ty)
        if complete:
            tl.store(to, values)
        else:
            tl.store(to, values, mask=(m < M)[:, None, :])


def sum_of_hinges_from_scores_backward(
    grad: Tensor,  # [M]
    loss: Tensor,  # [M], which says the pairs whose gradient is NaN
    scores: Tensor,  # [N, M]
    positive: Tensor | None,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    margin: float,
) -> Tensor:  # [N, M]
    """Return the gradient of the scores: the active hinges, weighted."""
    given, pairs = given_scores(scores), (positive, image_ids, text_ids)
    offset = positives(given, positive, margin)
    grad = grad.contiguous()
    of_positive = _reduce(given, pairs, offset, (grad, loss.contiguous()))
    order, starts = (offset, offset) if positive is None else pairs_by_image(positive, given.N)
    vector = 16 // scores.element_size()
    cut = stripes_of(given, _ELEMENTS // vector, vector)
    grad_scores = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    _gradient_kernel[cut.grid](
        *given, given.M, *(offset if t is None else t.contiguous() for t in pairs), order, starts,
        offset, grad, of_positive, grad_scores, cut.splits, cut.tiles,
        HAS_IDS=positive is not None, ROWS=cut.rows, LANES=LANES, VECTOR=cut.vector,
    )  # fmt: skip
    return grad_scores
