"""Device functions that compute a tile of scores in registers, and functions that reduce it.

Row indices beyond the last row are clamped instead of masking the load: such a row repeats the last
one, and the kernel discards its scores. The operands determine the precision (`_operands`): fp64 is
accumulated in fp64, everything else in fp32.
"""

import triton
import triton.language as tl

_NO_INDEX = tl.constexpr(2**31 - 1)
# Columns at a time where a column needs several values: those of all columns do not fit the
# registers with the scores. With 64 columns, 128 x 256 scores cause up to 99 spills on sm_90.
PIECE = tl.constexpr(32)


@triton.jit
def program_tile(program, ROWS: tl.constexpr, COLUMNS: tl.constexpr, N, M):
    """Return the unclamped row and column indices of a program's tile, and the tile's indices.

    Tiles are visited in groups of eight tile rows, so that a group's operands stay in the L2.
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
    """Return the precision in which elements of a pointer type are computed."""
    return tl.float64 if pointer.element_ty == tl.float64 else tl.float32


@triton.jit
def float_argument(value, DTYPE: tl.constexpr):
    """Return a float argument, which kernels receive as tl.float64, as a tensor `[1]` of DTYPE."""
    return (tl.zeros((1,), DTYPE) + value).to(DTYPE)


@triton.jit
def score_tile(
    operands,  # `ScoreOperands`
    rows,  # [R] < N
    columns,  # [C] < M
    X_PARTS: tl.constexpr = 0,  # parts of x where they differ from y's: 1 where y has two
    ROUNDED: tl.constexpr = False,
):
    """Return the dot products `[R, C]` of some rows of x with some rows of y.

    Tensor cores truncate the sum of every step towards 0: at D = 1024 products of equal signs are
    2e-6 of their value too small. With ROUNDED, tensor cores add the products of a chunk only, and
    the sums of chunks are added with rounding. The truncation is then that of a chunk's sum.

    With two or three parts an fp32 operand is a sum of bf16 values, high to low. Only the products
    of parts that fp32 resolves are computed: three of four, six of nine. Rows of x in half
    precision are one exact part, which is multiplied by both parts of y.
    """
    x, y = operands.x, operands.y
    DEPTH: tl.constexpr = operands.DEPTH
    PARTS: tl.constexpr = operands.PARTS
    EVEN: tl.constexpr = operands.EVEN
    # The compiler's axis analysis follows arithmetic, not tl.multiple_of of an argument: without
    # this, D = 500 has no vector loads and no pipeline.
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
        # One product per step, low to high: with all products of a chunk in one step sm_80 spills
        # and sm_100 runs out of tensor memory. Two bits of a constant select the part.
        ONE: tl.constexpr = X_PARTS == 1
        x_takes: tl.constexpr = 0 if ONE else 0b00_00_01_00_01_10 if PARTS == 3 else 0b00_00_01
        y_takes: tl.constexpr = (
            0b00_01 if ONE else 0b00_01_00_10_01_00 if PARTS == 3 else 0b00_01_00
        )
        chunks = D // DEPTH  # parts are padded to whole chunks
        sums = scores
        PRODUCTS: tl.constexpr = 2 if ONE else 6 if PARTS == 3 else 3
        for step in range(0, PRODUCTS * chunks):
            product = step // chunks
            first = (step - product * chunks) * DEPTH
            x_from = ((x_takes >> (2 * product)) & 3).to(tl.int64) * x_part + first
            y_from = ((y_takes >> (2 * product)) & 3).to(tl.int64) * y_part + first
            scores = tl.dot(tl.load(x_at + x_from), tl.load(y_at + y_from), scores)
            if ROUNDED:
                # The lower products are 2^-8 of the last or less, and so is their truncation.
                if product == PRODUCTS - 1:
                    sums += scores
                    scores = tl.zeros_like(scores)
        if ROUNDED:
            scores = sums
    else:
        # `other` is explicit: without it, masked elements are undefined on a GPU.
        zero: tl.constexpr = None if EVEN else 0.0
        # fp32 units round every step.
        CHUNKED: tl.constexpr = ROUNDED and x.dtype.element_ty.primitive_bitwidth == 16
        sums = scores
        for first in range(0, D, DEPTH):
            inside = depth < D - first
            x_mask = None if EVEN else inside[None, :]
            y_mask = None if EVEN else inside[:, None]
            x_chunk = tl.load(x_at + first, x_mask, zero)
            y_chunk = tl.load(y_at + first, y_mask, zero)
            if CHUNKED:
                # The limit has no effect on these types, but without it the compiler moves the
                # addition into the product.
                sums += tl.dot(x_chunk, y_chunk, max_num_imprecise_acc=DEPTH, out_dtype=DTYPE)
            else:
                scores = tl.dot(
                    x_chunk, y_chunk, scores, input_precision=operands.PRECISION, out_dtype=DTYPE
                )
        if CHUNKED:
            scores = sums
    return scores


@triton.jit
def halves(values):
    """Return the left and the right half of the columns `[R, C]`; no value changes its thread."""
    WIDTH: tl.constexpr = values.shape[1] // 2
    return values.reshape((values.shape[0], 2, WIDTH)).permute((0, 2, 1)).split()


@triton.jit
def folded(values):
    """Return sums `[R, 8]` over columns `[R, C]`, which a thread adds up without the others."""
    if values.shape[1] > 8:
        left, right = halves(values)
        return folded(left + right)
    else:
        return values


@triton.jit
def joined(left, right):
    """Return the columns of `halves` as one tile."""
    WIDTH: tl.constexpr = left.shape[1]
    return tl.join(left, right).permute((0, 2, 1)).reshape((left.shape[0], 2 * WIDTH))


@triton.jit
def scale_scores(operands, scores, rows, columns):
    """Return scores `[R, C]` times the factors of `scaled_operands`, if there are any.

    The factors are applied one after the other. Dot products of fp32 and fp16 rows overflow in
    between if the norm of a row of x exceeds 2^114, cosines of raw rows if a norm exceeds 1.8e19:
    such a norm is infinite, as in PyTorch, and the cosines are NaN instead of 0 where the product
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
    """Return the dot products `[P]` of pairs of rows, in the precision of the input."""
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
    """Mark the pairs `[R, C]` of equal ids, which are not negatives; without ids, the diagonal."""
    if HAS_IDS:
        return tl.load(row_ids + rows)[:, None] == tl.load(column_ids + columns)[None, :]
    return rows[:, None] == columns[None, :]


