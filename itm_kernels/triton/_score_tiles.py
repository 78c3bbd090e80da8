"""Pieces of kernels: a tile of scores leaves the tensor cores and is reduced where it lies.

A kernel knows its rows by number and clamps a number beyond the last instead of masking the load:
such a row repeats the last one and is discarded by whoever uses the tile. Precision is carried by
the operands (`_operands.operands`): fp64 stays fp64, everything else is accumulated in fp32.
"""

import triton
import triton.language as tl

_NO_INDEX = tl.constexpr(2**31 - 1)


@triton.jit
def program_tile(program, ROWS: tl.constexpr, COLUMNS: tl.constexpr, N, M):
    """Return a program's tile: numbers of its rows and columns, unclamped, and its own place.

    Tiles are visited in groups of eight rows, so that a group's operands stay in the L2.
    """
    row_tiles = tl.cdiv(N, ROWS)
    column_tiles = tl.cdiv(M, COLUMNS)
    row_tile, column_tile = tl.swizzle2d(
        program // column_tiles, program % column_tiles, row_tiles, column_tiles, 8
    )
    rows = row_tile * ROWS + tl.arange(0, ROWS)
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    return rows, columns, row_tile, column_tile


@triton.constexpr_function
def wide_type(pointer):
    """Return the precision that the elements behind a pointer type are computed in."""
    return tl.float64 if pointer.element_ty == tl.float64 else tl.float32


@triton.jit
def float_argument(value, DTYPE: tl.constexpr):
    """Return a float argument `[1]` in a precision; kernels take such arguments as tl.float64."""
    return (tl.zeros((1,), DTYPE) + value).to(DTYPE)


@triton.jit
def score_tile(
    operands,  # `_operands.ScoreOperands`
    rows,  # [R] < N
    columns,  # [C] < M
    X_PARTS: tl.constexpr = 0,  # of x, where these are not as many: 1 beside two of y
):
    """Return the dot products `[R, C]` of some rows of x with some rows of y.

    With two or three parts an fp32 operand is a sum of bf16 numbers, high to low. Of the products
    of parts those are taken that fp32 would see: three of four, six of nine. Rows of x in half
    precision are one part, exact, and are multiplied by both parts of y.
    """
    x, y = operands.x, operands.y
    DEPTH: tl.constexpr = operands.DEPTH
    PARTS: tl.constexpr = operands.PARTS
    EVEN: tl.constexpr = operands.EVEN
    # The compiler's axis analysis follows arithmetic, not tl.multiple_of on an argument: without
    # this, D = 500 loses its vector loads and its pipeline.
    ALIGN: tl.constexpr = operands.ALIGN
    x_stride = operands.x_stride // ALIGN * ALIGN
    y_stride = operands.y_stride // ALIGN * ALIGN
    x_part = operands.x_part // ALIGN * ALIGN
    y_part = operands.y_part // ALIGN * ALIGN
    D = operands.D // ALIGN * ALIGN
    depth = tl.arange(0, DEPTH)
    x_at = x + rows[:, None].to(tl.int64) * x_stride + depth[None, :]
    y_at = y + columns[None, :].to(tl.int64) * y_stride + depth[:, None]
    DTYPE: tl.constexpr = wide_type(x.dtype)
    scores = tl.zeros((rows.shape[0], columns.shape[0]), DTYPE)
    if PARTS > 1:
        # One product per step, low to high: with all of a chunk in one step sm_80 spills and
        # sm_100 runs out of tensor memory. Two bits of a constant say which part is taken.
        ONE: tl.constexpr = X_PARTS == 1
        x_takes: tl.constexpr = 0 if ONE else 0b00_00_01_00_01_10 if PARTS == 3 else 0b00_00_01
        y_takes: tl.constexpr = (
            0b00_01 if ONE else 0b00_01_00_10_01_00 if PARTS == 3 else 0b00_01_00
        )
        chunks = D // DEPTH  # parts are padded to whole chunks
        for step in range(0, (2 if ONE else 6 if PARTS == 3 else 3) * chunks):
            product = step // chunks
            first = (step - product * chunks) * DEPTH
            x_from = ((x_takes >> (2 * product)) & 3).to(tl.int64) * x_part + first
            y_from = ((y_takes >> (2 * product)) & 3).to(tl.int64) * y_part + first
            scores = tl.dot(tl.load(x_at + x_from), tl.load(y_at + y_from), scores)
    else:
        # `other` is said: a masked element is undefined on a GPU and 0 in the interpreter.
        zero: tl.constexpr = None if EVEN else 0.0
        for first in range(0, D, DEPTH):
            inside = depth < D - first
            x_mask = None if EVEN else inside[None, :]
            y_mask = None if EVEN else inside[:, None]
            x_chunk = tl.load(x_at + first, x_mask, zero)
            y_chunk = tl.load(y_at + first, y_mask, zero)
            scores = tl.dot(
                x_chunk, y_chunk, scores, input_precision=operands.PRECISION, out_dtype=DTYPE
            )
    return scores


