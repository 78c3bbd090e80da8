"""k-means: a tile of scores leaves the nearest centroid; means are products with one-hot rows.

With one set of members per anchor there are as many problems as anchors, and a tile holds the
centroids of several.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._clusters import clusters_of
from itm_kernels.triton._launch import Operands, operands, prepare, rows_of, wide_dtype
from itm_kernels.triton._sums import factor_of, sums_of
from itm_kernels.triton._tiles import highest, no_key, ordered_key, score_tile


@triton.jit
def _nearest_kernel(
    x,
    y,
    offset,  # [B * K] |c|^2 / 2
    member,  # [B, M]
    assignment,  # [B, M] int32
    x_stride,
    y_stride,
    x_part,
    y_part,
    N,  # rows of x
    B,
    K,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    WIDTH: tl.constexpr,  # columns of a problem: a power of two
    HAS_MEMBER: tl.constexpr,
):
    PROBLEMS: tl.constexpr = COLUMNS // WIDTH
    tiles = tl.cdiv(N, ROWS)
    n = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(n, N - 1)
    problem = (tl.program_id(0) // tiles) * PROBLEMS + tl.arange(0, PROBLEMS)
    column = tl.arange(0, COLUMNS)
    of_column = (tl.program_id(0) // tiles) * PROBLEMS + column // WIDTH
    own = tl.minimum(of_column, B - 1).to(tl.int64) * K
    none: tl.constexpr = no_key(tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32)
    KEY: tl.constexpr = tl.int64 if x.dtype.element_ty == tl.float64 else tl.int32
    best = tl.full((ROWS, PROBLEMS), none, KEY)
    nearest = tl.zeros((ROWS, PROBLEMS), tl.int32)
    for first in range(0, K, WIDTH):
        k = first + column % WIDTH
        columns = own + tl.minimum(k, K - 1)
        scores = score_tile(
            x, y, x_stride, y_stride, x_part, y_part, D, rows, columns,
            DEPTH, PARTS, PRECISION, ALIGN, EVEN,
        )  # fmt: skip
        # |x|^2 is the same for every centroid. NaN is nearest, as for torch's argmin.
        keys = ordered_key(scores - tl.load(offset + columns)[None, :])
        keys = tl.where((k < K)[None, :], keys, none)
        keys = tl.reshape(keys, (ROWS, PROBLEMS, WIDTH))
        index = (first + tl.arange(0, WIDTH)).to(tl.int32)
        key, found = highest(keys, index[None, None, :], 2)
        nearest = tl.where(key > best, found, nearest)
        best = tl.maximum(key, best)
    at = problem[None, :].to(tl.int64) * N + n[:, None]
    inside = (n < N)[:, None] & (problem < B)[None, :]
    if HAS_MEMBER:
        nearest = tl.where(tl.load(member + at, mask=inside, other=0) != 0, nearest, -1)
    tl.store(assignment + at, nearest, mask=inside)


def _assign(
    both: Operands,  # rows of x, and centroids [parts, B * K, D]
    centroids: Tensor,  # [B, K, D]
    member: Tensor | None,  # [B, M]
    assignment: Tensor,  # [B, M] to write
) -> None:
    (B, K, _), M = centroids.shape, assignment.shape[1]
    offset = centroids.square().sum(-1).view(-1) / 2
    tile = both.tile
    width = min(triton.next_power_of_2(K), tile.columns)
    grid = triton.cdiv(M, tile.rows) * triton.cdiv(B * width, tile.columns)
    _nearest_kernel[(grid,)](
        **both.arguments(), offset=offset, member=offset if member is None else member,
        assignment=assignment, N=M, B=B, K=K, WIDTH=width, HAS_MEMBER=member is not None,
    )  # fmt: skip


def kmeans(
    x: Tensor,  # [M, D]
    member: Tensor | None,  # [B, M]
    centroids: Tensor,  # [B, K, D]
    iterations: int,
) -> tuple[Tensor, Tensor]:  # [B, M], [B, K, D]
    """Return every member's nearest centroid, -1 for others, after so many updates of these."""
    (B, K, D), M = centroids.shape, x.shape[0]
    dtype = wide_dtype(x)
    wide = rows_of(x.to(dtype))
    centroids = centroids.to(dtype, copy=True, memory_format=torch.contiguous_format)
    member = None if member is None else member.contiguous()
    flat = centroids.view(B * K, D)
    both = operands(wide, flat, shape=(1, 1))
    assignment = torch.empty((B, M), dtype=torch.int32, device=x.device)
    _assign(both, centroids, member, assignment)
    if iterations == 0:
        return assignment.long(), centroids
    # A row that is not finite counts as NaN; in a product it would reach every cluster.
    finite = x.isfinite().all(1)
    counted = torch.where(finite, 1.0, torch.nan).to(torch.float32)
    members = factor_of(rows_of(torch.where(finite[:, None], x, 0)))
    clusters = clusters_of(assignment, K)  # as it will be: it is written in place
    for _ in range(iterations):
        sums, count = sums_of(clusters, members, counted, D)
        count = count[..., None]
        centroids = torch.where(count == 0, centroids, sums / count)
        both = both._replace(y=prepare(centroids.view(B * K, D), both.kind))
        _assign(both, centroids, member, assignment)
    return assignment.long(), centroids
