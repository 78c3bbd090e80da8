"""Rank of every query's best positive: candidates are counted in the tile that scores them.

The best positive is known before anything is compared with it, and comes from the very tiles that
it is compared in: computed another way it would round differently, and rank behind itself. With
rows in the order of their ids the positives of a tile of queries lie side by side, so that few
tiles are computed twice.
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
    best,  # [Q] keys
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
    q = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(q, Q - 1)
    none: tl.constexpr = no_key(best.dtype.element_ty)
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
        keys = tl.where(positive, ordered_key(scores), none)
        highest = tl.maximum(highest, tl.max(keys, 1))
    # Integers: the order of programs does not show.
    tl.atomic_max(best + q, highest, mask=q < Q, sem="relaxed")


@triton.jit
def _count_kernel(
    x,
    y,
    best,  # [Q]
    order,  # [Q] where a query came from
    rank,  # [Q] int64
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
    # NaN is the highest key, and above nothing.
    above = (keys > tl.load(best + rows)[:, None]) & (keys != key_of_nan(scores.dtype))
    count = tl.sum((above & (g < G)[None, :]).to(tl.int32), 1)
    tl.atomic_add(rank + tl.load(order + rows), count.to(tl.int64), mask=q < Q, sem="relaxed")


def ranks(
    queries: Tensor,  # [Q, D]
    gallery: Tensor,  # [G, D]
    query_ids: Tensor,  # [Q]
    gallery_ids: Tensor,  # [G]
) -> Tensor:  # [Q]
    """Return 1 + the number of candidates that score above the query's best positive."""
    query_ids, order = query_ids.sort(stable=True)
    gallery_ids, gallery_order = gallery_ids.sort(stable=True)
    both = operands(queries.index_select(0, order), gallery.index_select(0, gallery_order))
    best = _best_positives(both, query_ids, gallery_ids)
    rank = torch.ones_like(order)
    Q, G = both.shape
    _count_kernel[both.tile.programs(Q, G)](
        **both.arguments(), best=best, order=order, rank=rank, Q=Q, G=G
    )
    return rank


def _best_positives(both: Operands, x_ids: Tensor, y_ids: Tensor) -> Tensor:  # [Q]
    """Return the key of every query's best positive, below every number's without one."""
    (Q, G), tile, device = both.shape, both.tile, x_ids.device
    tiles = triton.cdiv(Q, tile.rows)
    starts = torch.arange(tiles, device=device) * tile.rows
    first = torch.searchsorted(y_ids, x_ids[starts])
    last = torch.searchsorted(y_ids, x_ids[(starts + tile.rows - 1).clamp_max(Q - 1)], right=True)
    key = torch.int64 if both.kind == "fp64" else torch.int32
    best = torch.full((Q,), torch.iinfo(key).min, dtype=key, device=device)
    shares = max(1, min(triton.cdiv(G, tile.columns), _PROGRAMS // tiles))
    _positives_kernel[(tiles, shares)](
        **both.arguments(), x_ids=x_ids, y_ids=y_ids, first=first, last=last, best=best, Q=Q, G=G
    )
    return best
