"""Sets of rows: their operands for the library's products, and chunks of them.

The products of all rows of a chunk of contexts with all rows of the queries are one library
product. fp32 rows are two fp16 parts, which make one product of three times the depth: [h l h] of a
context row times [h h l] of a query row is all of it but l times l. A second pass over the products
would read and write them again.

Padded rows are zero in the operands: a weight of 0 times NaN would be NaN.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._norms import (
    SMALLEST,
    norm_divisor,
    power_of_two_scale,
    reciprocal,
    square_root,
)
from itm_kernels.triton._operands import (
    INTERPRETED,
    kind_of,
    row_blocks,
    to_tf32,
    wide_dtype,
)
from itm_kernels.triton._products import add_product
from itm_kernels.triton._scaled_operands import LARGEST_POWER

# Bytes of the products of a chunk at most. The 47 MB of 128 x 36 rows times 128 x 20 are one chunk
# [C]: three that stay in the L2 beside the rows would save 9 us of traffic and cost ten launches.
CHUNK_BYTES = 1 << 26
_TRUNCATES = not INTERPRETED  # tensor cores truncate tf32, the interpreter multiplies in fp32
# The largest power of two of a row. The weights of query rows of cross attention are divided by
# their norms, and by 1e-8 for a row of zeros: in fp16 they would leave those of other rows 0.
_OF_COSINE, _OF_QUERY = 2.0**113, 2.0**38


class RowSets(NamedTuple):
    """The rows of N sets of C, of which a count exists, prepared for products."""

    rows: Tensor  # [N, C, D], the input
    counts: Tensor  # [N]; the input's rows where there are none
    joined: Tensor  # [N C, depth], an operand of the products
    parts: Tensor  # [parts, N C, D], views of it: operands of products with weights
    factor: Tensor  # [N C] of products
    norm: Tensor  # [N C]
    kind: str
    cosine: bool
    largest_power: float  # of a row
    has_counts: bool
    whole: bool  # `joined` is the input

    @property
    def powers(self) -> bool:
        """Whether rows are multiplied by a power of two, so that they fit fp16."""
        return self.joined.dtype == torch.float16


def prepared(
    context: Tensor,  # [N, C, D]
    query: Tensor,  # [M, Q, D]
    context_counts: Tensor | None,  # [N]
    query_counts: Tensor | None,  # [M]
    cosine: bool,
    split: bool = True,
) -> tuple[RowSets, RowSets]:
    """Prepare contexts and queries, in one launch.

    Without `split`, fp32 rows stay whole and the library multiplies them in fp32.
    """
    D, kind = context.shape[2], kind_of(context[0])
    if kind == "parts" and not split:
        kind = "ieee"
    given = (context, context_counts), (query, query_counts)
    powers, truncated = kind == "parts" or context.dtype == torch.float16, kind == "tf32"
    copies, width = 3 if kind == "parts" else 1, D + -D % 16
    changed = powers or (truncated and _TRUNCATES) or D % 16 != 0
    totals = [rows.shape[0] * rows.shape[1] for rows, _ in given]
    largest = [_OF_COSINE if cosine else LARGEST_POWER.value] * 2
    if not split:
        largest[1] = _OF_QUERY
    factors = torch.empty((2, sum(totals)), dtype=wide_dtype(context), device=context.device)
    dtype, sides, options = torch.float16 if powers else context.dtype, [], row_blocks(D)
    for k, (rows, counts) in enumerate(given):
        joined = rows
        whole = counts is None and not changed and rows.is_contiguous()
        if not whole:
            joined = torch.empty((totals[k], copies * width), dtype=dtype, device=rows.device)
        parts = joined.view(totals[k], -1)[None, :, :D]
        if copies == 3:  # [h l h] of context rows, [h h l] of query rows
            parts = joined.as_strided((2, totals[k], D), ((k + 1) * width, 3 * width, 1))
        factor, norm = factors.split(totals, 1)[k]
        sides.append(RowSets(
            rows, rows if counts is None else counts, joined.view(totals[k], -1), parts, factor,
            norm, kind, cosine, largest[k], counts is not None, whole,
        ))  # fmt: skip
    x, y = sides
    _prepare_kernel[(cdiv(max(totals), options["ROWS"]), 2)](
        x.rows, y.rows, x.counts, y.counts, x.joined, y.joined, x.factor, y.factor, x.norm, y.norm,
        *x.rows.stride(), *y.rows.stride(), *totals, x.rows.shape[1], y.rows.shape[1], D, width,
        X_COUNTS=x.has_counts, Y_COUNTS=y.has_counts, X_WRITES=not x.whole, Y_WRITES=not y.whole,
        X_POWER=x.largest_power, Y_POWER=y.largest_power, COSINE=cosine, POWERS=powers,
        COPIES=copies, TF32=truncated and _TRUNCATES, **options,
    )  # fmt: skip
    return x, y


@triton.jit
def power_of(norm, LARGEST: tl.constexpr):
    """Return the power of two that scales a norm to between 2^13 and 2^14, at most LARGEST."""
    return tl.minimum(power_of_two_scale(norm, 14), LARGEST)


@triton.jit
def place(counts, total, C, ROWS: tl.constexpr, HAS_COUNTS: tl.constexpr):
    """Return a program's rows, their sets and numbers in them, and which of them exist."""
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    of = tl.minimum(n, total - 1)
    number = of % C
    there = n < total
    exists = there
    if HAS_COUNTS:
        exists = there & (number < tl.load(counts + of // C))
    return n, of // C, number, there, exists


@jit(do_not_specialize=["x_total", "y_total"])
def _prepare_kernel(
    x,
    y,
    x_counts,  # [N]
    y_counts,  # [M]
    x_joined,  # [N C, COPIES width]
    y_joined,  # [M Q, COPIES width]
    x_factor,  # [N C]
    y_factor,  # [M Q]
    x_norm,  # [N C]
    y_norm,  # [M Q]
    x_set_stride,
    x_stride,
    x_column_stride,
    y_set_stride,
    y_stride,
    y_column_stride,
    x_total,  # N C
    y_total,  # M Q
    C,
    Q,
    D,
    width,
    X_COUNTS: tl.constexpr,
    Y_COUNTS: tl.constexpr,
    X_WRITES: tl.constexpr,
    Y_WRITES: tl.constexpr,
    X_POWER: tl.constexpr,
    Y_POWER: tl.constexpr,
    COSINE: tl.constexpr,
    POWERS: tl.constexpr,
    COPIES: tl.constexpr,
    TF32: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    if tl.program_id(1) == 0:
        _prepare(
            x, x_counts, x_joined, x_factor, x_norm, x_set_stride, x_stride, x_column_stride,
            x_total, C, D, width, X_COUNTS, X_WRITES, X_POWER, COSINE, POWERS, COPIES, 1, TF32,
            ROWS, COLUMNS,
        )  # fmt: skip
    else:
        _prepare(
            y, y_counts, y_joined, y_factor, y_norm, y_set_stride, y_stride, y_column_stride,
            y_total, Q, D, width, Y_COUNTS, Y_WRITES, Y_POWER, COSINE, POWERS, COPIES, 2, TF32,
            ROWS, COLUMNS,
        )  # fmt: skip


@triton.jit
def _prepare(
    x,
    counts,
    joined,
    factor,
    norm,
    set_stride,
    stride,
    column_stride,
    total,  # N C
    C,
    D,
    width,
    HAS_COUNTS: tl.constexpr,
    WRITES: tl.constexpr,
    LARGEST: tl.constexpr,
    COSINE: tl.constexpr,
    POWERS: tl.constexpr,
    COPIES: tl.constexpr,
    LOW: tl.constexpr,  # the copy that has the low part
    TF32: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    n, of, number, there, exists = place(counts, total, C, ROWS, HAS_COUNTS)
    columns = tl.arange(0, COLUMNS)
    DTYPE: tl.constexpr = factor.dtype.element_ty
    from_row = x + (of * set_stride + number * stride)[:, None]
    squares = tl.zeros((ROWS, COLUMNS), DTYPE)
    for first in range(0, D, COLUMNS):
        d = (first + columns)[None, :].to(tl.int64)
        inside = exists[:, None] & (d < D)
        value = tl.load(from_row + d * column_stride, mask=inside, other=0.0).to(DTYPE)
        if TF32 and not COSINE:
            # The norm of what is multiplied: the error of a cosine then is that of its angle only.
            value = to_tf32(value)
        squares += value * value
    own = square_root(tl.sum(squares, 1))
    power = tl.full((ROWS,), 1.0, DTYPE)
    if POWERS:
        power = power_of(own, LARGEST)
    found = reciprocal(norm_divisor(own, SMALLEST)) if COSINE else tl.full((ROWS,), 1.0, DTYPE)
    tl.store(factor + n, found / power, mask=there)
    tl.store(norm + n, own, mask=there)
    if WRITES:
        for first in range(0, width, COLUMNS):
            d = (first + columns)[None, :].to(tl.int64)
            inside = exists[:, None] & (d < D)
            value = tl.load(from_row + d * column_stride, mask=inside, other=0.0)
            at = joined + n[:, None] * (COPIES * width) + d
            mask = there[:, None] & (d < width)
            if TF32:
                value = to_tf32(value)
            if POWERS:
                value = value.to(DTYPE) * power[:, None]
            high = value.to(joined.dtype.element_ty)
            tl.store(at, high, mask=mask)
            if COPIES == 3:
                low = (value - high.to(DTYPE)).to(joined.dtype.element_ty)
                tl.store(at + LOW * width, low, mask=mask)
                tl.store(at + (3 - LOW) * width, high, mask=mask)


def chunks(context: RowSets, query: RowSets) -> Iterator[slice]:
    """Yield slices of contexts whose products with the queries fit in CHUNK_BYTES."""
    N, C, _ = context.rows.shape
    at_once = contexts_at_once(context, query)
    for first in range(0, N, at_once):
        yield slice(first, min(first + at_once, N))


def contexts_at_once(context: RowSets, query: RowSets) -> int:
    """Return the number of contexts of a chunk, at least one; chunks are about equally large."""
    (N, C, _), columns = context.rows.shape, query.joined.shape[0]
    most = max(1, CHUNK_BYTES // (C * columns * context.factor.element_size()))
    return cdiv(N, cdiv(N, most))


def products(
    context: RowSets,
    chunk: slice,
    query: RowSets,
    out: Tensor | None = None,  # the result
) -> Tensor:  # [n C, M Q]
    """Return the products of a chunk, without factors."""
    C = context.rows.shape[1]
    rows = context.joined[chunk.start * C : chunk.stop * C]
    return add_product(None, rows[None], query.joined.mT[None], out=out)
