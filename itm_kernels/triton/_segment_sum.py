"""Deterministic segment sums: gradients that are weighted sums of a few rows each.

A row of one side accumulates weight * row of the other side (`_coo_entries`). Entries are sorted by
target and one program sums each target; atomics would add in an arbitrary order. If one row is the
target of most entries, chunks of them are summed by separate programs first, so that no program
adds more than N / 128 rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._coo_entries import Entries, by_target, sort_by_target
from itm_kernels.triton._launch import cdiv, jit, next_power_of_2
from itm_kernels.triton._operands import INTERPRETED, contiguous_rows, stored_dtype
from itm_kernels.triton._score_tiles import wide_type
from itm_kernels.triton._tile_table import architecture

_ENTRIES = 8  # entries of a target per iteration
_CHUNK = 128  # entries summed by a separate program if they all have one target
_TARGETS = 32 if INTERPRETED else 1  # the interpreter's time is per program
_MOST_DEPTH = 1024


@triton.jit
def _sum_terms(rows, stride, source, weight, index, here, depth, D):
    """Return the sum `[T, DEPTH]` of weight * row over the entries at indices `[T, E]`."""
    DTYPE: tl.constexpr = wide_type(rows.dtype)
    row = tl.load(source + index, mask=here, other=-1).to(tl.int64)
    here = row >= 0
    factor = tl.load(weight + index, mask=here, other=0.0)
    at = row[:, :, None] * stride + depth[None, None, :]
    inside = here[:, :, None] & (depth < D)[None, None, :]
    chunk = tl.load(rows + at, mask=inside, other=0.0).to(DTYPE)
    return tl.sum(chunk * factor[:, :, None], 1).to(tl.float64)


@jit
def _chunks_kernel(
    image,
    text,
    ordered,  # [E]
    order,  # [E]
    source,
    weight,
    first,  # [N + M]
    end,
    partial,  # [E / CHUNK, D]
    image_stride,
    text_stride,
    E,
    N,
    T,  # N + M
    D,
    CHUNK: tl.constexpr,
    ENTRIES: tl.constexpr,
    DEPTH: tl.constexpr,
    SPANS: tl.constexpr,  # find the start and end of every target
):
    """Sum every chunk of sorted entries that has a single target."""
    begin = tl.program_id(0).to(tl.int64) * CHUNK
    if SPANS:
        at = begin + tl.arange(0, CHUNK)
        inside = (at < E) & (tl.program_id(1) == 0)
        own = tl.load(ordered + at, mask=inside, other=T)
        before = tl.load(ordered + at - 1, mask=inside & (at > 0), other=-1)
        after = tl.load(ordered + at + 1, mask=inside & (at + 1 < E), other=T)
        tl.store(first + own, at.to(first.dtype.element_ty), mask=(own < T) & (own != before))
        tl.store(end + own, (at + 1).to(end.dtype.element_ty), mask=(own < T) & (own != after))
    if begin + CHUNK <= E:
        target = tl.load(ordered + begin)
        if (target < T) & (target == tl.load(ordered + begin + CHUNK - 1)):
            depth = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
            total = tl.zeros((1, DEPTH), tl.float64)
            for step in range(0, CHUNK, ENTRIES):
                e = (begin + step + tl.arange(0, ENTRIES))[None, :]
                index = tl.load(order + e)
                here = index >= 0
                if target < N:
                    total += _sum_terms(text, text_stride, source, weight, index, here, depth, D)
                else:
                    total += _sum_terms(image, image_stride, source, weight, index, here, depth, D)
            sums = tl.program_id(0).to(tl.int64) * D + depth
            total = tl.reshape(total, (DEPTH,))
            tl.store(partial + sums, total.to(partial.dtype.element_ty), mask=depth < D)


@triton.jit
def _target_sums(
    rows,  # rows of the other side
    stride,
    base,  # [targets, D] initial values, instead of own terms
    out,  # [targets, D]
    order,
    source,
    weight,
    own_source,
    own_weight,
    first,
    end,
    partial,
    low,  # index of the first target
    targets,
    D,
    TARGETS: tl.constexpr,
    ENTRIES: tl.constexpr,
    DEPTH: tl.constexpr,
    CHUNK: tl.constexpr,
    HAS_BASE: tl.constexpr,
):
    """Write the sums of a program's targets: base or own terms, entries, and sums of chunks."""
    target = tl.program_id(0).to(tl.int64) * TARGETS + tl.arange(0, TARGETS)
    there = target < targets
    depth = tl.program_id(2) * DEPTH + tl.arange(0, DEPTH)
    at = target[:, None] * D + depth[None, :]
    inside = there[:, None] & (depth < D)[None, :]
    total = tl.zeros((TARGETS, DEPTH), tl.float64)  # most entries may have one target: a long sum
    if HAS_BASE:
        total += tl.load(base + at, mask=inside, other=0.0).to(tl.float64)
    else:
        two = 2 * (low + target)[:, None] + tl.arange(0, 2)[None, :]
        both = tl.broadcast_to(there[:, None], two.shape)
        total += _sum_terms(rows, stride, own_source, own_weight, two, both, depth, D)
    begin = tl.load(first + low + target, mask=there, other=0).to(tl.int64)
    stop = tl.load(end + low + target, mask=there, other=0).to(tl.int64)
    chunk = tl.zeros_like(begin)
    chunks = tl.zeros_like(begin)
    if CHUNK > 0:
        chunk = (begin + CHUNK - 1) // CHUNK
        chunks = tl.maximum(stop // CHUNK - chunk, 0)
    # Skip complete chunks; entries continue after them.
    left_out = chunks * CHUNK
    count = stop - begin - left_out
    for step in range(0, tl.max(count, 0), ENTRIES):
        e = step + tl.arange(0, ENTRIES)[None, :]
        here = e < count[:, None]
        e = begin[:, None] + e
        e = tl.where(e >= (chunk * CHUNK)[:, None], e + left_out[:, None], e)
        index = tl.load(order + e, mask=here, other=0)
        total += _sum_terms(rows, stride, source, weight, index, here, depth, D)
    if CHUNK > 0:
        for step in range(0, tl.max(chunks, 0), ENTRIES):
            c = step + tl.arange(0, ENTRIES)[None, :]
            read = (c < chunks[:, None])[:, :, None] & (depth < D)[None, None, :]
            c = (chunk[:, None] + c)[:, :, None] * D + depth[None, None, :]
            sums = tl.load(partial + c, mask=read, other=0.0)
            total += tl.sum(sums, 1).to(tl.float64)
    total = total.to(wide_type(rows.dtype))
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


@jit
def _gradients_kernel(
    image,
    text,
    base,  # [N, D]
    grad_image,  # [N, D]
    grad_text,  # [M, D]
    order,
    source,
    weight,
    own_source,
    own_weight,
    first,
    end,
    partial,
    image_stride,
    text_stride,
    N,
    M,
    D,
    TARGETS: tl.constexpr,
    ENTRIES: tl.constexpr,
    DEPTH: tl.constexpr,
    CHUNK: tl.constexpr,  # 0: no chunks were summed
    ONLY_IMAGES: tl.constexpr,  # targets are images with a base and no own terms
):
    if ONLY_IMAGES or tl.program_id(1) == 0:
        _target_sums(
            text, text_stride, base, grad_image, order, source, weight, own_source, own_weight,
            first, end, partial, 0, N, D, TARGETS, ENTRIES, DEPTH, CHUNK, ONLY_IMAGES,
        )  # fmt: skip
    else:
        _target_sums(
            image, image_stride, base, grad_text, order, source, weight, own_source, own_weight,
            first, end, partial, N, M, D, TARGETS, ENTRIES, DEPTH, CHUNK, False,
        )  # fmt: skip


def segment_sum(
    entries: Entries,
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    base: Tensor | None = None,  # [N, D] initial value of images; texts then get no gradient
) -> tuple[Tensor, Tensor]:
    """Return the gradients of image and text, each in its dtype."""
    (N, D), M, E = image.shape, text.shape[0], entries.key.shape[0]
    image, text = contiguous_rows(image), contiguous_rows(text)
    grads = [
        torch.empty(shape, dtype=stored_dtype(side.dtype), device=side.device)
        for side, shape in ((image, (N, D)), (text, (M if base is None else 0, D)))
    ]
    depth = min(next_power_of_2(D), _MOST_DEPTH)
    depths = cdiv(D, depth)
    # 4 warps: 2 spills on sm_100; 8 warps: 7 on sm_80.
    warps = max(1, min(8 if architecture() == 100 else 4, depth // 128))
    options = {"ENTRIES": _ENTRIES, "DEPTH": depth, "num_warps": warps}
    partial, chunk = entries.weight, 0
    ordered, order, known = sort_by_target(entries, N, M)
    if not known or E > 2 * _CHUNK:
        chunk, chunks = _CHUNK, cdiv(E, _CHUNK)
        partial = entries.weight.new_empty((E // chunk, D))
        _chunks_kernel[(chunks, depths)](
            image, text, ordered, order, entries.source, entries.weight, entries.first,
            entries.end, partial, image.stride(0), text.stride(0), E, N, N + M, D,
            CHUNK=chunk, SPANS=not known, **options,
        )  # fmt: skip
    # Unused arguments get a placeholder.
    sides = (max(N, M), 2) if base is None else (N, 1)
    _gradients_kernel[(cdiv(sides[0], _TARGETS), sides[1], depths)](
        image, text, order if base is None else base, *grads, order, entries.source, entries.weight,
        entries.own_source, entries.own_weight, entries.first, entries.end, partial,
        image.stride(0), text.stride(0), N, M, D, TARGETS=_TARGETS, CHUNK=chunk,
        ONLY_IMAGES=base is not None, **options,
    )  # fmt: skip
    return grads[0].to(image.dtype), grads[1].to(text.dtype)


def add_rows(
    base: Tensor,  # [N, D]
    rows: Tensor,  # [M, D] in the same precision
    target: Tensor,  # [M] int64; negative targets are skipped
    like: Tensor,  # [N, D]
) -> Tensor:  # [N, D] in the dtype of like
    """Return base plus the sum of the rows of every target, added in order."""
    return segment_sum(by_target(target, rows, base.shape[0]), like, rows, base)[0]
