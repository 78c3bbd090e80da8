"""The softmax of anchors over the members of every cluster, and its gradients.

Scores of a block of anchors are in memory, because a softmax needs its whole cluster. All other
N x M quantities exist one tile at a time.
"""

import triton
import triton.language as tl

from itm_kernels.triton._clusters import anchor_and_cluster, in_cluster
from itm_kernels.triton._launch import jit
from itm_kernels.triton._member_sums import split_dot
from itm_kernels.triton._score_tiles import (
    float_argument,
    program_tile,
    scale_scores,
    score_tile,
    wide_type,
)


@jit
def logits_kernel(
    operands,  # `ScoreOperands`
    offset,  # [M] |y|^2
    out,  # [R, M] for rows of x from `first` on
    first,
    R,
    M,
    scale: tl.float64,
):
    """Write the logits (x . y - |y|^2 / 2) * scale of a block of rows."""
    ROWS: tl.constexpr = operands.ROWS
    COLUMNS: tl.constexpr = operands.COLUMNS
    r, m, _, _ = program_tile(tl.program_id(0), ROWS, COLUMNS, R, M)
    rows, columns = first + tl.minimum(r, R - 1), tl.minimum(m, M - 1)
    # The scale multiplies the truncation of scores: 5e-6 of a vector at N = 4096, D = 1024 in fp32.
    scores = score_tile(operands, rows, columns, ROUNDED=operands.PARTS > 1)
    scores = scale_scores(operands, scores, rows, columns)
    logits = (scores - tl.load(offset + columns)[None, :] / 2) * float_argument(scale, scores.dtype)
    row = out + r.to(tl.int64) * M
    tl.store(row[:, None] + m[None, :], logits, mask=(r < R)[:, None] & (m < M)[None, :])


@triton.jit
def _own_columns(at, m, end, n, k, assignment, row_ids, column_ids, PER_ANCHOR, HAS_IDS):
    """Mark the columns `[P, C]` in every row's cluster, and those whose id differs as well."""
    inside = (m < end)[None, :]
    own = inside & (n >= 0)[:, None]
    if PER_ANCHOR:
        own = tl.load(assignment + at, mask=inside, other=-1) == k[:, None]
    on = own
    if HAS_IDS:
        column_id = tl.load(column_ids + m, mask=m < end, other=0)
        on = own & (tl.load(row_ids + n)[:, None] != column_id[None, :])
    return own, on


@jit
def softmax_kernel(
    logits,  # [R, M], overwritten where a column is in a cluster
    valid,  # [R, K]
    starts,
    assignment,  # [R, M] int32
    row_ids,  # [R]
    column_ids,  # [M]
    P,
    tiles,
    K,
    M,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PER_ANCHOR: tl.constexpr,
    HAS_IDS: tl.constexpr,
):
    """Replace logits by their softmax over every cluster; columns with the row's id get 0."""
    group = tl.program_id(0) // tiles
    p = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)
    n, k = anchor_and_cluster(p, P, K, group, PER_ANCHOR)
    begin, end = tl.load(starts + group), tl.load(starts + group + 1)
    DTYPE: tl.constexpr = logits.dtype.element_ty
    largest = tl.full((ROWS,), float("-inf"), DTYPE)
    total = tl.full((ROWS,), 0, tl.float64)  # a long sum: one term per chunk of the cluster
    any_ = tl.full((ROWS,), 0, tl.int32)
    for first in range(begin, end, COLUMNS):
        m = first + tl.arange(0, COLUMNS)
        at = n[:, None] * M + m[None, :]
        _, on = _own_columns(at, m, end, n, k, assignment, row_ids, column_ids, PER_ANCHOR, HAS_IDS)
        value = tl.load(logits + at, mask=on, other=float("-inf"))
        # The maximum excludes NaN, the sum includes it.
        before = largest
        largest = tl.maximum(largest, tl.max(tl.where(value == value, value, float("-inf")), 1))
        shift = tl.where(largest == float("-inf"), 0.0, largest)
        # exp in fp32: in fp64 it takes tens of instructions at 1/64 of the rate on many GPUs.
        total *= tl.exp(before - shift).to(tl.float64)
        total += tl.sum(tl.exp(value - shift[:, None]), 1).to(tl.float64)
        any_ = tl.maximum(any_, tl.max(on.to(tl.int32), 1))
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    tl.store(valid + n * K + k, any_ != 0, mask=p < P)
    total = total.to(DTYPE)
    # If all members are infinitely far the softmax is 0 / 0; without members the divisor is 1.
    total = tl.where(total == 0, tl.where(any_ != 0, float("nan"), 1.0), total)
    # Reload instead of keeping both in registers.
    begin, end = tl.load(starts + group), tl.load(starts + group + 1)
    for first in range(begin, end, COLUMNS):
        m = first + tl.arange(0, COLUMNS)
        at = n[:, None] * M + m[None, :]
        own, on = _own_columns(
            at, m, end, n, k, assignment, row_ids, column_ids, PER_ANCHOR, HAS_IDS
        )
        value = tl.load(logits + at, mask=on, other=float("-inf"))
        probability = tl.exp(value - shift[:, None]) / total[:, None]
        tl.store(logits + at, tl.where(on, probability, 0.0), mask=own & (p < P)[:, None])


