"""Positive pairs: their ids, images and scores, for kernels that score every pair."""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._operands import Operands, wide_dtype
from itm_kernels.triton._score_tiles import float_argument, scale_scores, score_tile


def id_arguments(both: Operands, x_ids: Tensor | None, y_ids: Tensor | None) -> dict[str, Any]:
    """Return ids as a kernel's arguments; without ids, placeholders that are not read."""
    if x_ids is None or y_ids is None:
        return {"x_ids": both.x, "y_ids": both.x, "HAS_IDS": False}
    return {"x_ids": x_ids.contiguous(), "y_ids": y_ids.contiguous(), "HAS_IDS": True}


def positive_images(
    image: Tensor,  # [N, D]
    image_ids: Tensor | None,  # [N]
    positive: Tensor | None,  # [M]
) -> tuple[Tensor, Tensor | None]:  # [M, D], [M]
    """Return the image row of every pair, and its id. The copy is read M / 128 times."""
    if positive is None or image_ids is None:
        return image, None
    rows = positive.clamp_min(0)
    return image.index_select(0, rows), image_ids.index_select(0, rows)


@jit
def _positives_kernel(
    operands,  # `ScoreOperands`
    positive,  # [M]
    score,  # [M]
    M,
    margin: tl.float64,
    HAS_POSITIVE: tl.constexpr,
    OFFSET: tl.constexpr,
):
    COLUMNS: tl.constexpr = operands.COLUMNS
    m = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    rows = tl.minimum(m, M - 1)
    scores = score_tile(operands, rows, rows)
    scores = scale_scores(operands, scores, rows, rows)
    own = tl.arange(0, COLUMNS)
    found = tl.sum(tl.where(own[:, None] == own[None, :], scores, 0.0), 0)
    if HAS_POSITIVE:
        # A text without exactly one image is a user error and results in NaN.
        found = tl.where(tl.load(positive + rows) < 0, float("nan"), found)
    if OFFSET:
        found = float_argument(margin, found.dtype) - found
    tl.store(score + m, found, m < M)


def positive_scores(
    pairs: Operands,  # `scaled_operands` of the pairs' images and texts
    positive: Tensor | None = None,  # [M]; -1: the score is NaN
    margin: float | None = None,
) -> Tensor:  # [M]
    """Return the score of every pair, bit for bit as a score tile computes it.

    A text equal to the positive must tie with it, because semi-hard mining and hinges compare
    scores with that of the positive. With a margin, return margin - score instead.
    """
    M = pairs.shape[1]
    score = torch.empty(M, dtype=wide_dtype(pairs.x), device=pairs.x.device)
    # A program computes a square tile of scores and keeps its diagonal.
    side = 32 if pairs.kind == "ieee" else min(pairs.tile.columns, 128)
    _positives_kernel[(cdiv(M, side),)](
        **pairs.arguments(pairs.tile._replace(rows=side, columns=side)), score=score, M=M,
        positive=score if positive is None else positive.contiguous(),
        HAS_POSITIVE=positive is not None, margin=margin or 0.0, OFFSET=margin is not None,
    )  # fmt: skip
    return score
