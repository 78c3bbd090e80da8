"""The rank of every query's best positive, from counts taken in the tiles of scores.

A first pass finds the best positive, a second one compares all candidates with it. The best score
must round exactly as the scores that it is compared with, so it comes from a tile of the same shape
over the same chunks of D: tensor cores sum an element of a tile in the same order at any position.
With rows sorted by id, the positives of a tile of queries are consecutive, so that few tiles are
computed twice. Copies of the best positive tie with it, however their scores round.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._id_order import Order, order_by_id
from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._operands import Operands, operands
from itm_kernels.triton._score_tiles import (
    key_of_nan,
    no_key,
    ordered_key,
    program_tile,
    same_id,
    score_tile,
)

_PROGRAMS = 256  # fewer tiles of queries are split over their positives


@jit
def _positives_kernel(
    operands,  # `ScoreOperands`
    x_ids,  # [Q]
    y_ids,  # [G]
    query,  # [Q] query at a sorted position
    candidate,  # [G] candidate at a sorted position
    first,  # [Q] position of the first positive of the query at a position
    end,
    best,  # [Q] key of the best score << 32 | last candidate with that score; for fp64 the key
    best_column,  # [Q] this candidate, with FIND
    Q,
    G,
    WIDE: tl.constexpr,  # 64-bit keys: one launch finds the maximum, another its candidate
    FIND: tl.constexpr,
):
    """Find the best score of a positive of every query, and the last candidate that has it."""
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
        # A non-finite score is never the best.
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
    # An integer maximum does not depend on the order of programs.
    tl.atomic_max((best_column if FIND else best) + rows, highest, mask=q < Q, sem="relaxed")


@jit
def _count_kernel(
    operands,  # `ScoreOperands`
    x_ids,  # [Q]
    y_ids,  # [G]
    y_keys,  # [G]
    best,  # [Q] as stored by _positives_kernel
    best_column,  # [Q] with WIDE
    above,  # [Q] int64
    ties,  # [Q] int64
    positives,  # [Q] int64
    Q,
    G,
    WIDE: tl.constexpr,
):
    """Count the candidates above the best positive and those that tie with it, per query."""
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
    # NaN has the highest key but is above nothing. Only an infinite positive is above the best.
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
    """Add the number of marked entries of every row to its counter."""
    number = tl.sum(which.to(tl.int32), 1).to(tl.int64)
    tl.atomic_add(to, number, mask=mask, sem="relaxed")


@jit
def _ranks_kernel(above, ties, positives, negatives, rank, Q, BLOCK: tl.constexpr):
    """Write ranks; a query without a finite positive ranks behind all of its negatives."""
    q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = q < Q
    higher = tl.load(above + q, mask=mask, other=0)
    behind_all = tl.load(positives + q, mask=mask, other=0) == 0
    higher = tl.where(behind_all, tl.load(negatives + q, mask=mask, other=0), higher)
    tl.store(above + q, higher, mask=mask)
    # Twice the rank is an integer, so that the product is exact.
    twice = 2 + 2 * higher + tl.load(ties + q, mask=mask, other=0)
    tl.store(rank + q, twice.to(tl.float64) * 0.5, mask=mask)


def middle_ranks(
    queries: Tensor,  # [Q, D]
    gallery: Tensor,  # [G, D]
    query_ids: Tensor,  # [Q]
    gallery_ids: Tensor,  # [G]
    gallery_keys: Tensor,  # [G]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [Q] each
    """Return ranks, the negatives above the best positive, and the negatives and positives tied."""
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
    _ranks_kernel[(cdiv(len(above), 128),)](
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
    """Return the counts of `middle_ranks` without the ranks, as the other backends do."""
    _, above, ties, positives = middle_ranks(queries, gallery, query_ids, gallery_ids, gallery_keys)
    return above, ties, positives


def _best_positives(
    both: Operands,
    order: Order,
    best: Tensor,
    ids: dict[str, Tensor],
    sizes: dict[str, Any],
) -> dict[str, Tensor]:
    """Return the best score of a positive of every query, and the last candidate that has it."""
    (Q, G), tile = both.shape, both.tile
    tiles = cdiv(Q, tile.rows)
    splits = max(1, min(cdiv(G, tile.columns), _PROGRAMS // tiles))
    found = {"best": best, "best_column": torch.full_like(best, -1) if sizes["WIDE"] else best}
    for find in (False, True) if sizes["WIDE"] else (False,):
        _positives_kernel[(tiles, splits)](
            **both.arguments(), **ids, **order._asdict(), **found, **sizes, FIND=find
        )
    return found
