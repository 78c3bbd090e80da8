"""Tiles of the products of rows of contexts and query rows, and what kernels over them know."""

import triton
import triton.language as tl

from itm_kernels.triton._row_sets import RowSets

COLUMNS = 128  # of the products per program
LEAST = tl.constexpr(1e-8)  # as in `reference._cross_attention`
SLOPE = tl.constexpr(0.1)


def kind_of_norm(feature_norm: str) -> dict[str, object]:
    """Return a feature norm as arguments of kernels."""
    clipped = feature_norm.startswith("clipped")
    norm = feature_norm.removeprefix("clipped_") if clipped else feature_norm
    return {"NORM": "none" if norm == "clipped" else norm, "CLIPPED": clipped}


def query_blocks(M: int, Q: int, numbers: int = COLUMNS) -> dict[str, int]:
    """Return queries and their rows per step of a program."""
    columns = min(triton.next_power_of_2(Q), numbers)
    queries = max(1, min(numbers // columns, triton.next_power_of_2(M)))
    return {"QUERIES": queries, "COLUMNS": columns}


def arguments(context: RowSets, chunk: slice, query: RowSets) -> dict[str, object]:
    """Return what kernels over the products of a chunk know of both sides."""
    C = context.rows.shape[1]
    return {
        "context_factor": context.factor[chunk.start * C :],
        "query_factor": query.factor,
        "context_counts": context.counts[chunk],
        "query_counts": query.counts,
        "M": query.rows.shape[0],
        "C": C,
        "Q": query.rows.shape[1],
        "HAS_CONTEXT_COUNTS": context.has_counts,
        "HAS_QUERY_COUNTS": query.has_counts,
    }


@triton.jit
def rows_of(counts, n, C, HAS_COUNTS: tl.constexpr):
    """Return how many rows of a context exist."""
    rows = tl.cast(C, tl.int32)
    if HAS_COUNTS:
        rows = tl.load(counts + n).to(tl.int32)
    return rows


@triton.jit
def asked(counts, m, M, Q, HAS_COUNTS: tl.constexpr):
    """Return how many rows of queries exist, 0 beyond the last query."""
    found = tl.where(m < M, tl.cast(Q, tl.int32), 0)
    if HAS_COUNTS:
        found = tl.load(counts + m, mask=m < M, other=0).to(tl.int32)
    return found


@triton.jit
def clipped(s, CLIPPED: tl.constexpr):
    """Return products, negative ones times SLOPE if they are clipped."""
    return tl.where(s > 0, s, s * SLOPE) if CLIPPED else s


@triton.jit
def normalised(s, norm, total, CLIPPED: tl.constexpr, NORM: tl.constexpr):
    """Return products that are normalised over the query."""
    y = clipped(s, CLIPPED)
    if NORM == "l2norm":
        y = y / (norm + LEAST)
    if NORM == "softmax":
        y = tl.exp(y - norm) / total
    return y


@triton.jit
def tile_of_products(
    products, norm, contexts, row, factor, of_query, column, m, inside, M, columns,
    CLIPPED: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Return products `[R, K]`, and what they are divided by, of rows and columns of a chunk.

    Args:
        products: `[n C, M Q]`.
        norm: `[2, n C, M]`.
        contexts: n C.
        row: `[R]` indices, int64.
        factor: `[R]` of rows.
        of_query: `[K]`, of columns.
        column: `[K]` indices, int64.
        m: `[K]`, their queries.
        inside: `[R, K]`, which of them exist; 0, 0 and 1 for others.
        M: queries.
        columns: M Q.
        CLIPPED: of `normalised`.
        NORM: of `normalised`.
    """
    s = tl.load(products + (row * columns)[:, None] + column[None, :], mask=inside, other=0.0)
    s = tl.where(inside, s * factor[:, None] * of_query[None, :], 0.0)
    own = tl.zeros_like(s)
    total = own + 1
    if NORM != "none":
        at = norm + (row * M)[:, None] + m[None, :]
        own = tl.load(at, mask=inside, other=0.0)
        if NORM == "softmax":
            total = tl.load(at + contexts * M, mask=inside, other=1.0)
    return s, own, total
