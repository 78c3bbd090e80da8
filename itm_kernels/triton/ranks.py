"""Where every query's best positive stands: candidates are counted in the tile that scores them.

The best positive is known before anything is compared with it, and comes from the very tiles that
it is compared in: computed another way it would round differently, and rank behind itself. With
rows in the order of their ids the positives of a tile of queries lie side by side, so that few
tiles are computed again: once for the best score, once for the row that has it. Copies of that row
tie with it, even if a tile at the edge rounds their scores differently.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import Operands, operands
from itm_kernels.triton._tiles import (
    key_of_nan,
    no_key,
    ordered_key,
    place,
    same_id,
    score_tile,
)

_PROGRAMS = 256  # that share few queries with many positives


@triton.jit
def _positives_kernel(
    x,
    y,
    x_ids,  # [Q] ascending
    y_ids,  # [G] ascending
    first,  # [row tiles] of the candidates that may be positives
    last,
    best,  # [Q] keys of scores
    best_column,  # [Q] found if FIND: the last candidate that has the best score
    x_stride,
    y_stride,
    x_part,
    y_part,
    Q,
    G,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    FIND: tl.constexpr,
):
    q = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(q, Q - 1)
    none: tl.constexpr = no_key(best.dtype.element_ty)
    if FIND:
        highest = tl.full((ROWS,), -1, tl.int32)
    else:
        highest = tl.full((ROWS,), none, best.dtype.element_ty)
    tile = tl.load(first + tl.program_id(0)).to(tl.int32) // COLUMNS + tl.program_id(1)
    end = tl.load(last + tl.program_id(0)).to(tl.int32)
    for at in range(tile * COLUMNS, end, tl.num_programs(1) * COLUMNS):
        columns = tl.minimum(at + tl.arange(0, COLUMNS), G - 1)
        scores = score_tile(
            x, y, x_stride, y_stride, x_part, y_part, D, rows, columns,
            DEPTH, PARTS, PRECISION, ALIGN, EVEN,
        )  # fmt: skip
        positive = same_id(rows, columns, x_ids, y_ids, True)
        # Scores that are not finite are no positive's best.
        ranked = positive & (tl.abs(scores) < float("inf"))
        keys = tl.where(ranked, ordered_key(scores), none)
        if FIND:
            is_best = keys == tl.load(best + rows)[:, None]
            highest = tl.maximum(highest, tl.max(tl.where(is_best, columns[None, :], -1), 1))
        else:
            highest = tl.maximum(highest, tl.max(keys, 1))
    # Integers: the order of programs does not show.
    tl.atomic_max((best_column if FIND else best) + q, highest, mask=q < Q, sem="relaxed")


@triton.jit
def _count_kernel(
    x,
    y,
    x_ids,  # [Q]
    y_ids,  # [G]
    y_keys,  # [G]
    best,  # [Q]
    best_row,  # [Q]
    order,  # [Q] where a query came from
    above,  # [Q] int64
    ties,  # [Q] int64
    positives,  # [Q] int64
    x_stride,
    y_stride,
    x_part,
    y_part,
    Q,
    G,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
):
    q, g, _, _ = place(tl.program_id(0), ROWS, COLUMNS, Q, G)
    rows, columns = tl.minimum(q, Q - 1), tl.minimum(g, G - 1)
    scores = score_tile(
        x, y, x_stride, y_stride, x_part, y_part, D, rows, columns,
        DEPTH, PARTS, PRECISION, ALIGN, EVEN,
    )  # fmt: skip
    keys = ordered_key(scores)
    limit = tl.load(best + rows)[:, None]
    is_copy = tl.load(best_row + rows)[:, None] == tl.load(y_keys + columns)[None, :]
    own = same_id(rows, columns, x_ids, y_ids, True)
    inside = (g < G)[None, :]
    # NaN is the highest key, and above nothing. A positive is above the best if it is infinite.
    is_above = (keys > limit) & (keys != key_of_nan(scores.dtype)) & inside
    is_above = is_above & (is_copy == 0) & (own == 0)
    none: tl.constexpr = no_key(best.dtype.element_ty)
    ties_with_it = ((keys == limit) | is_copy) & (limit != none) & inside
    to = tl.load(order + rows)
    _add_counts(above + to, is_above, q < Q)
    _add_counts(ties + to, ties_with_it & (own == 0), q < Q)
    _add_counts(positives + to, ties_with_it & own, q < Q)


@triton.jit
def _add_counts(
    to,  # [R] pointers
    which,  # [R, C]
    mask,  # [R]
):
    """Add to every row's number how many of its entries are marked."""
    number = tl.sum(which.to(tl.int32), 1).to(tl.int64)
    tl.atomic_add(to, number, mask=mask, sem="relaxed")


def ranks_forward(
    queries: Tensor,  # [Q, D]
    gallery: Tensor,  # [G, D]
    query_ids: Tensor,  # [Q]
    gallery_ids: Tensor,  # [G]
    gallery_keys: Tensor,  # [G]
) -> tuple[Tensor, Tensor, Tensor]:  # [Q] each
    """Return how many negatives are above the best finite positive, and what ties with it."""
    query_ids, order = query_ids.sort(stable=True)
    gallery_ids, gallery_order = gallery_ids.sort(stable=True)
    both = operands(queries.index_select(0, order), gallery.index_select(0, gallery_order))
    rows = query_ids, gallery_ids, gallery_keys.index_select(0, gallery_order)
    best, best_row = _best_positives(both, *rows)
    above, ties, positives = (torch.zeros_like(order) for _ in range(3))
    Q, G = both.shape
    _count_kernel[both.tile.programs(Q, G)](
        **both.arguments(),
        **dict(zip(("x_ids", "y_ids", "y_keys"), rows, strict=True)),
        **{"best": best, "best_row": best_row, "order": order, "Q": Q, "G": G},
        **{"above": above, "ties": ties, "positives": positives},
    )
    return above, ties, positives


def _best_positives(
    both: Operands, x_ids: Tensor, y_ids: Tensor, y_keys: Tensor
) -> tuple[Tensor, Tensor]:  # [Q], [Q]
    """Return the key of every query's best score of a positive, and that of the row that has it.

    Without a finite score the first is below the key of every number.
    """
    (Q, G), tile, device = both.shape, both.tile, x_ids.device
    tiles = triton.cdiv(Q, tile.rows)
    starts = torch.arange(tiles, device=device) * tile.rows
    first = torch.searchsorted(y_ids, x_ids[starts])
    last = torch.searchsorted(y_ids, x_ids[(starts + tile.rows - 1).clamp_max(Q - 1)], right=True)
    key = torch.int64 if both.kind == "fp64" else torch.int32
    best = torch.full((Q,), torch.iinfo(key).min, dtype=key, device=device)
    best_column = torch.full((Q,), -1, dtype=torch.int32, device=device)
    shares = max(1, min(triton.cdiv(G, tile.columns), _PROGRAMS // tiles))
    for find in (False, True):
        _positives_kernel[(tiles, shares)](
            **both.arguments(),
            **{"x_ids": x_ids, "y_ids": y_ids, "first": first, "last": last},
            **{"best": best, "best_column": best_column, "Q": Q, "G": G, "FIND": find},
        )
    return best, y_keys[best_column.clamp_min(0)]
