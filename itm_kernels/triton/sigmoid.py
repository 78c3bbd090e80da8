"""Sigmoid loss: a tile of logits leaves one sum per text.

A positive's logit changes sign, so that its loss is the same log(1 + e^logit) as a negative's.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import Operands, operands, wide_dtype
from itm_kernels.triton._pairs import id_arguments
from itm_kernels.triton._tiles import log_of_one_plus, place, same_id, score_tile
from itm_kernels.triton._weights import no_scores, products_of_weights


@triton.jit
def _sides(scores, scale, bias, rows, columns, x_ids, y_ids, positive, inside, HAS_IDS):
    """Return logits with the positives' sign turned, which are positive, and which take part."""
    own = rows[:, None] == columns[None, :]
    on = inside
    if HAS_IDS:
        own = rows[:, None] == tl.load(positive + columns)[None, :]
        on = inside & (own | ~same_id(rows, columns, x_ids, y_ids, HAS_IDS))
    logits = tl.load(scale) * scores + tl.load(bias)
    # + 0 s: an infinite positive score shows as NaN.
    return tl.where(own, 0 * logits - logits, logits), own, on


@triton.jit
def _softplus(z):
    """Return log(1 + e^z), exact where e^z is far below the last digit of 1."""
    return tl.where(z > 0, z, 0.0) + log_of_one_plus(tl.exp(-tl.abs(z)))


@triton.jit
def _forward_kernel(
    x,
    y,
    scale,  # []
    bias,  # []
    positive,  # [M]
    x_ids,
    y_ids,
    sums,  # [row tiles, M]
    x_stride,
    y_stride,
    x_part,
    y_part,
    N,
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
):
    n, m, row_tile, _ = place(tl.program_id(0), ROWS, COLUMNS, N, M)
    rows, columns = tl.minimum(n, N - 1), tl.minimum(m, M - 1)
    scores = score_tile(
        x, y, x_stride, y_stride, x_part, y_part, D, rows, columns,
        DEPTH, PARTS, PRECISION, ALIGN, EVEN,
    )  # fmt: skip
    inside = (n < N)[:, None] & (m < M)[None, :]
    z, _, on = _sides(scores, scale, bias, rows, columns, x_ids, y_ids, positive, inside, HAS_IDS)
    loss = tl.sum(tl.where(on, _softplus(z), 0.0), 0)
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
) -> tuple[Tensor, Tensor]:  # [M], [0, 0]
    """Return every text's sum of -log sigmoid over the images."""
    both = operands(image, text, narrow=True)
    N, M = both.shape
    shape = triton.cdiv(N, both.tile.rows), M
    sums = torch.empty(shape, dtype=wide_dtype(text), device=text.device)
    _forward_kernel[both.tile.programs(N, M)](
        **_arguments(both, scale, bias, positive, image_ids, text_ids), sums=sums, N=N, M=M
    )
    loss = sums.sum(0)
    # A text without exactly one image has no positive whose loss could show the mistake.
    if positive is not None:
        loss.masked_fill_(positive < 0, torch.nan)
    return loss, no_scores(image)


def _arguments(
    both: Operands,
    scale: Tensor,
    bias: Tensor,
    positive: Tensor | None,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
) -> dict[str, object]:
    stand_in = both.x if positive is None else positive.contiguous()
    ids = id_arguments(both, image_ids, text_ids)
    return {**both.arguments(), **ids, "scale": scale, "bias": bias, "positive": stand_in}


@triton.jit
def _weights_kernel(
    x,
    y,
    scale,
    bias,
    positive,
    x_ids,
    y_ids,
    grad,  # [M]
    weights,  # [R, M] of rows from `first` on
    slopes,  # [2, programs] of scale and bias
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
):
    r, m, _, _ = place(tl.program_id(0), ROWS, COLUMNS, R, M)
    rows, columns = first + tl.minimum(r, R - 1), tl.minimum(m, M - 1)
    scores = score_tile(
        x, y, x_stride, y_stride, x_part, y_part, D, rows, columns,
        DEPTH, PARTS, PRECISION, ALIGN, EVEN,
    )  # fmt: skip
    inside = (r < R)[:, None] & (m < M)[None, :]
    z, own, on = _sides(scores, scale, bias, rows, columns, x_ids, y_ids, positive, inside, HAS_IDS)
    small = tl.exp(-tl.abs(z))
    share = tl.where(z < 0, small, 1.0) / (1 + small)
    share = tl.load(grad + columns)[None, :] * tl.where(own, -share, share)
    weight = tl.where(on, share, 0.0)
    at = weights + r[:, None].to(tl.int64) * M + m[None, :]
    tl.store(at, tl.load(scale) * weight, mask=inside)
    program = tl.program_id(0)
    tl.store(slopes + program, tl.sum(tl.where(on, weight * scores, 0.0)))
    tl.store(slopes + tl.num_programs(0) + program, tl.sum(weight))


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of image, text, scale and bias."""
    both = operands(image, text, narrow=True)
    arguments = _arguments(both, scale, bias, positive, image_ids, text_ids)
    arguments["grad"] = grad.contiguous()
    slopes = []

    def fill(first: int, weights: Tensor) -> None:
        R, M = weights.shape
        grid = both.tile.programs(R, M)
        slopes.append(torch.empty((2, *grid), dtype=wide_dtype(image), device=image.device))
        _weights_kernel[grid](
            **arguments, weights=weights, slopes=slopes[-1], first=first, R=R, M=M
        )

    grad_image, grad_text = products_of_weights(image, text, fill)
    of_scale, of_bias = torch.cat(slopes, 1).sum(1, dtype=torch.float64).unbind()
    return (
        grad_image.to(image.dtype),
        grad_text.to(text.dtype),
        of_scale.to(scale.dtype, copy=True),
        of_bias.to(bias.dtype, copy=True),
    )
