"""The hardest negative of every anchor as a score: the tiles' winners, multiplied again."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._hardest import Best, best_of_tiles, hardest
from itm_kernels.triton._launch import rows_of, wide_dtype
from itm_kernels.triton._segments import send
from itm_kernels.triton._tiles import paired_scores


@triton.jit
def _winners_kernel(
    anchor_rows,  # [A, D]
    other_rows,
    key,  # [tiles, A]
    index,
    score,  # [A]
    winner,  # [A]
    anchor_stride,
    other_stride,
    A,
    D,
    tiles,
    ANCHORS: tl.constexpr,
    DEPTH: tl.constexpr,
    TILES: tl.constexpr,
):
    a = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS)
    at = tl.minimum(a, A - 1)
    found = best_of_tiles(key, index, tiles, A, at, TILES)
    scores = paired_scores(
        anchor_rows, other_rows, anchor_stride, other_stride, D, at, tl.maximum(found, 0), DEPTH
    )
    tl.store(score + a, tl.where(found >= 0, scores, float("-inf")), mask=a < A)
    tl.store(winner + a, found.to(tl.int64), mask=a < A)


@triton.jit
def _positives_kernel(
    image,
    text,
    positive,
    score,  # [M]
    image_stride,
    text_stride,
    M,
    D,
    PAIRS: tl.constexpr,
    DEPTH: tl.constexpr,
    HAS_POSITIVE: tl.constexpr,
):
    m = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    j = tl.minimum(m, M - 1)
    i = j.to(tl.int64)
    if HAS_POSITIVE:
        i = tl.load(positive + j)
    scores = paired_scores(image, text, image_stride, text_stride, D, tl.maximum(i, 0), j, DEPTH)
    tl.store(score + m, tl.where(i >= 0, scores, float("nan")), mask=m < M)


def _winners(anchor_rows: Tensor, other_rows: Tensor, best: Best) -> tuple[Tensor, Tensor]:
    A, D = anchor_rows.shape
    score = torch.empty(A, dtype=wide_dtype(anchor_rows), device=anchor_rows.device)
    winner = torch.empty(A, dtype=torch.int64, device=anchor_rows.device)
    _winners_kernel[(triton.cdiv(A, 16),)](
        anchor_rows, other_rows, best.key, best.winner, score, winner,
        anchor_rows.stride(0), other_rows.stride(0), A, D, best.key.shape[0],
        ANCHORS=16, DEPTH=128, TILES=16,
    )  # fmt: skip
    return score, winner


def hardest_negatives_forward(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    positive: Tensor | None,  # [M]
    image_ids: Tensor | None,
    text_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return s+ `[M]`, the hardest text per image `[N]` and the hardest image per text `[M]`."""
    best_text, best_image = hardest(image, text, positive, image_ids, text_ids, semihard=False)
    image, text = rows_of(image), rows_of(text)
    M, D = text.shape
    score = torch.empty(M, dtype=wide_dtype(text), device=text.device)
    _positives_kernel[(triton.cdiv(M, 16),)](
        image, text, image if positive is None else positive.contiguous(), score,
        image.stride(0), text.stride(0), M, D,
        PAIRS=16, DEPTH=128, HAS_POSITIVE=positive is not None,
    )  # fmt: skip
    return score, *_winners(image, text, best_text), *_winners(text, image, best_image)


def hardest_negatives_backward(
    grad_positive: Tensor,  # [M]
    grad_text: Tensor,  # [N]
    grad_image: Tensor,  # [M]
    image: Tensor,
    text: Tensor,
    positive: Tensor | None,
    text_index: Tensor,  # [N]
    image_index: Tensor,  # [M]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of image and text from the saved indices."""
    i = torch.arange(image.shape[0], device=image.device)
    j = torch.arange(text.shape[0], device=text.device)
    weights = torch.cat([grad_positive, grad_text, grad_image]).to(wide_dtype(image))
    rows = torch.cat([j if positive is None else positive, i, image_index])
    return send(rows, torch.cat([j, text_index, j]), weights, image, text)
