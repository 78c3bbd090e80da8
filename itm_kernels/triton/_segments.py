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
    total = tl.zeros((TARGETS, DEPTH), DTYPE)
    for step in range(0, tl.max(last - first, 0), ENTRIES):
        entry = first[:, None] + step + tl.arange(0, ENTRIES)[None, :]
        here = entry < last[:, None]
        number = tl.load(order + entry, mask=here, other=0)
        row = tl.load(source + number, mask=here, other=0)
        factor = tl.load(weight + number, mask=here, other=0.0)
        at = row[:, :, None] * stride + depth[None, None, :]
        inside = here[:, :, None] & (depth < D)[None, None, :]
        chunk = tl.load(rows + at, mask=inside, other=0.0).to(DTYPE)
        total += tl.sum(chunk * factor[:, :, None], 1)
    at = target[:, None] * D + depth[None, :]
    tl.store(out + at, total, mask=(target < T)[:, None] & (depth < D)[None, :])


def sum_rows(
    target: Tensor,  # [E] int64; a negative one takes no part
    source: Tensor,  # [E] int64
    weight: Tensor,  # [E] in the precision that rows are computed in
    rows: Tensor,  # [S, D]
    targets: int,
) -> Tensor:  # [targets, D] in the dtype of rows
    """Return, for every target, the sum of weight * rows[source] over its entries in order."""
    ordered, order = target.sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(targets + 1, device=target.device))
    rows = rows_of(rows)
    D = rows.shape[1]
    out = torch.empty((targets, D), dtype=stored_dtype(rows.dtype), device=rows.device)
    _sum_kernel[(triton.cdiv(targets, _TARGETS), triton.cdiv(D, _DEPTH))](
        rows, order, starts, source, weight, out, rows.stride(0), targets, D,
        TARGETS=_TARGETS, ENTRIES=_ENTRIES, DEPTH=_DEPTH,
    )  # fmt: skip
    return out.to(rows.dtype)


def send(
    i: Tensor,  # [E] int64 row of image
    j: Tensor,  # [E] int64 row of text
    weight: Tensor,  # [E] gradient of their score; an entry with a negative row takes no part
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
) -> tuple[Tensor, Tensor]:
    """Send the gradient of single scores to the two rows that made each."""
    none = (i < 0) | (j < 0)
    i, j = i.masked_fill(none, -1), j.masked_fill(none, -1)
    return (
        sum_rows(i, j, weight, text, image.shape[0]),
        sum_rows(j, i, weight, image, text.shape[0]),
    )
