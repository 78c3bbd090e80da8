"""What rows receive from rows of the other side, sorted by who receives it.

Entries that any row may receive are sorted by target: few of them by counting, in one launch, many
by the library. Terms at a fixed place, a pair's other row or the row that it mined, need no sort.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._operands import INTERPRETED, wide_dtype

# Entries of a side that are sorted by comparing all with all, in one launch instead of the ten of
# a sort: at this many it is 10^8 comparisons, and takes as long as those.
_FEW = 8192
_BLOCK = 256 if INTERPRETED else 16


class Entries(NamedTuple):
    """What every row of image `[N, D]` and text `[M, D]` receives from rows of the other side.

    A target is a row of image, or N + a row of text; N + M is none.
    """

    key: Tensor  # [E] targets
    source: Tensor  # [E] row of the other side
    weight: Tensor  # [E]
    own_source: Tensor  # [N + M, 2] row of the other side, -1 for none
    own_weight: Tensor  # [N + M, 2]
    first: Tensor  # [N + M] zeros: where a target's entries begin, once they are sorted
    end: Tensor  # [N + M] zeros: where they end
    to_images: int  # the first entries, which go to images; the others go to texts

    def arguments(self) -> dict[str, Any]:
        """Return the tensors that a kernel fills."""
        return {name: getattr(self, name) for name in self._fields[:-1]}


def entries_empty(image: Tensor, N: int, M: int, to_images: int, to_texts: int) -> Entries:
    """Return entries for a kernel to fill, in 32 bits where that is enough."""
    E, T = to_images + to_texts, N + M
    number = torch.int32 if max(E, 2 * T) < 2**31 - 1 else torch.int64

    def empty(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=image.device)

    wide = wide_dtype(image)
    first, end = empty(number, 2, T)
    own = empty(number, T, 2), empty(wide, T, 2)
    return Entries(empty(number, E), empty(number, E), empty(wide, E), *own, first, end, to_images)


@triton.jit
def set_entry(key, source, weight, e, target, sent, share, mask):
    """Write entries number e."""
    tl.store(key + e, target.to(key.dtype.element_ty), mask=mask)
    tl.store(source + e, sent.to(source.dtype.element_ty), mask=mask)
    tl.store(weight + e, share, mask=mask)


@triton.jit
def set_own(own_source, own_weight, target, which, sent, share, mask):
    """Write a target's own term of two; a negative row is none."""
    at = 2 * target.to(tl.int64) + which
    tl.store(own_source + at, sent.to(own_source.dtype.element_ty), mask=mask)
    tl.store(own_weight + at, share, mask=mask)


@triton.jit
def _sort_kernel(
    key,  # [E]
    ordered,  # [E] keys in order
    order,  # [E] numbers of their entries
    first,  # [N + M]
    end,  # [N + M]
    E,
    to_images,
    N,
    M,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Sort few entries by counting: an entry's place is the number of those before it."""
    of_images = tl.program_id(1) == 0
    begin = tl.where(of_images, 0, to_images)
    stop = tl.where(of_images, to_images, E)
    low = tl.where(of_images, 0, N)
    targets = tl.where(of_images, N, M)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # numbers of entries, and of targets
    entry = begin + at
    target = (low + at)[:, None]
    own = tl.load(key + entry, mask=entry < stop, other=0)
    beyond = tl.cast(N, key.dtype.element_ty) + M + 1  # above every target, and none
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
    """Return sorted targets, their entries, and whether the spans of targets are known."""
    E, to_images = entries.key.shape[0], entries.to_images
    most = max(to_images, E - to_images)
    if most > _FEW:
        return *entries.key.sort(stable=True), False
    order, ordered = torch.empty((2, E), dtype=entries.key.dtype, device=entries.key.device)
    _sort_kernel[(triton.cdiv(max(most, N + 1, M + 1), _BLOCK), 2)](
        entries.key, ordered, order, entries.first, entries.end, E, to_images, N, M,
        BLOCK=_BLOCK, CHUNK=256,
    )  # fmt: skip
    return ordered, order, True


@triton.jit
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
    """Return entries that send row m of rows to target m of N; a negative one takes no part."""
    M = rows.shape[0]
    entries = entries_empty(rows, N, M, M, 0)
    _by_target_kernel[(triton.cdiv(N + M, 128),)](
        target.contiguous(), **entries.arguments(), N=N, M=M, ROWS=128
    )
    return entries
