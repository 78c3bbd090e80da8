"""One sampled negative per anchor in both directions, with noise drawn inside the score tiles.

The argmax of score + Gumbel noise is a sample from the softmax. Every tile stores its maximum per
row and per column, as the kernel of hardest negatives does; those are the sample without noise.
"""

import torch
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._gumbel import gumbel_of_columns, philox_words
from itm_kernels.triton._hardest import empty_tile_maxima, hardest
from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._operands import operands
from itm_kernels.triton._positives import id_arguments
from itm_kernels.triton._score_tiles import (
    float_argument,
    no_key,
    ordered_key,
    program_tile,
    same_id,
    score_tile,
)
from itm_kernels.triton._tile_maxima import TileMaxima, maximum_over_tiles, store_tile_maximum


@jit
def _draw_kernel(
    operands,  # `ScoreOperands`
    x_ids,
    y_ids,
    seed,  # [2] int64
    row_key,  # [column tiles, N]
    row_index,
    column_key,  # [row tiles, M]
    column_index,
    N,
    M,
    of_score: tl.float64,
    of_noise: tl.float64,
    HAS_IDS: tl.constexpr,
):
    """Store the maximum of score + noise of a tile's rows and columns, over valid negatives."""
    ROWS: tl.constexpr = operands.ROWS
    COLUMNS: tl.constexpr = operands.COLUMNS
    n, m, row_tile, column_tile = program_tile(tl.program_id(0), ROWS, COLUMNS, N, M)
    rows, columns = tl.minimum(n, N - 1), tl.minimum(m, M - 1)
    scores = score_tile(operands, rows, columns)
    scores *= float_argument(of_score, scores.dtype)
    factor = float_argument(of_noise, scores.dtype)
    off = same_id(rows, columns, x_ids, y_ids, HAS_IDS)
    off |= (n >= N)[:, None] | (m >= M)[None, :]
    none: tl.constexpr = no_key(scores.dtype)
    even = column_tile * COLUMNS + 2 * tl.arange(0, COLUMNS // 2)
    a, b, c, d = philox_words(seed, n, even)
    keys = tl.where(off, none, ordered_key(scores + factor * gumbel_of_columns(a, b)))
    store_tile_maximum(keys, columns[None, :], row_key, row_index, column_tile, N, n, 1)
    keys = tl.where(off, none, ordered_key(scores + factor * gumbel_of_columns(c, d)))
    store_tile_maximum(keys, rows[:, None], column_key, column_index, row_tile, M, m, 0)


@jit
def _select_kernel(
    row_key,
    row_index,
    column_key,
    column_index,
    text_index,  # [N]
    image_index,  # [M]
    N,
    M,
    row_tiles,  # number of tiles of texts
    column_tiles,
    ANCHORS: tl.constexpr,
    TILES: tl.constexpr,
):
    """Write the index of the best candidate over all tiles, for images and for texts."""
    a = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS)
    if tl.program_id(1) == 0:
        found = maximum_over_tiles(row_key, row_index, row_tiles, N, tl.minimum(a, N - 1), TILES)
        tl.store(text_index + a, found.to(tl.int64), mask=a < N)
    else:
        found = maximum_over_tiles(
            column_key, column_index, column_tiles, M, tl.minimum(a, M - 1), TILES
        )
        tl.store(image_index + a, found.to(tl.int64), mask=a < M)


def sample_negatives(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    strategy: str,
    temperature: float,
    seed: Tensor,  # [2] int64
) -> tuple[Tensor, Tensor]:  # [N], [M]
    """Return a negative text per image and a negative image per text, -1 for none."""
    if strategy == "hardest":
        best_text, best_image = hardest(image, text, None, image_ids, text_ids, semihard=False)
    else:
        uniform = strategy == "uniform"
        if uniform:
            # Equal scores come from products of zeros, with the smallest D of tensor cores; the
            # rows are not read.
            image, text = (x.new_zeros((x.shape[0], 16), dtype=torch.half) for x in (image, text))
            temperature = 1.0
        best_text, best_image = _draw(image, text, image_ids, text_ids, temperature, seed)
    N, M = image.shape[0], text.shape[0]
    text_index = torch.empty(N, dtype=torch.int64, device=image.device)
    image_index = torch.empty(M, dtype=torch.int64, device=image.device)
    _select_kernel[(cdiv(max(N, M), 16), 2)](
        *best_text, *best_image, text_index, image_index, N, M,
        best_text.key.shape[0], best_image.key.shape[0], ANCHORS=16, TILES=16,
    )  # fmt: skip
    return text_index, image_index


def _draw(
    image: Tensor,
    text: Tensor,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    temperature: float,
    seed: Tensor,
) -> tuple[TileMaxima, TileMaxima]:
    """Return the largest score + noise of every image and of every text, per tile."""
    both = operands(image, text, parts=2, epilogue="narrow")
    N, M = both.shape
    best_text = empty_tile_maxima(both, M, N, both.tile.columns)
    best_image = empty_tile_maxima(both, N, M, both.tile.rows)
    # s / t + noise and s + t noise have the same argmax. The choice keeps t and 1 / t in the range
    # of fp32.
    divide = temperature > 1
    _draw_kernel[both.tile.programs(N, M)](
        **both.arguments(), **id_arguments(both, image_ids, text_ids), seed=seed.contiguous(),
        row_key=best_text.key, row_index=best_text.candidate,
        column_key=best_image.key, column_index=best_image.candidate, N=N, M=M,
        of_score=1 / temperature if divide else 1.0, of_noise=1.0 if divide else temperature,
    )  # fmt: skip
    return best_text, best_image
