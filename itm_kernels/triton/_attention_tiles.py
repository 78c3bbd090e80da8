"""Tiles of the products of rows of contexts and query rows, and what kernels over them know."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from itm_kernels.triton._launch import cdiv, next_power_of_2
from itm_kernels.triton._operands import INTERPRETED
from itm_kernels.triton._row_sets import RowSets

ROWS, COLUMNS = (16 if INTERPRETED else 8), 64  # of the products per step
SPAN = 128 if INTERPRETED else 256  # columns of a program, about
PROGRAMS = 1 if INTERPRETED else 512  # at least: four per processor of an H200
LEAST = tl.constexpr(1e-8)  # as in `reference._cross_attention`
SLOPE = tl.constexpr(0.1)


class Options(NamedTuple):
    """Options of cross attention."""

    feature_norm: str
    smooth: float
    aggregate: str
    scale: float


def kind_of_norm(feature_norm: str) -> dict[str, Any]:
    """Return a feature norm as arguments of kernels."""
    clipped = feature_norm.startswith("clipped")
    norm = feature_norm.removeprefix("clipped_") if clipped else feature_norm
    return {"NORM": "none" if norm == "clipped" else norm, "CLIPPED": clipped}


def spans(n: int, M: int, Q: int) -> dict[str, Any]:
    """Return the queries of a program, and how many of their columns it reads per step.

    Spans are longer than blocks of columns, so that they have little padding; but at least
    PROGRAMS programs occupy the processors.
    """
    queries = next_power_of_2(max(1, SPAN // Q))
    while queries > 1 and n * cdiv(M, queries) < PROGRAMS and queries * Q > COLUMNS:
        queries //= 2
    queries = min(queries, next_power_of_2(M))
    columns = min(next_power_of_2(Q), COLUMNS)
    return {
        "QUERIES": queries,
        "OF_QUERY": min(next_power_of_2(Q), max(1, 2 * COLUMNS // queries)),
        "AT_ONCE": min(queries, COLUMNS // columns),
        "OF_WEIGHTS": columns,
        "WHOLE": columns >= Q,
    }


def arguments(context: RowSets, chunk: slice, query: RowSets) -> dict[str, Any]:
    """Return what a kernel over the products of a chunk knows of both sides."""
    (_, C, D), (M, Q, _) = context.rows.shape, query.rows.shape
    found = {
        "context": context.rows[chunk],
        "query": query.rows,
        "query_norm": query.norm,
        "context_factor": context.factor[chunk.start * C :],
        "query_factor": query.factor,
        "context_counts": context.counts[chunk],
        "query_counts": query.counts,
        "HAS_CONTEXT_COUNTS": context.has_counts,
        "HAS_QUERY_COUNTS": query.has_counts,
        **{"M": M, "C": C, "Q": Q, "D": D},
    }
    for side, rows in (("context", context.rows), ("query", query.rows)):
        names = (f"{side}_{part}" for part in ("set", "stride", "column"))
        found |= zip(names, rows.stride(), strict=True)
    return found


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
