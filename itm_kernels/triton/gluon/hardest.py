"""The hardest negative of every row and column of scores on sm_90, as stored by `_hardest.py`.

Values and indices are reduced separately. First the maximum of a row or column is computed; then
every score equal to it contributes a power of two, so that the sum of floats is a bit set, whose
lowest bit is the lowest index. Maxima use the ALU, which runs at half the rate of the adders.

`tests/backends/triton/test_gluon.py` interprets the kernel, and
`tools/compile_report/gluon_kernels.py` reads the machine code.
"""

import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from itm_kernels.triton._hardest import empty_tile_maxima
from itm_kernels.triton._operands import Operands
from itm_kernels.triton._positives import id_arguments
from itm_kernels.triton._tile_maxima import TileMaxima
from itm_kernels.triton.gluon._descriptors import arguments, grid
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
    without_dims,
)

_NO_KEY = gl.constexpr(-(2**31))  # below the key of every number
_KEY_OF_NAN = gl.constexpr(2**31 - 1)  # above the key of every number
_KEY_OF_INF = gl.constexpr(0x7F800000)
_NO_INDEX = gl.constexpr(2**31 - 1)
_INF = gl.constexpr(float("inf"))
_LARGEST = gl.constexpr(3.4028234663852886e38)  # finite fp32 value
_PROPAGATE_NAN = gl.constexpr(tl.PropagateNan.ALL)


@gluon.jit
def _higher(a, b):
    return gl.maximum(a, b, propagate_nan=_PROPAGATE_NAN)


