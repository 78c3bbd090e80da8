"""Sums of rows by target, with the same bits every time.

A gradient that is a gather of few rows is such a sum. Atomics would add in any order; here entries
are sorted by target, and one program owns a target.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import INTERPRETED, rows_of, stored_dtype
from itm_kernels.triton._tiles import wide_type

_ENTRIES = 16  # of a target, read at once: a row that everyone mined is a long sum
_DEPTH = 128
# Entries that are sorted by comparing all with all, in one launch instead of the ten of a sort: at
# this many it is 10^8 comparisons.
_FEW = 8192
_TARGETS = 32 if INTERPRETED else 1  # the interpreter pays per program


@triton.jit
def _sum_kernel(
    rows,
    order,  # [E] entries by target
    starts,  # [T + 1]
    source,  # [E]
    weight,  # [E]
    out,  # [T, D]
    stride,
    T,
    D,
    TARGETS: tl.constexpr,
    ENTRIES: tl.constexpr,
    DEPTH: tl.constexpr,
):
    target = tl.program_id(0).to(tl.int64) * TARGETS + tl.arange(0, TARGETS)
    depth = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    DTYPE: tl.constexpr = wide_type(rows.dtype)
    first = tl.load(starts + target, mask=target < T, other=0)
    last = tl.load(starts + target + 1, mask=target < T, other=0)
    total = tl.zeros((TARGETS, DEPTH), tl.float64)  # a row that everyone mined is a long chain
    for step in range(0, tl.max(last - first, 0), ENTRIES):
        entry = first[:, None] + step + tl.arange(0, ENTRIES)[None, :]
        here = entry < last[:, None]
        number = tl.load(order + entry, mask=here, other=0)
        row = tl.load(source + number, mask=here, other=0)
        factor = tl.load(weight + number, mask=here, other=0.0)
        at = row[:, :, None] * stride + depth[None, None, :]
        inside = here[:, :, None] & (depth < D)[None, None, :]
        chunk = tl.load(rows + at, mask=inside, other=0.0).to(DTYPE)
        total += tl.sum(chunk * factor[:, :, None], 1).to(tl.float64)
    at = target[:, None] * D + depth[None, :]
    tl.store(out + at, total.to(DTYPE), mask=(target < T)[:, None] & (depth < D)[None, :])


@triton.jit
def _order_kernel(
    i,  # [E]
    j,  # [E]
    order,  # [2, E]
    starts,  # [2, max(N, M) + 1]
    E,
    N,
    M,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Sort few entries by counting: an entry's place is the number of those before it."""
    of_i = tl.program_id(1) == 0
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # numbers of entries, and of targets
    own = _target(i, j, at, E, of_i)[:, None]
    place = tl.zeros((BLOCK,), tl.int32)
    start = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, E, CHUNK):
        entry = first + tl.arange(0, CHUNK)
        target, inside = _target(i, j, entry, E, of_i)[None, :], (entry < E)[None, :]
        before = (target < own) | ((target == own) & (entry[None, :] < at[:, None]))
        place += tl.sum((before & inside).to(tl.int32), 1)
        start += tl.sum(((target < at[:, None]) & inside).to(tl.int32), 1)
    order += tl.program_id(1) * E
    starts += tl.program_id(1) * (tl.maximum(N, M) + 1)
    tl.store(order + place, at, mask=at < E)
    tl.store(starts + at, start, mask=at <= tl.where(of_i, N, M))


@triton.jit
def _target(i, j, entry, E, of_i):
    """Return the row of i or of j that entries go to, -1 for none."""
    a = tl.load(i + entry, mask=entry < E, other=-1).to(tl.int32)
    b = tl.load(j + entry, mask=entry < E, other=-1).to(tl.int32)
    return tl.where((a < 0) | (b < 0), -1, tl.where(of_i, a, b))


def _orders(i: Tensor, j: Tensor, N: int, M: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """Return entries in the order of i and where its targets start, and the same for j."""
    E, device = i.shape[0], i.device
    i, j = i.contiguous(), j.contiguous()
    if E <= _FEW:
        order = torch.empty((2, E), dtype=torch.int64, device=device)
        starts = torch.empty((2, max(N, M) + 1), dtype=torch.int64, device=device)
        grid = (triton.cdiv(max(E, N + 1, M + 1), 64), 2)
        _order_kernel[grid](i, j, order, starts, E, N, M, BLOCK=64, CHUNK=64)
        return (order[0], starts[0]), (order[1], starts[1])
    none = (i < 0) | (j < 0)
    found = []
    for target, targets in ((i, N), (j, M)):
        ordered, order = target.masked_fill(none, -1).sort(stable=True)
        bounds = torch.arange(targets + 1, device=device)
        found.append((order, torch.searchsorted(ordered, bounds)))
    return tuple(found)


def _sums(
    ordered: tuple[Tensor, Tensor],
    source: Tensor,
    weight: Tensor,
    rows: Tensor,  # [S, D]
    targets: int,
) -> Tensor:  # [targets, D] in the dtype of rows
    rows = rows_of(rows)
    D = rows.shape[1]
    out = torch.empty((targets, D), dtype=stored_dtype(rows.dtype), device=rows.device)
    _sum_kernel[(triton.cdiv(targets, _TARGETS), triton.cdiv(D, _DEPTH))](
        rows, *ordered, source, weight, out, rows.stride(0), targets, D,
        TARGETS=_TARGETS, ENTRIES=_ENTRIES, DEPTH=_DEPTH,
    )  # fmt: skip
    return out.to(rows.dtype)


def sum_rows(
    target: Tensor,  # [E] int64; a negative one takes no part
    source: Tensor,  # [E] int64
    weight: Tensor,  # [E] in the precision that rows are computed in
    rows: Tensor,  # [S, D]
    targets: int,
) -> Tensor:  # [targets, D] in the dtype of rows
    """Return, for every target, the sum of weight * rows[source] over its entries in order."""
    ordered, _ = _orders(target, source, targets, rows.shape[0])
    return _sums(ordered, source, weight, rows, targets)


def send(
    i: Tensor,  # [E] int64 row of image
    j: Tensor,  # [E] int64 row of text
    weight: Tensor,  # [E] gradient of their score; an entry with a negative row takes no part
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
) -> tuple[Tensor, Tensor]:
    """Send the gradient of single scores to the two rows that made each."""
    N, M = image.shape[0], text.shape[0]
    by_image, by_text = _orders(i, j, N, M)
    return _sums(by_image, j, weight, text, N), _sums(by_text, i, weight, image, M)
