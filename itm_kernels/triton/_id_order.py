"""Queries and candidates in the order of their ids, so that positives lie side by side.

Few ids are sorted by counting, in one launch; many by the library. Rows stay where they are: an
order says where the row at a place is.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._operands import INTERPRETED
from itm_kernels.triton._score_tiles import no_key

# Ids of a side that are sorted by comparing all with all, in one launch instead of the twenty of
# two sorts: at this many it is 2 x 10^8 comparisons of 64 bits, and takes as long as those.
_FEW = 8192
_BLOCK = 256 if INTERPRETED else 16


class Order(NamedTuple):
    """Rows sorted by id: which row has a place, and the candidates of every query."""

    query: Tensor  # [Q] the query at a place
    candidate: Tensor  # [G]
    first: Tensor  # [Q] place of the first candidate with the id of the query at a place
    end: Tensor  # [Q] one beyond the last


class Counts(NamedTuple):
    """Counts of every query, which tiles of scores add to."""

    best: Tensor  # [Q] highest key << 32 | candidate; the key alone for fp64
    above: Tensor  # [Q] int64
    ties: Tensor
    positives: Tensor
    negatives: Tensor  # [Q] int64, candidates with another id


@triton.jit
def _start(best, above, ties, positives, negatives, q, number, mask):
    """Set what tiles add to, and how many negatives a query has."""
    zero = tl.zeros_like(q).to(tl.int64)
    tl.store(above + q, zero, mask=mask)
    tl.store(ties + q, zero, mask=mask)
    tl.store(positives + q, zero, mask=mask)
    tl.store(negatives + q, number.to(tl.int64), mask=mask)
    # The key of none in the high half too.
    tl.store(best + q, tl.full(q.shape, no_key(tl.int64), tl.int64), mask=mask)


@triton.jit
def _places(ids, r, own, count, CHUNK: tl.constexpr):
    """Return how many of some ids come before those at r: smaller ones, and equal ones above."""
    place = tl.zeros((r.shape[0],), tl.int32)
    for chunk in range(0, count, CHUNK):
        c = chunk + tl.arange(0, CHUNK)
        other = tl.load(ids + c, mask=c < count, other=0)[None, :]
        before = (other < own) | ((other == own) & (c[None, :] < r[:, None]))
        place += tl.sum((before & (c < count)[None, :]).to(tl.int32), 1)
    return place


@triton.jit
def _sort_kernel(
    x_ids,  # [Q]
    y_ids,  # [G]
    query,
    candidate,
    first,
    end,
    best,
    above,
    ties,
    positives,
    negatives,
    Q,
    G,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Sort by counting: a row's place is the number of those before it."""
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if tl.program_id(1) == 0:
        own = tl.load(x_ids + r, mask=r < Q, other=0)[:, None]
        below = tl.zeros((BLOCK,), tl.int32)
        equal = tl.zeros((BLOCK,), tl.int32)
        place = _places(x_ids, r, own, Q, CHUNK)
        for chunk in range(0, G, CHUNK):
            c = chunk + tl.arange(0, CHUNK)
            ids = tl.load(y_ids + c, mask=c < G, other=0)[None, :]
            inside = (c < G)[None, :]
            below += tl.sum(((ids < own) & inside).to(tl.int32), 1)
            equal += tl.sum(((ids == own) & inside).to(tl.int32), 1)
        tl.store(query + place, r, mask=r < Q)
        tl.store(first + place, below, mask=r < Q)
        tl.store(end + place, below + equal, mask=r < Q)
        _start(best, above, ties, positives, negatives, r, G - equal, r < Q)
    else:
        own = tl.load(y_ids + r, mask=r < G, other=0)[:, None]
        place = _places(y_ids, r, own, G, CHUNK)
        tl.store(candidate + place, r, mask=r < G)


@triton.jit
def _search(ids, G, value, RIGHT: tl.constexpr, STEPS: tl.constexpr):
    """Return how many of G ascending ids are below a value, or not above it if RIGHT."""
    low = tl.zeros_like(value).to(tl.int32)
    high = low + G
    for _ in range(0, STEPS):
        middle = low + (high - low) // 2
        found = tl.load(ids + middle, mask=low < high, other=0)
        before = (found <= value) if RIGHT else (found < value)
        low = tl.where((low < high) & before, middle + 1, low)
        high = tl.where((low < high) & (before == 0), middle, high)
    return low


@triton.jit
def _search_kernel(
    x_ids,  # [Q] ascending
    y_ids,  # [G] ascending
    query,
    first,
    end,
    best,
    above,
    ties,
    positives,
    negatives,
    Q,
    G,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Find the candidates of every query among sorted ids."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < Q
    own = tl.load(x_ids + place, mask=mask, other=0)
    below = _search(y_ids, G, own, False, STEPS)
    beyond = _search(y_ids, G, own, True, STEPS)
    tl.store(first + place, below, mask=mask)
    tl.store(end + place, beyond, mask=mask)
    q = tl.load(query + place, mask=mask, other=0)
    _start(best, above, ties, positives, negatives, q, G - (beyond - below), mask)


def order_by_id(x_ids: Tensor, y_ids: Tensor) -> tuple[Order, Counts]:
    """Return the order of queries and candidates, and counts of 0 with the lowest best key."""
    Q, G, device = len(x_ids), len(y_ids), x_ids.device
    first, end = (torch.empty(Q, dtype=torch.int32, device=device) for _ in range(2))
    counts = Counts(*(torch.empty(Q, dtype=torch.int64, device=device) for _ in range(5)))
    if max(Q, G) > _FEW:
        (x_ids, query), (y_ids, candidate) = (ids.sort(stable=True) for ids in (x_ids, y_ids))
        _search_kernel[(triton.cdiv(Q, 128),)](
            x_ids, y_ids, query, first, end, *counts, Q, G,
            BLOCK=128, STEPS=G.bit_length(), num_warps=4,
        )  # fmt: skip
        return Order(query, candidate, first, end), counts
    query, candidate = (torch.empty(n, dtype=torch.int32, device=device) for n in (Q, G))
    _sort_kernel[(triton.cdiv(max(Q, G), _BLOCK), 2)](
        x_ids.contiguous(), y_ids.contiguous(), query, candidate, first, end, *counts, Q, G,
        BLOCK=_BLOCK, CHUNK=256, num_warps=4,
    )  # fmt: skip
    return Order(query, candidate, first, end), counts
