"""k-means++: a launch draws one row per problem and computes the distances of all rows from it.

Rows are split over programs. Every program stores the best draw among its rows, and every program
of the next launch selects the best of those, so that no launch needs a grid-wide barrier.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import cdiv, jit, next_power_of_2
from itm_kernels.triton._operands import contiguous_rows, wide_dtype
from itm_kernels.triton._score_tiles import (
    difference_tile,
    maximum_with_index,
    no_key,
    ordered_key,
    wide_type,
)

_ROWS = 64  # rows per program
_DIFFERENCES = 4096  # differences in registers: rows x problems x elements of D
_MOST_PROBLEMS = 16  # problems per program
_MOST_BLOCKS = 64  # blocks of rows whose draws are compared per iteration


@triton.jit
def _drawn(
    keys,  # `ordered_key` of the best draw of every block
    found,  # its row
    sums,  # sum of the distances of every block
    place,  # [P] int64 offset of a problem's blocks
    blocks,
    BLOCKS: tl.constexpr,
):
    """Return the rows `[P]` drawn over all blocks, and whether any distance is positive."""
    KEY: tl.constexpr = keys.dtype.element_ty
    best = tl.full((place.shape[0],), no_key(KEY), KEY)
    row = tl.zeros((place.shape[0],), tl.int32)
    total = tl.zeros((place.shape[0],), sums.dtype.element_ty)
    for first in range(0, blocks, BLOCKS):
        block = (first + tl.arange(0, BLOCKS))[None, :]
        at = place[:, None] + block
        inside = (block < blocks) & (place[:, None] >= 0)
        key, index = maximum_with_index(
            tl.load(keys + at, mask=inside, other=no_key(KEY)),
            tl.load(found + at, mask=inside, other=0),
            1,
        )
        row = tl.where(key > best, index, row)
        best = tl.maximum(best, key)
        total += tl.sum(tl.load(sums + at, mask=inside, other=0.0), 1)
    return row, total > 0


@jit(do_not_specialize=["k"])
def _draw_kernel(
    x,
    member,  # [B, M]
    draws,  # [K, M]
    distance,  # [B, M]
    keys,  # [B, 2, blocks], of even and of odd launches
    found,
    sums,
    chosen,  # [B, K] int32
    stride,
    M,
    B,
    K,
    D,
    blocks,
    k,  # index of the launch, which completes draw k - 1 and starts draw k
    ROWS: tl.constexpr,
    PROBLEMS: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCKS: tl.constexpr,
    HAS_MEMBER: tl.constexpr,
):
    """Complete the previous draw, update distances with its row, and start the next draw."""
    DTYPE: tl.constexpr = wide_type(x.dtype)
    own_block = tl.program_id(0) % blocks
    p = (tl.program_id(0) // blocks) * PROBLEMS + tl.arange(0, PROBLEMS)
    problem = tl.minimum(p, B - 1).to(tl.int64)
    m = own_block * ROWS + tl.arange(0, ROWS)
    at = problem[None, :] * M + m[:, None]
    inside = (m < M)[:, None] & (p < B)[None, :]
    nearest = tl.where(inside, 1.0, 0.0).to(DTYPE)
    if HAS_MEMBER:
        is_member = tl.load(member + at, mask=inside, other=0) != 0
    else:
        is_member = inside
    if k > 0:
        before = (2 * problem + (k + 1) % 2) * blocks
        row, positive = _drawn(keys, found, sums, before, blocks, BLOCKS)
        if k > 1:
            # If all distances are 0 or one is NaN, the first centroid is repeated.
            row = tl.where(positive, row, tl.load(chosen + problem * K))
        if own_block == 0:
            tl.store(chosen + problem * K + k - 1, row, mask=p < B)
        nearest = difference_tile(x, x, stride, stride, D, tl.minimum(m, M - 1), row, DEPTH, True)
    nearest = tl.where(is_member, nearest, 0.0)
    if k < K:
        if k > 1:
            earlier = tl.load(distance + at, mask=inside, other=0.0)
            # A distance that is NaN stays NaN.
            nearest = tl.where((nearest < earlier) | (nearest != nearest), nearest, earlier)
        if k > 0:
            tl.store(distance + at, nearest, mask=inside)
        draw = tl.load(draws + k.to(tl.int64) * M + m, mask=m < M, other=1.0)
        chance = ordered_key(nearest / draw.to(DTYPE)[:, None])
        chance = tl.where(inside, chance, no_key(DTYPE))
        key, index = maximum_with_index(chance, m[:, None], 0)
        to = (2 * problem + k % 2) * blocks + own_block
        tl.store(keys + to, key, mask=p < B)
        tl.store(found + to, index, mask=p < B)
        tl.store(sums + to, tl.sum(nearest, 0), mask=p < B)


def kmeans_plus_plus(
    x: Tensor,  # [M, D]
    member: Tensor | None,  # [B, M]
    draws: Tensor,  # [K, M]
) -> Tensor:  # [B, K, D]
    """Return initial centroids: members drawn in proportion to their squared distance so far."""
    (M, D), K = x.shape, draws.shape[0]
    B = 1 if member is None else member.shape[0]
    dtype = wide_dtype(x)
    rows = contiguous_rows(x)
    blocks = cdiv(M, _ROWS)
    problems = min(next_power_of_2(B), _MOST_PROBLEMS)
    distance = torch.empty((B, M), dtype=dtype, device=x.device)
    sums = distance.new_empty((B, 2, blocks))
    found = torch.empty_like(sums, dtype=torch.int32)
    keys = torch.empty_like(sums, dtype=torch.int64 if dtype == torch.float64 else torch.int32)
    chosen = found.new_empty((B, K))
    arguments = (
        rows, distance if member is None else member.contiguous(), draws.float().contiguous(),
        distance, keys, found, sums, chosen, rows.stride(0), M, B, K, D, blocks,
    )  # fmt: skip
    for k in range(K + 1):
        _draw_kernel[(blocks * cdiv(B, problems),)](
            *arguments, k, ROWS=_ROWS, PROBLEMS=problems, DEPTH=_DIFFERENCES // _ROWS // problems,
            BLOCKS=min(next_power_of_2(blocks), _MOST_BLOCKS),
            HAS_MEMBER=member is not None, num_warps=4,
        )  # fmt: skip
    return x.index_select(0, chosen.view(-1)).view(B, K, D).to(dtype)
