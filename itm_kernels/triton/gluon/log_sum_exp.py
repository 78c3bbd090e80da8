"""Log-sum-exp of the rows and columns of every tile on sm_90, as stored by `triton.log_sum_exp`.

Rows and columns share one exponential per logit, relative to the maximum of a warpgroup's 64 x 256
logits. Warps store the maxima and sums of their 16 rows for every column, and a pass over 4 x 256
values combines them.

Never run on a GPU; verified as `hardest.py` is.
"""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from itm_kernels.triton._launch import cdiv
from itm_kernels.triton._operands import Operands
from itm_kernels.triton._positives import id_arguments
from itm_kernels.triton.gluon._descriptors import arguments, grid
from itm_kernels.triton.gluon._exponentials import (
    INF,
    NOBODY,
    OUTSIDE,
    SPREAD,
    exp,
    finite_or,
    logarithm,
    masked_logits,
    shift_of,
    store_sums,
)
from itm_kernels.triton.gluon._pipeline import (
    COLUMNS,
    CONSUMER_REGISTERS,
    HALF,
    PRODUCER_REGISTERS,
    ROWS,
    SCORES,
    WARPS,
    multiply,
    produce,
    products_per_score,
    program_tile,
    ring_of,
    tile_counts,
)


@gluon.jit
def _consume(
    ring, scratch, inputs, outputs, N, M, steps, FACTORS: gl.constexpr, HAS_IDS: gl.constexpr,
    OF_POSITIVE: gl.constexpr, half: gl.constexpr,
):  # fmt: skip
    highest, sums, ids, factors, owners = scratch
    highest = highest.index(half)
    sums = sums.index(half)
    ids = ids.index(half)
    factors = factors.index(half)
    owners = owners.index(half)
    own_scratch = (highest, sums, ids, factors, owners)
    scale, x_factor, y_factor, x_ids, y_ids, positive = inputs
    row, column, of_positive = outputs
    flat: gl.constexpr = gl.BlockedLayout([WARPS, 2], [1, 32], [1, WARPS], [1, 0])
    row_tiles, column_tiles = tile_counts(N, M)
    step = 0
    for tile in range(gl.program_id(0), row_tiles * column_tiles, gl.num_programs(0)):
        scores, step = multiply(ring, step, steps, half)
        row_tile, column_tile = program_tile(tile, row_tiles, column_tiles)
        first_row = row_tile * ROWS + half * HALF
        first_column = column_tile * COLUMNS
        n = first_row + gl.arange(0, HALF, layout=gl.SliceLayout(1, SCORES))
        c = first_column + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, flat))
        rows = gl.minimum(n, N - 1)
        columns = gl.minimum(c, M - 1)
        factor = gl.load(scale)
        if FACTORS:
            factors.store(gl.load(y_factor + columns))
            scores *= (factor * gl.load(x_factor + rows)).expand_dims(1)
        else:
            scores *= factor
        x_id = n
        if HAS_IDS:
            x_id = gl.load(x_ids + rows)
            ids.store(gl.load(y_ids + columns))
        owner = gl.where(c < M, NOBODY, OUTSIDE)
        here = False
        if OF_POSITIVE:
            of = gl.load(positive + columns)
            inside = (of >= first_row) & (of < gl.minimum(first_row + HALF, N)) & (c < M)
            owner = gl.where(inside, of.to(gl.int32), owner)
            here = gl.max(inside.to(gl.int32), 0) > 0
            if (row_tile == 0) & (half == 0):
                nobody = ((of < 0) | (of >= N)) & (c < M)
                gl.store(of_positive + c, of.to(gl.float32) * float("nan"), mask=nobody)
        owners.store(owner)
        masked = (first_row + HALF > N) | (first_column + COLUMNS > M) | HAS_IDS
        logits = masked_logits(
            scores, n, x_id, own_scratch, N, masked, here, 0, FACTORS, HAS_IDS, OF_POSITIVE
        )
        if OF_POSITIVE:
            if here:
                gl.store(of_positive + c, gl.sum(sums.load(flat), 0), mask=owner >= 0)
        logits = gl.convert_layout(logits, SCORES, assert_trivial=True)
        of_row = gl.max(logits, 1)
        of_warps = highest.load(flat)  # [WARPS, COLUMNS]
        of_column = gl.max(of_warps, 0)
        top = gl.max(finite_or(of_row, -INF), 0)
        top = gl.where(top == -INF, 0.0, top)
        lowest = gl.min(finite_or(of_row, INF), 0)
        lowest = gl.minimum(lowest, gl.min(finite_or(of_column, INF), 0))
        if top - lowest < SPREAD:
            # Divided by the exponential of the maximum, with the same bits as in the sum. A row
            # without a finite maximum is not rescaled.
            weights = exp(logits - top)
            row_sum = gl.sum(weights, 1) / exp(finite_or(of_row, top) - top)
            store_sums(weights, sums, 0, False)
            column_sum = gl.sum(sums.load(flat), 0) / exp(finite_or(of_column, top) - top)
        else:
            row_sum = gl.sum(exp(logits - shift_of(of_row).expand_dims(1)), 1)
            store_sums(logits, sums, 0, True)
            of_sums = sums.load(flat)
            own = shift_of(of_warps)
            lift = exp(own - finite_or(gl.broadcast(of_column.expand_dims(0), own)[0], own))
            column_sum = gl.sum(gl.where(of_sums == 0, 0.0, of_sums * lift), 0)
        at = gl.cast(column_tile, gl.int64) * N + n
        gl.store(row + at, shift_of(of_row), mask=n < N)
        at += gl.cast(column_tiles, gl.int64) * N
        gl.store(row + at, logarithm(row_sum), mask=n < N)
        at = gl.cast(2 * row_tile + half, gl.int64) * M + c
        written = (c < M) & (first_row < N)
        gl.store(column + at, shift_of(of_column), mask=written)
        at += gl.cast(gl.cdiv(N, HALF), gl.int64) * M
        gl.store(column + at, logarithm(column_sum), mask=written)


