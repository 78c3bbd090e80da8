"""Queries and candidates sorted by id, so that the positives of a query are consecutive.

Few ids are sorted by counting, in one launch; many by the library. Rows are not moved: an order
holds the row index at every sorted position.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._operands import INTERPRETED
from itm_kernels.triton._score_tiles import no_key

# Up to this many ids per side, all pairs are compared in one launch instead of the twenty launches
# of two sorts. At this size that is 2 x 10^8 64-bit comparisons, and takes as long as the sorts.
_FEW = 8192
_BLOCK = 256 if INTERPRETED else 16


class Order(NamedTuple):
    """Rows sorted by id, and the candidates that share the id of every query."""

    query: Tensor  # [Q] query at a sorted position
    candidate: Tensor  # [G] candidate at a sorted position
    first: Tensor  # [Q] position of the first candidate with the id of the query at a position
    end: Tensor  # [Q] one beyond the last


class Counts(NamedTuple):
    """Counters of every query, which tiles of scores update."""

    best: Tensor  # [Q] highest key << 32 | candidate; for fp64 the key alone
    above: Tensor  # [Q] int64
    ties: Tensor
    positives: Tensor
    negatives: Tensor  # [Q] int64, number of candidates with another id


@triton.jit
def _start(best, above, ties, positives, negatives, q, number, mask):
    """Initialize the counters, and store the number of negatives of a query."""
    zero = tl.zeros_like(q).to(tl.int64)
    tl.store(above + q, zero, mask=mask)
    tl.store(ties + q, zero, mask=mask)
    tl.store(positives + q, zero, mask=mask)
    tl.store(negatives + q, number.to(tl.int64), mask=mask)
    # The high half is the lowest 32-bit key as well.
    tl.store(best + q, tl.full(q.shape, no_key(tl.int64), tl.int64), mask=mask)


@triton.jit
def _compare(ids, c, own, count):
    """Mark which of the ids at c are smaller than `own`, which are equal, and which exist."""
    other = tl.load(ids + c, mask=c < count, other=0)[None, :]
    return other < own, other == own, (c < count)[None, :]


@triton.jit
def _positions(ids, r, own, count, CHUNK: tl.constexpr):
    """Return the sorted positions of the ids at r; equal ids keep their order."""
    position = tl.zeros((r.shape[0],), tl.int32)
    for chunk in range(0, count, CHUNK):
        c = chunk + tl.arange(0, CHUNK)
        smaller, equal, inside = _compare(ids, c, own, count)
        before = smaller | (equal & (c[None, :] < r[:, None]))
        position += tl.sum((before & inside).to(tl.int32), 1)
    return position


@jit
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
    """Sort by counting: the position of a row is the number of rows before it."""
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if tl.program_id(1) == 0:
        own = tl.load(x_ids + r, mask=r < Q, other=0)[:, None]
        below = tl.zeros((BLOCK,), tl.int32)
        equal = tl.zeros((BLOCK,), tl.int32)
        position = _positions(x_ids, r, own, Q, CHUNK)
        for chunk in range(0, G, CHUNK):
            is_smaller, is_equal, inside = _compare(y_ids, chunk + tl.arange(0, CHUNK), own, G)
            below += tl.sum((is_smaller & inside).to(tl.int32), 1)
            equal += tl.sum((is_equal & inside).to(tl.int32), 1)
        tl.store(query + position, r, mask=r < Q)
        tl.store(first + position, below, mask=r < Q)
        tl.store(end + position, below + equal, mask=r < Q)
        _start(best, above, ties, positives, negatives, r, G - equal, r < Q)
    else:
        own = tl.load(y_ids + r, mask=r < G, other=0)[:, None]
        position = _positions(y_ids, r, own, G, CHUNK)
        tl.store(candidate + position, r, mask=r < G)


@triton.jit
def _search(ids, G, value, RIGHT: tl.constexpr, STEPS: tl.constexpr):
    """Return how many of G ascending ids are < value, or <= value with RIGHT."""
    low = tl.zeros_like(value).to(tl.int32)
    high = low + G
    for _ in range(0, STEPS):
        middle = low + (high - low) // 2
        found = tl.load(ids + middle, mask=low < high, other=0)
        before = (found <= value) if RIGHT else (found < value)
        low = tl.where((low < high) & before, middle + 1, low)
        high = tl.where((low < high) & (before == 0), middle, high)
    return low


@jit
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
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = position < Q
    own = tl.load(x_ids + position, mask=mask, other=0)
    below = _search(y_ids, G, own, False, STEPS)
    beyond = _search(y_ids, G, own, True, STEPS)
    tl.store(first + position, below, mask=mask)
    tl.store(end + position, beyond, mask=mask)
    q = tl.load(query + position, mask=mask, other=0)
    _start(best, above, ties, positives, negatives, q, G - (beyond - below), mask)


def order_by_id(x_ids: Tensor, y_ids: Tensor) -> tuple[Order, Counts]:
    """Return queries and candidates sorted by id, and counters at 0 with the lowest best key."""
    Q, G, device = len(x_ids), len(y_ids), x_ids.device
    first, end = (torch.empty(Q, dtype=torch.int32, device=device) for _ in range(2))
    counts = Counts(*(torch.empty(Q, dtype=torch.int64, device=device) for _ in range(5)))
    if max(Q, G) > _FEW:
        (x_ids, query), (y_ids, candidate) = (ids.sort(stable=True) for ids in (x_ids, y_ids))
        _search_kernel[(cdiv(Q, 128),)](
            x_ids, y_ids, query, first, end, *counts, Q, G,
            BLOCK=128, STEPS=G.bit_length(), num_warps=4,
        )  # fmt: skip
        return Order(query, candidate, first, end), counts
    query, candidate = (torch.empty(n, dtype=torch.int32, device=device) for n in (Q, G))
    _sort_kernel[(cdiv(max(Q, G), _BLOCK), 2)](
        x_ids.contiguous(), y_ids.contiguous(), query, candidate, first, end, *counts, Q, G,
        BLOCK=_BLOCK, CHUNK=256, num_warps=4,
    )  # fmt: skip
    return Order(query, candidate, first, end), counts
