"""Band sums over the pairs of one modality, from the tiles of the upper triangle.

A tile stores sums for its rows and for its columns, and one bit per pair for the gradient. Words
left of the diagonal are not written: their bits are those of row m.
"""

import triton
import triton.language as tl

from itm_kernels.triton._launch import jit
from itm_kernels.triton._metrics import metric_tile
from itm_kernels.triton._score_tiles import float_argument, same_id

SIDE = 128  # of the tiles of stored distances


@jit
def band_sums_kernel(
    operands,  # `ScoreOperands` of [N, D]
    raw,  # `RawRows`
    ids,
    sums,  # [tiles, N]
    mask,  # [N, words] int32
    N,
    words,
    low_bound: tl.float64,
    high_bound: tl.float64,
    MODE: tl.constexpr,
    HAS_IDS: tl.constexpr,
    KEEP_MASK: tl.constexpr,
):
    ROWS: tl.constexpr = operands.ROWS
    COLUMNS: tl.constexpr = operands.COLUMNS
    row_tile, column_tile = triangle_tile(tl.program_id(0), N, ROWS)
    n = row_tile * ROWS + tl.arange(0, ROWS)
    m = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    rows, columns = tl.minimum(n, N - 1), tl.minimum(m, N - 1)
    key = metric_tile(operands, raw, rows, columns)
    if raw.METRIC == "cosine":
        key = 1 - key
    _band_tile(
        key, n, m, row_tile, column_tile, ids, sums, mask, N, words, low_bound, high_bound, MODE,
        HAS_IDS, KEEP_MASK,
    )  # fmt: skip


@jit
def stored_band_sums_kernel(
    distance,  # [R, N - first] of rows first to first + R, and of columns from first on
    ids,
    sums,  # [tiles, N]
    mask,  # [N, words] int32
    first,  # a multiple of SIDE
    R,
    N,
    words,
    low_bound: tl.float64,
    high_bound: tl.float64,
    MODE: tl.constexpr,
    HAS_IDS: tl.constexpr,
    KEEP_MASK: tl.constexpr,
    SIDE: tl.constexpr,
):
    n, m = (
        tl.program_id(1) * SIDE + tl.arange(0, SIDE),
        tl.program_id(0) * SIDE + tl.arange(0, SIDE),
    )
    if tl.program_id(0) >= tl.program_id(1):
        there = (n < R)[:, None] & (m < N - first)[None, :]
        at = distance + (n.to(tl.int64) * (N - first))[:, None] + m[None, :]
        row_tile, column_tile = first // SIDE + tl.program_id(1), first // SIDE + tl.program_id(0)
        _band_tile(
            tl.load(at, there, 0.0), first + n, first + m, row_tile, column_tile, ids, sums, mask,
            N, words, low_bound, high_bound, MODE, HAS_IDS, KEEP_MASK,
        )  # fmt: skip


@triton.jit
def _band_tile(
    key,  # [SIDE, SIDE] values that are compared with the bounds
    n,  # [SIDE]
    m,  # [SIDE]
    row_tile,
    column_tile,
    ids,
    sums,
    mask,
    N,
    words,
    low_bound,
    high_bound,
    MODE: tl.constexpr,
    HAS_IDS: tl.constexpr,
    KEEP_MASK: tl.constexpr,
):
    """Store the sums and the bits of a tile."""
    COLUMNS: tl.constexpr = key.shape[1]
    rows, columns = tl.minimum(n, N - 1), tl.minimum(m, N - 1)
    # Excluded elements get a key outside every band, in tiles that have any: a separate mask would
    # spill.
    excluded = float("-inf")
    if row_tile == column_tile:
        own = n[:, None] == m[None, :]
        if MODE == "official":
            # An infinite row is outside every band: its diagonal entry propagates it as NaN.
            key = tl.where(own, key - key + excluded, key)
        elif not HAS_IDS:
            key = tl.where(own & (key == key), excluded, key)
    if HAS_IDS:
        same = same_id(rows, columns, ids, ids, HAS_IDS)
        key = tl.where(same & (key == key), excluded, key)
    # In fp64 a branch here fails an assertion of LLVM's vectorizer for sm_100.
    if key.dtype == tl.float64:
        key = tl.where((n < N)[:, None] & (m < N)[None, :], key, excluded)
    elif (column_tile + 1) * COLUMNS > N:
        key = tl.where((n < N)[:, None] & (m < N)[None, :], key, excluded)
    low, high = float_argument(low_bound, key.dtype), float_argument(high_bound, key.dtype)
    # Written as "not outside", so that NaN counts as inside and propagates to the sum.
    outside = (key <= low) | (key >= high)
    value = tl.where(outside, 0.0, high - key if MODE == "repel" else key)
    tl.store(sums + column_tile.to(tl.int64) * N + n, tl.sum(value, 1), mask=n < N)
    if row_tile < column_tile:
        tl.store(sums + row_tile.to(tl.int64) * N + m, tl.sum(value, 0), mask=m < N)
    if KEEP_MASK:
        word = column_tile * (COLUMNS // 32) + tl.arange(0, COLUMNS // 32)
        at = mask + (n.to(tl.int64) * words)[:, None] + word[None, :]
        tl.store(at, _packed_bits(outside), mask=(n < N)[:, None] & (word < words)[None, :])


@triton.jit
def triangle_tile(program, N, SIDE: tl.constexpr):
    """Return the row and column of a program's tile, on or above the diagonal.

    Tiles are visited in groups of eight tile rows, column by column, so that a group's operands
    stay in the L2. Groups before tile row 8 g contain g (8 tiles + 4 - 32 g) tiles. The square root
    that inverts this is exact, because half a tile is added: it is far from a whole number.
    """
    across = 8 * tl.cast(tl.cdiv(N, SIDE), tl.int64) + 4
    half = across.to(tl.float64)
    root = tl.sqrt(half * half - 128 * (program.to(tl.float64) + 0.5))
    group = ((half - root) / 64).to(tl.int64)
    within = (program - group * (across - 32 * group)).to(tl.int32)
    # Columns of 1, 2 .. 7 tiles, then of 8.
    column = 0
    for more in tl.static_range(1, 7):
        column += (within >= more * (more + 1) // 2).to(tl.int32)
    row = within - column * (column + 1) // 2
    column = tl.where(within < 28, column, 7 + (within - 28) // 8)
    row = tl.where(within < 28, row, (within - 28) % 8)
    first = 8 * group.to(tl.int32)
    return first + row, first + column


@triton.jit
def _packed_bits(outside):
    """Return 32 columns as the bits of one int32, set where a pair is in the band."""
    bits = tl.where(outside, 0, 1 << (tl.arange(0, outside.shape[1]) % 32)[None, :])
    return tl.sum(tl.reshape(bits, (bits.shape[0], bits.shape[1] // 32, 32)), 2)


@jit
def band_totals_kernel(
    sums,  # [tiles, N]
    row,  # [N]
    low,
    high,
    norm,
    low_bound: tl.float64,
    high_bound: tl.float64,
    N,
    tiles,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    for tile in range(0, tiles):
        at = sums + tl.cast(tile, tl.int64) * N + n
        total += tl.load(at, mask=n < N, other=0.0).to(tl.float64)
    DTYPE: tl.constexpr = row.dtype.element_ty
    same = tl.zeros((BLOCK,), DTYPE)
    tl.store(row + n, total.to(DTYPE), mask=n < N)
    tl.store(low + n, same + float_argument(low_bound, DTYPE), mask=n < N)
    tl.store(high + n, same + float_argument(high_bound, DTYPE), mask=n < N)
    tl.store(norm + n, same + 1, mask=n < N)
