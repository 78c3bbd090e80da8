"""Batched similarity matrices.

Products run on tensor cores. Squared distances are expanded, |x|^2 + |y|^2 - 2 x.y, unless that
cancels anywhere in a tile: it is then computed again from direct differences, as l1 always is.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import operands, rows_of, stored_dtype, tile_of, wide_dtype
from itm_kernels.triton._tiles import difference_tile, paired_scores, place, score_tile, wide_type

_SMALLEST = 1e-12  # length of a row that is divided by, as torch.nn.functional.normalize has it


@triton.jit
def _squares_kernel(x, out, stride, N, D, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(n, N - 1)
    tl.store(out + n, paired_scores(x, x, stride, stride, D, rows, rows, DEPTH), mask=n < N)


def _squares(x: Tensor) -> Tensor:  # [N, D] -> [N]
    N, D = x.shape
    out = torch.empty(N, dtype=wide_dtype(x), device=x.device)
    _squares_kernel[(triton.cdiv(N, 16),)](x, out, x.stride(0), N, D, ROWS=16, DEPTH=128)
    return out


@triton.jit
def _products_kernel(
    x,
    y,
    raw_x,  # [B * N, D] as they came
    raw_y,
    x_term,  # [B * N] 1 / length for cosines, squared length for distances
    y_term,
    out,  # [B, N, M]
    x_stride,
    y_stride,
    x_part,
    y_part,
    raw_x_stride,
    raw_y_stride,
    N,
    M,
    D,
    raw_D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    METRIC: tl.constexpr,
    CHUNK: tl.constexpr,
):
    tiles = tl.cdiv(N, ROWS) * tl.cdiv(M, COLUMNS)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    n, m, _, _ = place(tl.program_id(0) % tiles, ROWS, COLUMNS, N, M)
    rows, columns = batch * N + tl.minimum(n, N - 1), batch * M + tl.minimum(m, M - 1)
    scores = score_tile(
        x, y, x_stride, y_stride, x_part, y_part, D, rows, columns,
        DEPTH, PARTS, PRECISION, ALIGN, EVEN,
    )  # fmt: skip
    if METRIC == "cosine":
        scores *= tl.load(x_term + rows)[:, None] * tl.load(y_term + columns)[None, :]
    if METRIC == "l2" or METRIC == "sqeuclidean":
        lengths = tl.load(x_term + rows)[:, None] + tl.load(y_term + columns)[None, :]
        scores = lengths - 2 * scores
        # Below a quarter of the terms two bits are gone, as many as the contract grants.
        if tl.max((scores < lengths / 4).to(tl.int32)) > 0:
            scores = difference_tile(
                raw_x, raw_y, raw_x_stride, raw_y_stride, raw_D, rows, columns, CHUNK, True
            )
        if METRIC == "l2":
            scores = tl.sqrt(scores)
    at = batch * N * M + n[:, None].to(tl.int64) * M + m[None, :]
    tl.store(out + at, scores, mask=(n < N)[:, None] & (m < M)[None, :])


@triton.jit
def _l1_kernel(
    x,
    y,
    out,
    x_stride,
    y_stride,
    N,
    M,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    tiles = tl.cdiv(N, ROWS) * tl.cdiv(M, COLUMNS)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    n, m, _, _ = place(tl.program_id(0) % tiles, ROWS, COLUMNS, N, M)
    rows, columns = batch * N + tl.minimum(n, N - 1), batch * M + tl.minimum(m, M - 1)
    sums = difference_tile(x, y, x_stride, y_stride, D, rows, columns, DEPTH, False)
    at = batch * N * M + n[:, None].to(tl.int64) * M + m[None, :]
    tl.store(out + at, sums, mask=(n < N)[:, None] & (m < M)[None, :])


def _flat(x: Tensor, batch: torch.Size) -> Tensor:  # [..., N, D] -> [B * N, D]
    return rows_of(x.expand(*batch, *x.shape[-2:]).reshape(-1, x.shape[-1]))


def similarity_forward(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """Return the similarities or distances `[..., N, M]` of x `[..., N, D]` and y `[..., M, D]`."""
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    return _matrices(x, y, batch, metric, x.dtype)


def _matrices(x: Tensor, y: Tensor, batch: torch.Size, metric: str, dtype: torch.dtype) -> Tensor:
    (N, D), M, B = x.shape[-2:], y.shape[-2], batch.numel()
    x, y = _flat(x, batch), _flat(y, batch)
    out = torch.empty((*batch, N, M), dtype=stored_dtype(dtype), device=x.device)
    chunk = tile_of("difference", N, M, D)
    if metric == "l1":
        options = {"x_stride": x.stride(0), "y_stride": y.stride(0), **chunk.options()}
        _l1_kernel[(B * chunk.programs(N, M)[0],)](x=x, y=y, out=out, N=N, M=M, D=D, **options)
        return out.to(dtype)
    terms = [x, y]  # stand-ins that the dot product does not read
    if metric != "dot":
        terms = [_squares(rows) for rows in (x, y)]
    if metric == "cosine":
        terms = [1 / term.sqrt().clamp_min(_SMALLEST) for term in terms]
    # Small tiles where a tile may be computed twice: a difference is wide in registers.
    shape = (N, M) if metric in ("dot", "cosine") else (chunk.rows, chunk.columns)
    both = operands(x, y, shape=shape)
    _products_kernel[(B * both.tile.programs(N, M)[0],)](
        **both.arguments(), raw_x=x, raw_y=y, raw_x_stride=x.stride(0), raw_y_stride=y.stride(0),
        x_term=terms[0], y_term=terms[1], out=out, N=N, M=M, raw_D=D, METRIC=metric,
        CHUNK=chunk.depth,
    )  # fmt: skip
    return out.to(dtype)


@triton.jit
def _pull_kernel(
    x,  # [B * N, D]
    y,  # [B * M, D]
    weight,  # [B, N, M]
    out,  # [B * N, D]
    x_stride,
    y_stride,
    batch_stride,  # of weight
    row_stride,
    column_stride,
    N,
    M,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SIGN: tl.constexpr,
):
    row_tiles = tl.cdiv(N, ROWS)
    batch = (tl.program_id(0) // row_tiles).to(tl.int64)
    n = (tl.program_id(0) % row_tiles) * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(n, N - 1)
    depth = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    inside = (depth < D)[None, :]
    DTYPE: tl.constexpr = wide_type(x.dtype)
    own = batch * N + rows
    here = tl.load(x + own[:, None] * x_stride + depth[None, :], mask=inside, other=0.0).to(DTYPE)
    total = tl.zeros((ROWS, DEPTH), DTYPE)
    for first in range(0, M, COLUMNS):
        m = first + tl.arange(0, COLUMNS)
        at = (batch * M + m)[:, None] * y_stride + depth[None, :]
        there = tl.load(y + at, mask=(m < M)[:, None] & inside, other=0.0).to(DTYPE)
        at = rows[:, None].to(tl.int64) * row_stride + m[None, :].to(tl.int64) * column_stride
        share = tl.load(weight + batch * batch_stride + at, mask=(m < M)[None, :], other=0.0)
        apart = here[:, None, :] - there[None, :, :]
        if SIGN:
            apart = tl.where(apart > 0, 1.0, tl.where(apart < 0, -1.0, apart))
        total += tl.sum(share[:, :, None] * apart, 1)
    tl.store(out + own[:, None] * D + depth[None, :], total, mask=(n < N)[:, None] & inside)


def _pull(x: Tensor, y: Tensor, weight: Tensor, sign: bool) -> Tensor:
    """Return, for every row of x, the sum of weight (x - y) or weight sign(x - y) over y."""
    (B, N, M), D = weight.shape, x.shape[1]
    out = torch.empty(x.shape, dtype=weight.dtype, device=x.device)
    tile = tile_of("pull", N, M, D)
    _pull_kernel[(B * triton.cdiv(N, tile.rows), triton.cdiv(D, tile.depth))](
        x, y, weight, out, x.stride(0), y.stride(0), *weight.stride(), N, M, D,
        SIGN=sign, **tile.options(),
    )  # fmt: skip
    return out


def _of_unit(x: Tensor, grad: Tensor, metric: str) -> Tensor:
    """Return the gradient of x from that of x, or of x / |x|."""
    if metric == "dot":
        return grad
    x = x.to(wide_dtype(x))
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    unit = x / length.clamp_min(_SMALLEST)
    along = (unit * grad).sum(-1, keepdim=True).masked_fill(length < _SMALLEST, 0)
    return (grad - unit * along) / length.clamp_min(_SMALLEST)


def similarity_backward(
    grad: Tensor,  # [..., N, M]
    x: Tensor,
    y: Tensor,
    metric: str,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and y: products are the library's, differences are direct."""
    batch = grad.shape[:-2]
    dtype = wide_dtype(x)
    if metric in ("dot", "cosine"):
        rows = [x, y]
        if metric == "cosine" or x.shape[:-2] != y.shape[:-2]:  # sums over the batch are in fp32
            rows, grad = [side.to(dtype) for side in rows], grad.to(dtype)
        if metric == "cosine":
            rows = [torch.nn.functional.normalize(side, dim=-1) for side in rows]
        to_x, to_y = grad @ rows[1], grad.mT @ rows[0]
        to_x, to_y = _of_unit(x, to_x, metric), _of_unit(y, to_y, metric)
    else:
        weight = grad.to(dtype)
        if metric == "sqeuclidean":
            weight = 2 * weight
        if metric == "l2":
            distance = _matrices(x, y, batch, "l2", dtype)
            # At distance 0 the gradient is 0, not 0 / 0.
            weight = (weight / distance).masked_fill_(distance == 0, 0)
        weight = weight.reshape(-1, *weight.shape[-2:])
        flat_x, flat_y = _flat(x, batch), _flat(y, batch)
        to_x = _pull(flat_x, flat_y, weight, metric == "l1").reshape(*batch, *x.shape[-2:])
        to_y = _pull(flat_y, flat_x, weight.mT, metric == "l1").reshape(*batch, *y.shape[-2:])
    return to_x.sum_to_size(x.shape).to(x.dtype), to_y.sum_to_size(y.shape).to(y.dtype)
