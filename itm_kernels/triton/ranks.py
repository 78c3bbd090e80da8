"""Where every query's best positive stands: candidates are counted in the tile that scores them.

The best positive is known before anything is compared with it. Its score comes from a tile of the
same shape, over the same chunks of D, as those that it is compared in: tensor cores add up an
element of a tile in one order wherever it stands, and computed another way it would round
differently. In the order of ids the positives of a tile of queries lie side by side, so that few
tiles are computed again. Copies of the best positive tie with it, however their scores round.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._id_order import Order, order_by_id
from itm_kernels.triton._operands import Operands, operands
from itm_kernels.triton._score_tiles import (
    key_of_nan,
    no_key,
    ordered_key,
    program_tile,
    same_id,
    score_tile,
)

_PROGRAMS = 256  # that share few queries with many positives


@triton.jit
def _positives_kernel(
    operands,  # `ScoreOperands`
    x_ids,  # [Q]
    y_ids,  # [G]
    query,  # [Q] the query at a place in the order of ids
    candidate,  # [G]
    first,  # [Q] of a query's positives in that order, by the query's place
    end,
    best,  # [Q] key of the best score << 32 | the last candidate that has it; for fp64 the key
    best_column,  # [Q] that candidate if FIND
    Q,
    G,
    WIDE: tl.constexpr,  # keys fill 64 bits: their maximum first, in another launch its candidate
    FIND: tl.constexpr,
):
    ROWS: tl.constexpr = operands.ROWS
    COLUMNS: tl.constexpr = operands.COLUMNS
    begin = tl.program_id(0) * ROWS
    q = begin + tl.arange(0, ROWS)
    rows = tl.load(query + tl.minimum(q, Q - 1)).to(tl.int32)
    none: tl.constexpr = no_key(tl.int64 if WIDE else tl.int32)
    highest = tl.full((ROWS,), -1 if FIND else no_key(tl.int64), tl.int64)
    start = tl.load(first + begin) + tl.program_id(1) * COLUMNS
    stop = tl.load(end + tl.minimum(begin + ROWS, Q) - 1)
    for at in range(start, stop, tl.num_programs(1) * COLUMNS):
        columns = tl.load(candidate + tl.minimum(at + tl.arange(0, COLUMNS), G - 1)).to(tl.int32)
        scores = score_tile(operands, rows, columns)
        positive = same_id(rows, columns, x_ids, y_ids, True)
        # Scores that are not finite are no positive's best.
        ranked = positive & (tl.abs(scores) < float("inf"))
        keys = tl.where(ranked, ordered_key(scores), none)
        if FIND:
            is_best = keys == tl.load(best + rows)[:, None]
            here = tl.max(tl.where(is_best, columns[None, :], -1), 1).to(tl.int64)
        else:
            here = tl.max(keys, 1)
            if not WIDE:
                last = tl.max(tl.where(keys == here[:, None], columns[None, :], -1), 1)
                here = (here.to(tl.int64) << 32) | last.to(tl.int64)
        highest = tl.maximum(highest, here)
    # Integers: the order of programs does not show.
    tl.atomic_max((best_column if FIND else best) + rows, highest, mask=q < Q, sem="relaxed")


@triton.jit
def _count_kernel(
    operands,  # `ScoreOperands`
    x_ids,  # [Q]
    y_ids,  # [G]
    y_keys,  # [G]
    best,  # [Q] as _positives_kernel leaves it
    best_column,  # [Q] if WIDE
    above,  # [Q] int64
    ties,  # [Q] int64
    positives,  # [Q] int64
    Q,
    G,
    WIDE: tl.constexpr,
):
    ROWS: tl.constexpr = operands.ROWS
    COLUMNS: tl.constexpr = operands.COLUMNS
    q, g, _, _ = program_tile(tl.program_id(0), ROWS, COLUMNS, Q, G)
    rows, columns = tl.minimum(q, Q - 1), tl.minimum(g, G - 1)
    scores = score_tile(operands, rows, columns)
    keys = ordered_key(scores)
    limit = tl.load(best + rows)
    if WIDE:
        column = tl.load(best_column + rows)
    else:
        column = limit & 0xFFFFFFFF
        limit = (limit >> 32).to(tl.int32)
    best_row = tl.load(y_keys + tl.maximum(column, 0))
    limit = limit[:, None]
    is_copy = best_row[:, None] == tl.load(y_keys + columns)[None, :]
    own = same_id(rows, columns, x_ids, y_ids, True)
    inside = (g < G)[None, :]
    # NaN is the highest key, and above nothing. A positive is above the best if it is infinite.
    is_above = (keys > limit) & (keys != key_of_nan(scores.dtype)) & inside
    is_above = is_above & (is_copy == 0) & (own == 0)
    none: tl.constexpr = no_key(tl.int64 if WIDE else tl.int32)
    ties_with_it = ((keys == limit) | is_copy) & (limit != none) & inside
    _add_counts(above + q, is_above, q < Q)
    _add_counts(ties + q, ties_with_it & (own == 0), q < Q)
    _add_counts(positives + q, ties_with_it & own, q < Q)


@triton.jit
def _add_counts(
    to,  # [R] pointers
    which,  # [R, C]
    mask,  # [R]
):
    """Add to every row's number how many of its entries are marked."""
    number = tl.sum(which.to(tl.int32), 1).to(tl.int64)
    tl.atomic_add(to, number, mask=mask, sem="relaxed")


