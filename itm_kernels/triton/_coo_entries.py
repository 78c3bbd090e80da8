"""Sparse gradients as COO entries (target row, source row, weight), sorted by target.

Few entries are sorted by counting, in one launch; many by the library. Terms that every target has
exactly once, from the other row of its pair or from the row that it mined, need no sort.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._operands import INTERPRETED, wide_dtype

# Up to this many entries per side, all pairs are compared in one launch instead of the ten launches
# of a sort. At this size that is 10^8 comparisons, and takes as long as the sort.
_FEW = 8192
_BLOCK = 256 if INTERPRETED else 16


class Entries(NamedTuple):
    """Weighted rows of one side that are added to rows of the other, image `[N, D]`, text `[M, D]`.

    A target is a row index of image, or N + a row index of text; N + M is no target.
    """

    key: Tensor  # [E] targets
    source: Tensor  # [E] row index of the other side
    weight: Tensor  # [E]
    own_source: Tensor  # [N + M, 2] row index of the other side, -1 for none
    own_weight: Tensor  # [N + M, 2]
    first: Tensor  # [N + M] start of a target's sorted entries, initially 0
    end: Tensor  # [N + M] their end, initially 0
    to_images: int  # number of entries whose target is an image; they come first

    def arguments(self) -> dict[str, Any]:
        """Return the tensors that a kernel writes, as its arguments."""
        return {name: getattr(self, name) for name in self._fields[:-1]}


def entries_empty(image: Tensor, N: int, M: int, to_images: int, to_texts: int) -> Entries:
    """Return uninitialized entries, with 32-bit indices if they suffice."""
    E, T = to_images + to_texts, N + M
    number = torch.int32 if max(E, 2 * T) < 2**31 - 1 else torch.int64

    def empty(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=image.device)

    wide = wide_dtype(image)
    first, end = empty(number, 2, T)
    own = empty(number, T, 2), empty(wide, T, 2)
    return Entries(empty(number, E), empty(number, E), empty(wide, E), *own, first, end, to_images)


@triton.jit
def set_entry(key, source, weight, e, target, row, value, mask):
    """Write the entries at indices e."""
    tl.store(key + e, target.to(key.dtype.element_ty), mask=mask)
    tl.store(source + e, row.to(source.dtype.element_ty), mask=mask)
    tl.store(weight + e, value, mask=mask)


@triton.jit
def set_own(own_source, own_weight, target, which, row, value, mask):
    """Write one of the two terms that a target has without sorting; a negative row is no term."""
    at = 2 * target.to(tl.int64) + which
    tl.store(own_source + at, row.to(own_source.dtype.element_ty), mask=mask)
    tl.store(own_weight + at, value, mask=mask)


@jit
def _sort_kernel(
    key,  # [E]
    ordered,  # [E] sorted keys
    order,  # [E] indices of their entries
    first,  # [N + M]
    end,  # [N + M]
    E,
    to_images,
    N,
    M,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Sort few entries by counting: the position of an entry is the number of entries before it."""
    of_images = tl.program_id(1) == 0
    begin = tl.where(of_images, 0, to_images)
    stop = tl.where(of_images, to_images, E)
    low = tl.where(of_images, 0, N)
    targets = tl.where(of_images, N, M)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # index of an entry, and of a target
    entry = begin + at
    target = (low + at)[:, None]
    own = tl.load(key + entry, mask=entry < stop, other=0)
    beyond = tl.cast(N, key.dtype.element_ty) + M + 1  # greater than every key
    place = tl.zeros((BLOCK,), tl.int32)
    start = tl.zeros((BLOCK,), tl.int32)
    for chunk in range(begin, stop, CHUNK):
        other = chunk + tl.arange(0, CHUNK)
        keys = tl.load(key + other, mask=other < stop, other=beyond)[None, :]
        same = (keys == own[:, None]) & (other[None, :] < entry[:, None])
        place += tl.sum(((keys < own[:, None]) | same).to(tl.int32), 1)
        start += tl.sum((keys < target).to(tl.int32), 1)
    tl.store(ordered + begin + place, own, mask=entry < stop)
    tl.store(order + begin + place, entry, mask=entry < stop)
    tl.store(first + low + at, begin + start, mask=at < targets)
    tl.store(end + low + at - 1, begin + start, mask=(at > 0) & (at <= targets))


def sort_by_target(entries: Entries, N: int, M: int) -> tuple[Tensor, Tensor, bool]:
    """Return sorted targets, their entry indices, and whether `first` and `end` are set."""
    E, to_images = entries.key.shape[0], entries.to_images
    most = max(to_images, E - to_images)
    if most > _FEW:
        return *entries.key.sort(stable=True), False
    order, ordered = torch.empty((2, E), dtype=entries.key.dtype, device=entries.key.device)
    _sort_kernel[(cdiv(max(most, N + 1, M + 1), _BLOCK), 2)](
        entries.key, ordered, order, entries.first, entries.end, E, to_images, N, M,
        BLOCK=_BLOCK, CHUNK=256,
    )  # fmt: skip
    return ordered, order, True


@jit
def _by_target_kernel(
    target,  # [M]
    key,
    source,
    weight,
    own_source,
    own_weight,
    first,
    end,
    N,
    M,
    ROWS: tl.constexpr,
):
    m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    tl.store(first + m, tl.zeros_like(m).to(first.dtype.element_ty), mask=m < N + M)
    tl.store(end + m, tl.zeros_like(m).to(end.dtype.element_ty), mask=m < N + M)
    to = tl.load(target + m, mask=m < M, other=-1)
    to = tl.where(to >= 0, to, tl.cast(N, tl.int64) + M)
    one = tl.full(m.shape, 1.0, weight.dtype.element_ty)
    set_entry(key, source, weight, m, to, m, one, m < M)


def by_target(target: Tensor, rows: Tensor, N: int) -> Entries:
    """Return entries that add row m of rows to row target[m] of N; a negative target is skipped."""
    M = rows.shape[0]
    entries = entries_empty(rows, N, M, M, 0)
    _by_target_kernel[(cdiv(N + M, 128),)](
        target.contiguous(), **entries.arguments(), N=N, M=M, ROWS=128
    )
    return entries
