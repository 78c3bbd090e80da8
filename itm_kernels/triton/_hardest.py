"""The hardest negative of every row and column from one pass over the scores.

A tile stores the key and the index of its hardest negative per row and per column; keys are
integers in the order of the scores. The kernel that reduces the tiles computes the scores of the
selected rows again, in the precision of the input: tensor-core scores only select the index.
"""

import torch
import triton.language as tl
from torch import Tensor

from itm_kernels.triton import _scaled_operands, gluon
from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._operands import Operands, kind_of, operands
from itm_kernels.triton._positives import id_arguments, positive_images, positive_scores
from itm_kernels.triton._score_tiles import (
    at_least,
    no_key,
    ordered_key,
    program_tile,
    same_id,
    scale_scores,
    score_tile,
)
from itm_kernels.triton._screening import screened_hardest, should_screen
from itm_kernels.triton._tile_maxima import TileMaxima, store_tile_maximum


@jit
def _hardest_kernel(
    operands,  # `ScoreOperands`
    x_ids,
    y_ids,
    bound,  # scores of the pairs: semi-hard negatives are below
    row_key,
    row_index,
    column_key,
    column_index,
    N,
    M,
    HAS_IDS: tl.constexpr,
    BOUNDED: tl.constexpr,
    OF_ROWS: tl.constexpr,
    OF_COLUMNS: tl.constexpr,
):
    ROWS: tl.constexpr = operands.ROWS
    COLUMNS: tl.constexpr = operands.COLUMNS
    n, m, row_tile, column_tile = program_tile(tl.program_id(0), ROWS, COLUMNS, N, M)
    rows, columns = tl.minimum(n, N - 1), tl.minimum(m, M - 1)
    scores = score_tile(operands, rows, columns)
    scores = scale_scores(operands, scores, rows, columns)
    off = same_id(rows, columns, x_ids, y_ids, HAS_IDS)
    off |= (n >= N)[:, None] | (m >= M)[None, :]
    none: tl.constexpr = no_key(scores.dtype)
    keys = tl.where(off, none, ordered_key(scores))
    if OF_ROWS:
        of_row = keys
        if BOUNDED:
            of_row = tl.where(at_least(keys, tl.load(bound + rows)[:, None]), none, keys)
        store_tile_maximum(of_row, columns[None, :], row_key, row_index, column_tile, N, n, 1)
    if OF_COLUMNS:
        of_column = keys
        if BOUNDED:
            of_column = tl.where(at_least(keys, tl.load(bound + columns)[None, :]), none, keys)
        store_tile_maximum(of_column, rows[:, None], column_key, column_index, row_tile, M, m, 0)


def hardest(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    positive: Tensor | None,  # [M]
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    semihard: bool,
) -> tuple[TileMaxima, TileMaxima]:
    """Find the hardest text of every image and the hardest image of every text, per tile.

    Semi-hard negatives have scores below that of a pair: rows are then pairs, `[tiles, M]`.
    """
    if not semihard:
        if should_screen(image, text, kind_of(image)):
            of_image, of_text = screened_hardest(image, text, image_ids, text_ids)
            return TileMaxima(*of_image), TileMaxima(*of_text)
        both = operands(image, text, parts=2, epilogue="reduction")
        if gluon.is_selected("hardest", both):
            from itm_kernels.triton.gluon.hardest import hardest as on_hopper

            return on_hopper(both, image_ids, text_ids)
        return _hardest_of_tiles(both, image_ids, text_ids, None, True, True)
    # Semi-hard mining compares scores with a threshold, so scores are computed to fp32 accuracy.
    # Small tiles: with bounds and ids, 128 x 128 keys cause 14 spills on sm_100.
    pairs, pair_ids = positive_images(image, image_ids, positive)
    both = _scaled_operands.scaled_operands(pairs, text, cosine=False, weighted=False, shape=(1, 1))
    bound = positive_scores(both)
    if positive is None:
        return _hardest_of_tiles(both, None, None, bound, True, True)
    best_text, _ = _hardest_of_tiles(both, pair_ids, text_ids, bound, True, False)
    images = _scaled_operands.scaled_operands(
        image, text, cosine=False, weighted=False, shape=(1, 1)
    )
    _, best_image = _hardest_of_tiles(images, image_ids, text_ids, bound, False, True)
    return best_text, best_image


def _hardest_of_tiles(
    both: Operands,
    x_ids: Tensor | None,
    y_ids: Tensor | None,
    bound: Tensor | None,  # [M]
    of_rows: bool,
    of_columns: bool,
) -> tuple[TileMaxima, TileMaxima]:
    N, M = both.shape
    row = empty_tile_maxima(both, M if of_rows else 0, N, both.tile.columns)
    column = empty_tile_maxima(both, N if of_columns else 0, M, both.tile.rows)
    _hardest_kernel[both.tile.programs(N, M)](
        **both.arguments(), **id_arguments(both, x_ids, y_ids), N=N, M=M,
        bound=both.x if bound is None else bound, BOUNDED=bound is not None,
        row_key=row.key, row_index=row.candidate, OF_ROWS=of_rows,
        column_key=column.key, column_index=column.candidate, OF_COLUMNS=of_columns,
    )  # fmt: skip
    return row, column


def empty_tile_maxima(both: Operands, candidates: int, anchors: int, at_once: int) -> TileMaxima:
    """Allocate the maxima of every tile of `at_once` candidates, for every anchor."""
    shape = cdiv(candidates, at_once), anchors
    keys = torch.int64 if both.kind == "fp64" else torch.int32
    return TileMaxima(
        torch.empty(shape, dtype=keys, device=both.x.device),
        torch.empty(shape, dtype=torch.int32, device=both.x.device),
    )