@triton.jit
def _ranks_kernel(above, ties, positives, negatives, rank, Q, BLOCK: tl.constexpr):
    """Write ranks, and put queries without a finite positive behind all of their negatives."""
    q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = q < Q
    higher = tl.load(above + q, mask=mask, other=0)
    behind_all = tl.load(positives + q, mask=mask, other=0) == 0
    higher = tl.where(behind_all, tl.load(negatives + q, mask=mask, other=0), higher)
    tl.store(above + q, higher, mask=mask)
    # Twice the rank is an integer; the product is exact.
    twice = 2 + 2 * higher + tl.load(ties + q, mask=mask, other=0)
    tl.store(rank + q, twice.to(tl.float64) * 0.5, mask=mask)


def ranks_total(
    queries: Tensor,  # [Q, D]
    gallery: Tensor,  # [G, D]
    query_ids: Tensor,  # [Q]
    gallery_ids: Tensor,  # [G]
    gallery_keys: Tensor,  # [G]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [Q] each
    """Return ranks, how many negatives are above the best positive, and what ties with it."""
    both = operands(queries, gallery)
    ids = {"x_ids": query_ids.contiguous(), "y_ids": gallery_ids.contiguous()}
    order, counts = order_by_id(**ids)
    sizes: dict[str, Any] = {"Q": len(queries), "G": len(gallery), "WIDE": both.kind == "fp64"}
    best = _best_positives(both, order, counts.best, ids, sizes)
    _, above, ties, positives, negatives = counts
    _count_kernel[both.tile.programs(*both.shape)](
        **both.arguments(), **ids, **best, **sizes, y_keys=gallery_keys.contiguous(),
        above=above, ties=ties, positives=positives,
    )  # fmt: skip
    rank = torch.empty(len(above), dtype=torch.float64, device=above.device)
    _ranks_kernel[(triton.cdiv(len(above), 128),)](
        above, ties, positives, negatives, rank, len(above), BLOCK=128
    )
    return rank, above, ties, positives


def ranks_forward(
    queries: Tensor,  # [Q, D]
    gallery: Tensor,  # [G, D]
    query_ids: Tensor,  # [Q]
    gallery_ids: Tensor,  # [G]
    gallery_keys: Tensor,  # [G]
) -> tuple[Tensor, Tensor, Tensor]:  # [Q] each
    """Return what the other backends return: the same without ranks."""
    _, above, ties, positives = ranks_total(queries, gallery, query_ids, gallery_ids, gallery_keys)
    return above, ties, positives


def _best_positives(
    both: Operands,
    order: Order,
    best: Tensor,
    ids: dict[str, Tensor],
    sizes: dict[str, Any],
) -> dict[str, Tensor]:
    """Find the best score of a positive of every query, and the last candidate that has it."""
    (Q, G), tile = both.shape, both.tile
    tiles = triton.cdiv(Q, tile.rows)
    shares = max(1, min(triton.cdiv(G, tile.columns), _PROGRAMS // tiles))
    found = {"best": best, "best_column": torch.full_like(best, -1) if sizes["WIDE"] else best}
    for find in (False, True) if sizes["WIDE"] else (False,):
        _positives_kernel[(tiles, shares)](
            **both.arguments(), **ids, **order._asdict(), **found, **sizes, FIND=find
        )
    return found