@gluon.jit
def _equal(a, b):
    """Return 1.0 where a equals b, else 0.0, in one instruction instead of two."""
    a, b = gl.broadcast(a, b)
    return gl.inline_asm_elementwise(
        "set.eq.f32.f32 $0, $1, $2;", "=f,f,f", [a, b], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def _lowest_bit(bits):
    """Return the index of the lowest bit of a sum of powers of two."""
    bits = bits.to(gl.int32)
    return ((bits & -bits).to(gl.float32).to(gl.int32, bitcast=True) >> 23) - 127


@gluon.jit
def _key(value, masked, nan):
    """Return the key of a maximum, an integer in the order of the values.

    In a masked tile, -inf represents "no candidate" and the lowest finite value -inf. In a tile
    with NaN, inf represents NaN and the largest finite value inf.
    """
    bits = (value + 0.0).to(gl.int32, bitcast=True)  # -0 becomes +0
    key = gl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    key = gl.where(nan & (value == _LARGEST), _KEY_OF_INF, key)
    key = gl.where(nan & (value == _INF), _KEY_OF_NAN, key)
    key = gl.where(masked & (value == -_LARGEST), -1 - _KEY_OF_INF, key)
    return gl.where(masked & (value == -_INF), _NO_KEY, key)


@gluon.jit
def _lowest_column(scores, highest):
    """Return the lowest column `[HALF]` of a tile that has the maximum of its row."""
    # A thread's columns are 8 j + 2 lane + e: 16 of them in each quarter of a row.
    quarters = scores.reshape((HALF, 4, 8, 4, 2)).permute((0, 1, 3, 2, 4))
    quarters = quarters.reshape((HALF, 4, 4, 16))
    layout: gl.constexpr = quarters.type.layout
    own = gl.convert_layout(highest, without_dims(layout, 3, 2, 1), assert_trivial=True)
    own = own.expand_dims(1).expand_dims(2).expand_dims(3)
    bit = gl.arange(0, 16, layout=without_dims(layout, 2, 1, 0))
    weight = (1 << bit).to(gl.float32).expand_dims(0).expand_dims(1).expand_dims(2)
    bits = gl.sum(_equal(quarters, own) * weight, 3)
    quarter = gl.arange(0, 4, layout=without_dims(bits.type.layout, 2, 0))
    quarter = quarter.expand_dims(0).expand_dims(2)
    lane = gl.arange(0, 4, layout=without_dims(bits.type.layout, 1, 0))
    lane = lane.expand_dims(0).expand_dims(1)
    bit = _lowest_bit(bits)
    column = 64 * quarter + 8 * (bit >> 1) + 2 * lane + (bit & 1)
    column = gl.min(gl.min(gl.where(bits > 0, column, _NO_INDEX), 2), 1)
    return gl.convert_layout(column, highest.type.layout, assert_trivial=True)


@gluon.jit
def _halves(scores):
    WIDTH: gl.constexpr = scores.shape[2] // 2
    return scores.reshape((WARPS, 16, 2, WIDTH)).permute((0, 1, 3, 2)).split()


@gluon.jit
def _store_quarter(scores, highest, bits, quarter: gl.constexpr):
    """Store the maxima of a warp's 16 rows, and a bit set of their rows, for 64 columns."""
    best = gl.reduce(scores, 1, _higher)
    bit = gl.arange(0, 16, layout=without_dims(scores.type.layout, 2, 0))
    weight = (1 << bit).to(gl.float32).expand_dims(0).expand_dims(2)
    found = gl.sum(_equal(scores, best.expand_dims(1)) * weight, 1)
    highest.slice(64 * quarter, 64, 1).store(best)
    bits.slice(64 * quarter, 64, 1).store(found)


@gluon.jit
def _store_column_maxima(scores, highest, bits):
    """Store the maxima of all columns, a quarter at a time: all at once spills."""
    left, right = _halves(scores.reshape((WARPS, 16, COLUMNS)))
    first, second = _halves(left)
    third, fourth = _halves(right)
    _store_quarter(first, highest, bits, 0)
    _store_quarter(second, highest, bits, 1)
    _store_quarter(third, highest, bits, 2)
    _store_quarter(fourth, highest, bits, 3)


@gluon.jit
def _mask(scores, off):
    return gl.where(off, -_INF, _higher(scores, -_LARGEST))


@gluon.jit
def _mask_ids(scores, n, x_id, y_ids, first, N, M):
    WIDTH: gl.constexpr = scores.shape[1]
    if WIDTH > 64:
        left, right = scores.reshape((HALF, 2, WIDTH // 2)).permute((0, 2, 1)).split()
        left = _mask_ids(left, n, x_id, y_ids.slice(0, WIDTH // 2), first, N, M)
        right = _mask_ids(
            right, n, x_id, y_ids.slice(WIDTH // 2, WIDTH // 2), first + WIDTH // 2, N, M
        )
        return gl.join(left, right).permute((0, 2, 1)).reshape((HALF, WIDTH))
    else:
        columns: gl.constexpr = gl.SliceLayout(0, scores.type.layout)
        rows: gl.constexpr = gl.SliceLayout(1, scores.type.layout)
        x_id = gl.convert_layout(x_id, rows, assert_trivial=True)
        n = gl.convert_layout(n, rows, assert_trivial=True)
        off = x_id.expand_dims(1) == y_ids.load(columns).expand_dims(0)
        m = first + gl.arange(0, WIDTH, layout=columns)
        off |= (n >= N).expand_dims(1) | (m >= M).expand_dims(0)
        return _mask(scores, off)


@gluon.jit
def _consume(
    ring, scratch, ids, row, column, N, M, steps, HAS_IDS: gl.constexpr, half: gl.constexpr
):
    highest, bits, ids_here = scratch
    ids_here = ids_here.index(half)
    highest = highest.index(half)
    bits = bits.index(half)
    x_ids, y_ids = ids
    row_key, row_index = row
    column_key, column_index = column
    flat: gl.constexpr = gl.BlockedLayout([WARPS, 2], [1, 32], [1, WARPS], [1, 0])
    row_tiles, column_tiles = tile_counts(N, M)
    step = 0
    for tile in range(gl.program_id(0), row_tiles * column_tiles, gl.num_programs(0)):
        scores, step = multiply(ring, step, steps, half)
        row_tile, column_tile = program_tile(tile, row_tiles, column_tiles)
        first_row = row_tile * ROWS + half * HALF
        first_column = column_tile * COLUMNS
        n = first_row + gl.arange(0, HALF, layout=gl.SliceLayout(1, SCORES))
        masked = (first_row + HALF > N) | (first_column + COLUMNS > M)
        masked |= (first_row < first_column + COLUMNS) & (first_column < first_row + HALF)
        masked |= HAS_IDS
        if masked:
            if HAS_IDS:
                x_id = gl.load(x_ids + gl.minimum(n, N - 1))
                c = first_column + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, flat))
                ids_here.store(gl.load(y_ids + gl.minimum(c, M - 1)))
                scores = _mask_ids(scores, n, x_id, ids_here, first_column, N, M)
                scores = gl.convert_layout(scores, SCORES, assert_trivial=True)
            else:
                m = first_column + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, SCORES))
                off = n.expand_dims(1) == m.expand_dims(0)
                off |= (n >= N).expand_dims(1) | (m >= M).expand_dims(0)
                scores = _mask(scores, off)
        of_row = gl.reduce(scores, 1, _higher)
        nan = gl.max((of_row != of_row).to(gl.int32), 0) > 0
        if nan:
            scores = gl.where(scores != scores, _INF, gl.minimum(scores, _LARGEST))
            of_row = gl.reduce(scores, 1, _higher)
        at = gl.cast(column_tile, gl.int64) * N + n
        gl.store(row_key + at, _key(of_row, masked, nan), mask=n < N)
        winner = first_column + _lowest_column(scores, of_row)
        gl.store(row_index + at, winner, mask=n < N)
        _store_column_maxima(scores, highest, bits)
        of_warps = highest.load(flat)  # [WARPS, COLUMNS]
        of_column = gl.max(of_warps, 0)
        warp = gl.arange(0, WARPS, layout=gl.SliceLayout(1, flat)).expand_dims(1)
        found = first_row + 16 * warp + _lowest_bit(bits.load(flat))
        winner = gl.min(gl.where(of_warps == of_column.expand_dims(0), found, _NO_INDEX), 0)
        c = first_column + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, flat))
        at = gl.cast(2 * row_tile + half, gl.int64) * M + c
        inside = (c < M) & (first_row < N)
        gl.store(column_key + at, _key(of_column, masked, nan), mask=inside)
        gl.store(column_index + at, winner, mask=inside)


