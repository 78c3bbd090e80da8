"""Sigmoid loss of given scores: a tile is read once and added to sums of its texts.

A program visits tiles along a stripe of columns. The backward pass reads each score once and writes
its gradient once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._given_scores import (
    LANES,
    GivenScores,
    Stripes,
    all_outside,
    exp_in_base,
    given_scores,
    stripes_of,
    tile_columns,
    tile_of,
)
from itm_kernels.triton._launch import jit
from itm_kernels.triton._logistic import (
    _in_base,
    _log_of_one_plus,
    _to_natural,
    logistic,
)

_ROWS = 2  # of a tile; 4 spill in fp32


@triton.jit
def _owners(positive, columns, HAS_IDS: tl.constexpr):
    """Return the row of every text's image."""
    return tl.load(positive + columns).to(tl.int32) if HAS_IDS else columns


@jit(do_not_specialize=["N", "M", "splits", "tiles"])
def _sigmoid_kernel(
    scores,  # [N, M]
    row_stride,
    column_stride,
    N,
    M,
    out_stride,  # M, between rows of the gradient
    scale,  # []
    bias,  # []
    positive,  # [M]
    x_ids,  # [N]
    y_ids,  # [M]
    grad,  # [M]
    sums,  # [splits, M] of losses, or [2, programs] of the gradients of scale and bias
    grad_scores,  # [N, M]
    splits,
    tiles,
    HAS_IDS: tl.constexpr,
    GRADIENT: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    stripe, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    m = tile_columns(stripe, LANES, VECTOR)
    columns = tl.minimum(m, M - 1)
    DTYPE: tl.constexpr = tl.float64 if scores.dtype.element_ty == tl.float64 else tl.float32
    factor = tl.load(scale).to(DTYPE)
    offset = tl.full((LANES, VECTOR), 0.0, DTYPE) + _in_base(tl.load(bias).to(DTYPE))
    lowest, highest = 0, 0
    if HAS_IDS:
        # A text without exactly one image is a user error: its logits become NaN.
        offset = tl.where(tl.load(positive + columns) < 0, float("nan"), offset)
        ids = tl.load(y_ids + columns)
        lowest, highest = tl.min(tl.min(ids, 1), 0), tl.max(tl.max(ids, 1), 0)
    if GRADIENT:
        of_loss = tl.load(grad + columns, mask=m < M, other=0.0).to(DTYPE)
    first = tl.zeros((LANES, VECTOR), DTYPE)
    second = tl.zeros((LANES, VECTOR), DTYPE)
    width: tl.constexpr = LANES * VECTOR
    whole = stripe * width + width <= M
    last = tl.minimum(split * tiles + tiles, tl.cdiv(N, ROWS))
    for tile in range(split * tiles, last):
        n = tile * ROWS + tl.arange(0, ROWS)
        rows = tl.minimum(n, N - 1)
        at = tile_of(scores, row_stride, column_stride, rows, m)
        complete = whole & (tile * ROWS + ROWS <= N)
        if complete:
            found = tl.load(at).to(DTYPE)
        else:
            found = tl.load(at, mask=(m < M)[:, None, :], other=0.0).to(DTYPE)
        z = found * _in_base(factor) + offset[:, None, :]
        if HAS_IDS:
            special = all_outside(tl.load(x_ids + rows), lowest, highest) == 0
        else:
            special = all_outside(rows, stripe * width, stripe * width + width - 1) == 0
        if special:
            own = rows[None, :, None] == _owners(positive, columns, HAS_IDS)[:, None, :]
            if HAS_IDS:
                # Loaded again: kept, 64-bit ids would fill the registers.
                text_ids = tl.load(y_ids + columns)
                off = tl.load(x_ids + rows)[None, :, None] == text_ids[:, None, :]
                off = tl.where(own, 0, off.to(tl.int32)) > 0
                found = tl.where(off, 0.0, found)  # it may be infinite
                z = tl.where(off, float("-inf"), z)
            of_own = tl.where(own, z, 0.0)
            z = tl.where(own, 0 * of_own - of_own, z)  # infinite ones become NaN
        if complete == 0:
            z = tl.where((n < N)[None, :, None], z, float("-inf"))
            z = tl.where((m < M)[:, None, :], z, float("-inf"))
        small = exp_in_base(-tl.abs(z))
        if GRADIENT:
            weight = logistic(z, small) * of_loss[:, None, :]
            if special:
                own = rows[None, :, None] == _owners(positive, columns, HAS_IDS)[:, None, :]
                weight = tl.where(own, 0 * weight - weight, weight)
            to = tile_of(grad_scores, out_stride, 1, n, m)
            values = (factor * weight).to(grad_scores.dtype.element_ty)
            if complete:
                tl.store(to, values)
            else:
                tl.store(to, values, mask=(n < N)[None, :, None] & (m < M)[:, None, :])
            second += tl.sum(weight, 1)
            # -inf has a weight of 0
            first += tl.sum(weight * tl.where(found == float("-inf"), 0.0, found), 1)
        else:
            first += tl.sum(_log_of_one_plus(small), 1)
            second += tl.sum(tl.where(z > 0, z, 0.0), 1)
    if GRADIENT:
        at = sums + tl.program_id(0)
        tl.store(at, tl.sum(tl.sum(first, 1), 0))
        tl.store(at + tl.num_programs(0), tl.sum(tl.sum(second, 1), 0))
    else:
        at = sums + split.to(tl.int64) * M + m
        tl.store(at, first + _to_natural(second), mask=m < M)


def _launch(
    given: GivenScores,
    cut: Stripes,
    scalars: tuple[Tensor, Tensor],
    pairs: tuple[Tensor | None, ...],
    grad: Tensor | None,
    sums: Tensor,
    grad_scores: Tensor,
) -> None:
    ids = [given.scores if t is None else t.contiguous() for t in pairs]
    _sigmoid_kernel[cut.grid](
        *given, given.M, *scalars, *ids, sums if grad is None else grad.contiguous(), sums,
        grad_scores, cut.splits, cut.tiles, HAS_IDS=pairs[0] is not None,
        GRADIENT=grad is not None, ROWS=cut.rows, LANES=LANES, VECTOR=cut.vector,
    )  # fmt: skip


def _columns(given: GivenScores) -> Stripes:
    vector = 16 // given.scores.element_size()
    return stripes_of(given, _ROWS, vector, of_rows=False)


def sigmoid_from_scores_forward(
    scores: Tensor,  # [N, M]
    scale: Tensor,  # []
    bias: Tensor,  # []
    *pairs: Tensor | None,  # positive [M], image_ids [N], text_ids [M]
) -> Tensor:  # [M]
    """Return every text's sum of -log sigmoid over the images."""
    given = given_scores(scores)
    cut = _columns(given)
    sums = given.empty(cut.splits, given.M)
    _launch(given, cut, (scale, bias), pairs, None, sums, sums)
    return sums.sum(0, dtype=torch.float64).to(sums.dtype)


def sigmoid_from_scores_backward(
    grad: Tensor,  # [M]
    scores: Tensor,  # [N, M]
    scale: Tensor,
    bias: Tensor,
    *pairs: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of scores, scale and bias."""
    given = given_scores(scores)
    cut = _columns(given)
    grad_scores = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    sums = given.empty(2, *cut.grid)
    _launch(given, cut, (scale, bias), pairs, grad, sums, grad_scores)
    of_scale, of_bias = sums.sum(1, dtype=torch.float64)
    return grad_scores, of_scale.to(scale.dtype), of_bias.to(bias.dtype)