@gluon.jit
def _upper(
    x, y, ring, scratch, inputs, outputs, N, M, chunks, PARTS: gl.constexpr,
    FACTORS: gl.constexpr, HAS_IDS: gl.constexpr, OF_POSITIVE: gl.constexpr,
):  # fmt: skip
    steps = chunks * products_per_score(PARTS)
    _consume(ring, scratch, inputs, outputs, N, M, steps, FACTORS, HAS_IDS, OF_POSITIVE, 0)


@gluon.jit
def _lower(
    x, y, ring, scratch, inputs, outputs, N, M, chunks, PARTS: gl.constexpr,
    FACTORS: gl.constexpr, HAS_IDS: gl.constexpr, OF_POSITIVE: gl.constexpr,
):  # fmt: skip
    steps = chunks * products_per_score(PARTS)
    _consume(ring, scratch, inputs, outputs, N, M, steps, FACTORS, HAS_IDS, OF_POSITIVE, 1)


@gluon.jit
def _producer(
    x, y, ring, scratch, inputs, outputs, N, M, chunks, PARTS: gl.constexpr,
    FACTORS: gl.constexpr, HAS_IDS: gl.constexpr, OF_POSITIVE: gl.constexpr,
):  # fmt: skip
    produce(x, y, ring, N, M, chunks, PARTS)


@gluon.jit(do_not_specialize=["N", "M", "chunks"])
def _log_sum_exp_kernel(
    x,
    y,
    scale,  # []
    x_factor,
    y_factor,
    x_ids,
    y_ids,
    positive,  # [M]
    row,  # [2, column tiles, N]
    column,  # [2, halves of row tiles, M]
    of_positive,  # [M]
    N,
    M,
    chunks,
    PARTS: gl.constexpr,
    FACTORS: gl.constexpr,
    HAS_IDS: gl.constexpr,
    OF_POSITIVE: gl.constexpr,
):
    ring = ring_of(x, y)
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    highest = gl.allocate_shared_memory(gl.float32, [2, WARPS, COLUMNS], plain)
    sums = gl.allocate_shared_memory(gl.float32, [2, WARPS, COLUMNS], plain)
    ids = gl.allocate_shared_memory(gl.int64, [2, COLUMNS], line)
    factors = gl.allocate_shared_memory(gl.float32, [2, COLUMNS], line)
    owners = gl.allocate_shared_memory(gl.int32, [2, COLUMNS], line)
    scratch = (highest, sums, ids, factors, owners)
    inputs = (scale, x_factor, y_factor, x_ids, y_ids, positive)
    outputs = (row, column, of_positive)
    gl.warp_specialize(
        [
            (_upper, (
                x, y, ring, scratch, inputs, outputs, N, M, chunks, PARTS,
                FACTORS, HAS_IDS, OF_POSITIVE,
            )),
            (_lower, (
                x, y, ring, scratch, inputs, outputs, N, M, chunks, PARTS,
                FACTORS, HAS_IDS, OF_POSITIVE,
            )),
            (_producer, (
                x, y, ring, scratch, inputs, outputs, N, M, chunks, PARTS,
                FACTORS, HAS_IDS, OF_POSITIVE,
            )),
        ],
        [WARPS, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip


def tile_log_sums(
    both: Operands,
    scale: Tensor,  # []
    x_ids: Tensor | None,
    y_ids: Tensor | None,
    positive: Tensor | None,  # [M]
) -> tuple[Tensor, Tensor, Tensor]:  # [2, tiles, N], [2, tiles, M], [M] or [0]
    """Return the maximum and the log-sum-exp of the rows and columns of every tile."""
    N, M = both.shape
    row = scale.new_empty((2, cdiv(M, COLUMNS.value), N), dtype=torch.float32)
    column = row.new_empty((2, cdiv(N, HALF.value), M))
    of_positive = row.new_empty(0 if positive is None else M)
    x_factor, y_factor = both.x_factor, both.y_factor
    factors = x_factor is not None and x_factor.shape[0] > 0
    # Placeholders for tensors that the kernel does not read.
    _log_sum_exp_kernel[grid(both)](
        **arguments(both), **id_arguments(both, x_ids, y_ids), scale=scale,
        x_factor=x_factor if factors else row, y_factor=y_factor if factors else row,
        positive=row if positive is None else positive.contiguous(),
        row=row, column=column, of_positive=row if positive is None else of_positive,
        FACTORS=factors, OF_POSITIVE=positive is not None,
    )  # fmt: skip
    return row, column, of_positive