@triton.jit
def scale_scores(operands, scores, rows, columns):
    """Return scores `[R, C]` times the factors of `scaled_operands`, if there are any.

    One factor is applied after the other. Dot products of fp32 and fp16 rows overflow on the way
    if a row of x is longer than 2^114, cosines of raw rows if one is longer than 1.8e19: such a row
    has an infinite length, as in PyTorch, and its cosines are NaN instead of 0 where the product
    itself overflows.
    """
    if operands.FACTORS:
        scores *= tl.load(operands.x_factor + rows)[:, None]
        scores *= tl.load(operands.y_factor + columns)[None, :]
    return scores


@triton.jit
def difference_tile(
    x,  # [N, D]
    y,  # [M, D]
    x_stride,  # between rows
    y_stride,
    D,
    rows,  # [R] < N
    columns,  # [C] < M
    DEPTH: tl.constexpr,
    SQUARE: tl.constexpr,
):
    """Return the sums `[R, C]` of |x - y|, or of its square, over D; equal rows give exactly 0."""
    DTYPE: tl.constexpr = wide_type(x.dtype)
    depth = tl.arange(0, DEPTH)
    x_at = x + rows[:, None].to(tl.int64) * x_stride + depth[None, :]
    y_at = y + columns[:, None].to(tl.int64) * y_stride + depth[None, :]
    sums = tl.zeros((rows.shape[0], columns.shape[0]), DTYPE)
    for first in range(0, D, DEPTH):
        inside = (depth < D - first)[None, :]
        x_chunk = tl.load(x_at + first, mask=inside, other=0.0).to(DTYPE)
        y_chunk = tl.load(y_at + first, mask=inside, other=0.0).to(DTYPE)
        difference = x_chunk[:, None, :] - y_chunk[None, :, :]
        sums += tl.sum(difference * difference if SQUARE else tl.abs(difference), 2)
    return sums


@triton.jit
def paired_scores(
    x,  # [N, D]
    y,  # [M, D]
    x_stride,
    y_stride,
    D,
    rows,  # [P] < N
    columns,  # [P] < M
    DEPTH: tl.constexpr,
):
    """Return the dot products `[P]` pair by pair, in the precision of the input."""
    DTYPE: tl.constexpr = wide_type(x.dtype)
    depth = tl.arange(0, DEPTH)
    x_at = x + rows[:, None].to(tl.int64) * x_stride + depth[None, :]
    y_at = y + columns[:, None].to(tl.int64) * y_stride + depth[None, :]
    sums = tl.zeros((rows.shape[0], DEPTH), DTYPE)
    for first in range(0, D, DEPTH):
        inside = (depth < D - first)[None, :]
        x_chunk = tl.load(x_at + first, mask=inside, other=0.0).to(DTYPE)
        y_chunk = tl.load(y_at + first, mask=inside, other=0.0).to(DTYPE)
        sums += x_chunk * y_chunk
    return tl.sum(sums, 1)


@triton.jit
def same_id(rows, columns, row_ids, column_ids, HAS_IDS: tl.constexpr):
    """Mark the pairs `[R, C]` that are never negatives; without ids, the diagonal."""
    if HAS_IDS:
        return tl.load(row_ids + rows)[:, None] == tl.load(column_ids + columns)[None, :]
    return rows[:, None] == columns[None, :]


@triton.constexpr_function
def no_key(dtype):
    """Return the key of "none", below that of every number of a precision."""
    return -(2**63) if dtype in (tl.float64, tl.int64) else -(2**31)


@triton.constexpr_function
def key_of_nan(dtype):
    """Return the key of NaN, above that of every number."""
    return 2**63 - 1 if dtype == tl.float64 else 2**31 - 1


@triton.jit
def ordered_key(values):
    """Return integers that order as the values do: -0 equals +0, NaN is above infinity.

    Maxima of floats lose NaN on one backend or another, and need a second look to find the index.
    """
    values += 0.0  # -0 becomes +0
    if values.dtype == tl.float64:
        bits = values.to(tl.int64, bitcast=True)
        key = tl.where(bits < 0, bits ^ 0x7FFFFFFFFFFFFFFF, bits)
    else:
        bits = values.to(tl.int32, bitcast=True)
        key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(values == values, key, key_of_nan(values.dtype))


@triton.jit
def at_least(keys, bound):
    """Mark the keys of values >= a bound. NaN reaches none: it stays below, and shows.

    Keys are compared with keys, so that scores need not stay in registers (sm_100: 22 spills).
    """
    return (keys >= ordered_key(bound)) & (keys != key_of_nan(bound.dtype))


@triton.jit
def maximum_with_index(keys, indices, AXIS: tl.constexpr):
    """Return the highest key along an axis, and the lowest of the indices that have it.

    The indices `[R, C]` may have one row or column, to broadcast.
    """
    key = tl.max(keys, AXIS)
    found = tl.where(keys == tl.expand_dims(key, AXIS), indices, _NO_INDEX)
    return key, tl.min(found, AXIS)


@triton.jit
def hinge(value):
    """Return [value]+, NaN where the value is."""
    return tl.where(value <= 0, tl.zeros_like(value), value)


@triton.jit
def log_of_one_plus(small):
    """Return log(1 + small), exact where small is far below the last digit of 1."""
    total = 1 + small
    lost = total - 1
    # log(1 + small) / (1 + small - 1) * small: the rounding of 1 + small cancels (Kahan).
    return tl.where(lost == 0, small, tl.log(total) * (small / tl.where(lost == 0, 1.0, lost)))