@gluon.jit
def _upper(
    x, y, ring, scratch, ids, row, column, N, M, chunks, HAS_IDS: gl.constexpr, PARTS: gl.constexpr
):
    _consume(ring, scratch, ids, row, column, N, M, chunks * products_per_score(PARTS), HAS_IDS, 0)


@gluon.jit
def _lower(
    x, y, ring, scratch, ids, row, column, N, M, chunks, HAS_IDS: gl.constexpr, PARTS: gl.constexpr
):
    _consume(ring, scratch, ids, row, column, N, M, chunks * products_per_score(PARTS), HAS_IDS, 1)


@gluon.jit
def _producer(
    x, y, ring, scratch, ids, row, column, N, M, chunks, HAS_IDS: gl.constexpr, PARTS: gl.constexpr
):
    produce(x, y, ring, N, M, chunks, PARTS)


@gluon.jit(do_not_specialize=["N", "M", "chunks"])
def _hardest_kernel(
    x,
    y,
    x_ids,
    y_ids,
    row_key,  # [column tiles, N]
    row_index,
    column_key,  # [halves of row tiles, M]
    column_index,
    N,
    M,
    chunks,
    HAS_IDS: gl.constexpr,
    PARTS: gl.constexpr,
):
    ring = ring_of(x, y)
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    highest = gl.allocate_shared_memory(gl.float32, [2, WARPS, COLUMNS], plain)
    bits = gl.allocate_shared_memory(gl.float32, [2, WARPS, COLUMNS], plain)
    line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    ids_here = gl.allocate_shared_memory(gl.int64, [2, COLUMNS], line)
    scratch = (highest, bits, ids_here)
    ids = (x_ids, y_ids)
    row = (row_key, row_index)
    column = (column_key, column_index)
    gl.warp_specialize(
        [
            (_upper, (x, y, ring, scratch, ids, row, column, N, M, chunks, HAS_IDS, PARTS)),
            (_lower, (x, y, ring, scratch, ids, row, column, N, M, chunks, HAS_IDS, PARTS)),
            (_producer, (x, y, ring, scratch, ids, row, column, N, M, chunks, HAS_IDS, PARTS)),
        ],
        [WARPS, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )


def hardest(
    both: Operands, x_ids: Tensor | None, y_ids: Tensor | None
) -> tuple[TileMaxima, TileMaxima]:
    """Find the maxima of every tile's rows and columns, as `_hardest._hardest_of_tiles` does."""
    N, M = both.shape
    row = empty_tile_maxima(both, M, N, COLUMNS.value)
    column = empty_tile_maxima(both, N, M, HALF.value)
    _hardest_kernel[grid(both)](
        **arguments(both), **id_arguments(both, x_ids, y_ids),
        row_key=row.key, row_index=row.candidate,
        column_key=column.key, column_index=column.candidate,
    )  # fmt: skip
    return row, column