@triton.constexpr_function
def no_key(dtype):
    """Return the key of "no candidate", which is below the key of every value of a precision."""
    return -(2**63) if dtype in (tl.float64, tl.int64) else -(2**31)


@triton.constexpr_function
def key_of_nan(dtype):
    """Return the key of NaN, which is above the key of every number."""
    return 2**63 - 1 if dtype == tl.float64 else 2**31 - 1


@triton.jit
def ordered_key(values):
    """Return integers in the order of the values: -0 equals +0, NaN is above infinity.

    Some backends drop NaN from the maximum of floats, and a second pass would have to find the
    index.
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
    """Mark the keys of values >= a bound. NaN is not marked, so that it remains a candidate.

    Keys are compared with keys, so that the scores need not stay in registers (sm_100: 22 spills).
    """
    return (keys >= ordered_key(bound)) & (keys != key_of_nan(bound.dtype))


@triton.jit
def maximum_with_index(keys, indices, AXIS: tl.constexpr):
    """Return the highest key along an axis, and the lowest index that has it.

    The indices `[R, C]` may be a single row or column, which is broadcast.
    """
    key = tl.max(keys, AXIS)
    found = tl.where(keys == tl.expand_dims(key, AXIS), indices, _NO_INDEX)
    return key, tl.min(found, AXIS)


@triton.jit
def hinge(value):
    """Return max(value, 0); NaN is propagated."""
    return tl.where(value <= 0, tl.zeros_like(value), value)


@triton.jit
def log_of_one_plus(small):
    """Return log(1 + small), accurate also where 1 + small rounds to 1."""
    total = 1 + small
    lost = total - 1
    # log(1 + small) / (1 + small - 1) * small: the rounding of 1 + small cancels (Kahan).
    return tl.where(lost == 0, small, tl.log(total) * (small / tl.where(lost == 0, 1.0, lost)))