@jit
def softmax_gradient_kernel(
    softmax,  # [R, M]
    grad,  # [R, M]
    out,  # [R, M], already 0 where a column is in no cluster
    largest,  # [lists, P] largest |out| of a row of a list that is not NaN, with BOUND
    starts,
    assignment,  # [R, M] int32
    P,
    tiles,
    K,
    M,
    scale: tl.float64,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PER_ANCHOR: tl.constexpr,
    BOUND: tl.constexpr,
):
    """Write the gradient of the scores: scale * softmax * (grad - softmax . grad)."""
    group = tl.program_id(0) // tiles
    p = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)
    n, k = anchor_and_cluster(p, P, K, group, PER_ANCHOR)
    begin, end = tl.load(starts + group), tl.load(starts + group + 1)
    DTYPE: tl.constexpr = softmax.dtype.element_ty
    along = tl.full((ROWS,), 0, tl.float64)
    for first in range(begin, end, COLUMNS):
        m = first + tl.arange(0, COLUMNS)
        at = n[:, None] * M + m[None, :]
        own = in_cluster(at, m, end, p, P, k, assignment, PER_ANCHOR)
        probability = tl.load(softmax + at, mask=own, other=0.0)
        product = probability * tl.load(grad + at, mask=own, other=0.0).to(DTYPE)
        along += tl.sum(product, 1).to(tl.float64)
    along = along.to(DTYPE)
    bound = tl.full((ROWS,), 0, DTYPE)
    for first in range(begin, end, COLUMNS):
        m = first + tl.arange(0, COLUMNS)
        at = n[:, None] * M + m[None, :]
        own = in_cluster(at, m, end, p, P, k, assignment, PER_ANCHOR)
        probability = tl.load(softmax + at, mask=own, other=0.0)
        value = tl.load(grad + at, mask=own, other=0.0).to(DTYPE) - along[:, None]
        value *= probability * float_argument(scale, DTYPE)
        tl.store(out + at, value, mask=own)
        if BOUND:
            size = tl.where(own & (value == value), tl.abs(value), 0.0)
            bound = tl.maximum(bound, tl.max(size, 1))
    if BOUND:
        tl.store(largest + tl.cast(group, tl.int64) * P + p, bound, mask=p < P)


@jit
def weights_gradient_kernel(
    operands,  # `ScoreOperands`
    out,  # [R, M]
    span_cluster,
    span_first,
    span_end,
    assignment,  # [R, M] int32
    T,
    P,
    K,
    M,
    PER_ANCHOR: tl.constexpr,
):
    """Write the gradient of the weights: every member times the gradient of its vector."""
    ROWS: tl.constexpr = operands.ROWS
    COLUMNS: tl.constexpr = operands.COLUMNS
    tile = tl.program_id(0) % T
    p = (tl.program_id(0) // T) * ROWS + tl.arange(0, ROWS)
    first, end = tl.load(span_first + tile), tl.load(span_end + tile)
    if first < end:
        group = tl.load(span_cluster + tile)
        n, k = anchor_and_cluster(p, P, K, group, PER_ANCHOR)
        m = first + tl.arange(0, COLUMNS)
        scores = score_tile(operands, n * K + k, tl.minimum(m, end - 1))
        at = n[:, None] * M + m[None, :]
        own = in_cluster(at, m, end, p, P, k, assignment, PER_ANCHOR)
        tl.store(out + at, scores, mask=own)


@jit
def members_gradient_kernel(
    weights,  # [R, M]
    rows,  # [parts, R * K, D] gradient of every vector
    out,  # [M, D], added to
    span_cluster,
    span_first,
    span_end,
    assignment,  # [R, M] int32
    row_stride,
    row_part,
    P,
    K,
    M,
    D,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    TERMS: tl.constexpr,
    PRECISION: tl.constexpr,
    PER_ANCHOR: tl.constexpr,
):
    """Add the gradient of the members: weight * gradient, over all vectors with the member."""
    tile = tl.program_id(0)
    first, end = tl.load(span_first + tile), tl.load(span_end + tile)
    if first < end:
        group = tl.load(span_cluster + tile)
        m = first + tl.arange(0, ROWS)
        d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        DTYPE: tl.constexpr = wide_type(rows.dtype)
        total = tl.full((ROWS, COLUMNS), 0, DTYPE)
        depth = tl.arange(0, DEPTH)
        for part in tl.static_range(PARTS - 1, -1, -1):
            for start in range(0, P, DEPTH):
                p = start + depth
                n = p // K if PER_ANCHOR else p
                k = p % K if PER_ANCHOR else group
                at = n[None, :].to(tl.int64) * M + m[:, None]
                inside = (p < P)[None, :] & (m < end)[:, None]
                weight = tl.load(weights + at, mask=inside, other=0.0).to(DTYPE)
                if PER_ANCHOR:
                    own = tl.load(assignment + at, mask=inside, other=-1) == k[None, :]
                    weight = tl.where(own, weight, 0.0)
                row_at = rows + part * row_part + (n * K + k).to(tl.int64) * row_stride
                here = (p < P)[:, None]
                if WIDTH % COLUMNS != 0:
                    here &= (d < WIDTH)[None, :]
                row = tl.load(row_at[:, None] + d[None, :], mask=here, other=0.0)
                terms: tl.constexpr = 0 if TERMS == 0 else TERMS - part
                total = split_dot(total, weight, row, terms, PRECISION)
        at = out + m[:, None].to(tl.int64) * D + d[None, :]
        inside = (m < end)[:, None] & (d < D)[None, :]
        tl.store(at, tl.load(at, mask=inside, other=0.0) + total, mask=inside)
