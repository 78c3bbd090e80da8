"""Sigmoid loss of given scores: a tile is read once and leaves one sum per text.

The backward pass reads each score once and writes its gradient once.
"""

import torch
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._given_scores import (
    SIDE,
    GivenScores,
    given_scores,
    load_scores,
    store_gradient,
)
from itm_kernels.triton._launch import jit
from itm_kernels.triton._logistic import (
    exp_in_base,
    logistic,
    logits,
    negate_positives,
    softplus_sums,
)
from itm_kernels.triton._score_tiles import program_tile, same_id


@jit
def _sigmoid_kernel(
    scores,  # [N, M]
    row_stride,
    column_stride,
    N,
    M,
    scale,  # []
    bias,  # []
    positive,  # [M]
    x_ids,  # [N]
    y_ids,  # [M]
    grad,  # [M]
    sums,  # [row tiles, M] of losses, or [2, programs] of the gradients of scale and bias
    grad_scores,  # [N, M]
    HAS_IDS: tl.constexpr,
    GRADIENT: tl.constexpr,
    SIDE: tl.constexpr,
):
    n, m, row_tile, _ = program_tile(tl.program_id(0), SIDE, SIDE, N, M)
    rows, columns = tl.minimum(n, N - 1), tl.minimum(m, M - 1)
    found = load_scores(scores, row_stride, column_stride, rows, columns)
    if HAS_IDS:  # excluded scores may be infinite
        own = rows[:, None] == tl.load(positive + columns)[None, :]
        off = same_id(rows, columns, x_ids, y_ids, True) & (own == 0)
        found = tl.where(off, 0.0, found)
    of_row = tl.zeros((SIDE,), found.dtype) + tl.load(scale).to(found.dtype)
    z, found, own = logits(
        found, n, m, N, M, rows, columns, of_row, bias, positive, x_ids, y_ids, True, HAS_IDS
    )
    small = exp_in_base(-tl.abs(z))
    if GRADIENT:
        weight = logistic(z, small) * tl.load(grad + columns)[None, :]
        weight = negate_positives(weight, own, rows, columns, True, HAS_IDS)
        store_gradient(grad_scores, of_row[:, None] * weight, n, m, N, M)
        found = tl.where(found == float("-inf"), 0.0, found)  # has a weight of 0
        at = sums + tl.program_id(0)
        tl.store(at, tl.sum(tl.sum(weight * found, 1)))
        tl.store(at + tl.num_programs(0), tl.sum(tl.sum(weight, 1)))
    else:
        loss = softplus_sums(z, small, 0)
        tl.store(sums + row_tile.to(tl.int64) * M + m, loss, mask=m < M)


def _launch(
    given: GivenScores,
    scalars: tuple[Tensor, Tensor],
    pairs: tuple[Tensor | None, ...],
    grad: Tensor | None,
    sums: Tensor,
    grad_scores: Tensor,
) -> None:
    ids = [given.scores if t is None else t.contiguous() for t in pairs]
    _sigmoid_kernel[given.grid](
        *given, *scalars, *ids, sums if grad is None else grad.contiguous(), sums, grad_scores,
        HAS_IDS=pairs[0] is not None, GRADIENT=grad is not None, SIDE=SIDE,
        num_warps=8,  # 4 warps spill on sm_90
    )  # fmt: skip


def sigmoid_from_scores_forward(
    scores: Tensor,  # [N, M]
    scale: Tensor,  # []
    bias: Tensor,  # []
    *pairs: Tensor | None,  # positive [M], image_ids [N], text_ids [M]
) -> Tensor:  # [M]
    """Return every text's sum of -log sigmoid over the images."""
    given = given_scores(scores)
    sums = given.empty(given.tiles[0], given.M)
    _launch(given, (scale, bias), pairs, None, sums, sums)
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
    grad_scores = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    sums = given.empty(2, *given.grid)
    _launch(given, (scale, bias), pairs, grad, sums, grad_scores)
    of_scale, of_bias = sums.sum(1, dtype=torch.float64)
    return grad_scores, of_scale.to(scale.dtype), of_bias.to(bias.dtype)
