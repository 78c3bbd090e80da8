"""Bounded sums over the pairs of one modality.

Where the bounds are the same for all rows the matrix is symmetric: tiles of the upper triangle are
computed alone, each leaving sums for its rows and for its columns, and one bit per pair for the
gradient. Official distances are divided by their row's norm and bounded by ranks, which need whole
rows: a block of rows at a time.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._compare import (
    compared_tile,
    comparison,
    matrices,
    of_unit,
    pull,
    unit,
)
from itm_kernels.triton._launch import rows_of, wide_dtype
from itm_kernels.triton._tiles import number, same_id


@triton.jit
def _triangle_kernel(
    x,
    y,
    raw_x,  # [N, D]
    raw_y,
    x_term,  # [N]
    y_term,
    ids,
    sums,  # [tiles, N]
    mask,  # [N, words] int32
    x_stride,
    y_stride,
    x_part,
    y_part,
    raw_x_stride,
    raw_y_stride,
    N,
    words,
    D,
    raw_D,
    low_bound: tl.float64,
    high_bound: tl.float64,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    METRIC: tl.constexpr,
    CHUNK: tl.constexpr,
    MODE: tl.constexpr,
    HAS_IDS: tl.constexpr,
    KEEP: tl.constexpr,
):
    tiles = tl.cdiv(N, ROWS)
    row_tile = tl.program_id(0) // tiles
    column_tile = tl.program_id(0) % tiles
    if row_tile > column_tile:
        return
    n = row_tile * ROWS + tl.arange(0, ROWS)
    m = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    rows, columns = tl.minimum(n, N - 1), tl.minimum(m, N - 1)
    key = compared_tile(
        x, y, raw_x, raw_y, x_term, y_term, x_stride, y_stride, x_part, y_part,
        raw_x_stride, raw_y_stride, D, raw_D, rows, columns,
        DEPTH, PARTS, PRECISION, ALIGN, EVEN, METRIC, CHUNK,
    )  # fmt: skip
    if METRIC == "cosine":
        key = 1 - key
    low, high = number(low_bound, key.dtype), number(high_bound, key.dtype)
    # Written as "not outside", so that a NaN counts as inside and shows in the sum.
    outside = (key <= low) | (key >= high)
    outside |= same_id(rows, columns, ids, ids, HAS_IDS) & (key == key)
    outside |= (n >= N)[:, None] | (m >= N)[None, :]
    value = tl.where(outside, 0.0, high - key if MODE == "repel" else key)
    if MODE == "official":
        # An infinite row lies outside every band: its own diagonal entry shows it.
        own = (rows[:, None] == columns[None, :]) & (n < N)[:, None] & (m < N)[None, :]
        value += tl.where(own, 0 * key, 0.0)
    tl.store(sums + column_tile.to(tl.int64) * N + n, tl.sum(value, 1), mask=n < N)
    if row_tile < column_tile:
        tl.store(sums + row_tile.to(tl.int64) * N + m, tl.sum(value, 0), mask=m < N)
    if KEEP:
        inside = tl.where(outside, 0, 1)
        word = column_tile * (COLUMNS // 32) + tl.arange(0, COLUMNS // 32)
        at = n[:, None].to(tl.int64) * words + word[None, :]
        tl.store(mask + at, _bits(inside), mask=(n < N)[:, None] & (word < words)[None, :])
        if row_tile < column_tile:
            word = row_tile * (ROWS // 32) + tl.arange(0, ROWS // 32)
            at = m[:, None].to(tl.int64) * words + word[None, :]
            there = (m < N)[:, None] & (word < words)[None, :]
            tl.store(mask + at, _bits(tl.trans(inside)), mask=there)


@triton.jit
def _bits(inside):
    """Return 32 columns as the bits of one int32."""
    bits = tl.reshape(inside, (inside.shape[0], inside.shape[1] // 32, 32))
    return tl.sum(bits << tl.arange(0, 32)[None, None, :], 2)


def intra_modal_forward(
    x: Tensor,  # [N, D]
    ids: Tensor | None,  # [N]
    metric: str,
    mode: str,
    lower: float,
    upper: float,
    per_row: bool,
    keep_mask: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return every row's sum, its bounds and norm, and the pairs inside if they are to be kept."""
    N = x.shape[0]
    of_row = torch.empty(N, dtype=wide_dtype(x), device=x.device)
    norm = torch.ones_like(of_row)
    words = (N, triton.cdiv(N, 32)) if keep_mask else (0, 0)
    mask = torch.empty(words, dtype=torch.int32, device=x.device)
    if _relative(metric, mode):
        row, low, high = _by_rank(x, ids, metric, lower, upper, per_row, norm)
        return row, low, high, norm, mask
    if mode == "official":
        lower, upper = upper, 1 - lower
    low, high = torch.full_like(of_row, lower), torch.full_like(of_row, upper)
    x = rows_of(x)
    found = comparison(x, x, _metric(metric, mode), (N, N), square=True)
    sums = torch.empty(
        (triton.cdiv(N, found.tile.rows), N), dtype=of_row.dtype, device=of_row.device
    )
    _triangle_kernel[found.tile.programs(N, N)](
        **found.arguments, ids=x if ids is None else ids.contiguous(), HAS_IDS=ids is not None,
        sums=sums, mask=mask, N=N, words=words[1], low_bound=lower, high_bound=upper,
        MODE=mode, KEEP=keep_mask,
    )  # fmt: skip
    row = sums.sum(0, dtype=torch.float64).to(of_row.dtype)
    return row, low, high, norm, mask


def _relative(metric: str, mode: str) -> bool:
    return mode == "official" and metric != "cosine"


def _metric(metric: str, mode: str) -> str:
    # The official cosine takes rows as unit vectors, which they need not be.
    return "dot" if metric == "cosine" and mode == "official" else metric


def _blocks(N: int, D: int) -> Iterator[slice]:
    """Yield slices of rows whose distances to all rows take no more memory than the rows.

    They start where tiles do: a distance has the same bits in every block that it is computed in.
    """
    at_once = max(1, D // 128) * 128
    for first in range(0, N, at_once):
        yield slice(first, min(first + at_once, N))


def _same(ids: Tensor | None, block: slice, N: int, like: Tensor) -> Tensor:
    ids = torch.arange(N, device=like.device) if ids is None else ids
    return ids[block, None] == ids


def _by_rank(
    x: Tensor,
    ids: Tensor | None,
    metric: str,
    lower: float,
    upper: float,
    per_row: bool,
    norm: Tensor,  # [N] to write
) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums of D / |D_n| within bounds that are ranks of it, and the bounds."""
    N, D = x.shape
    row, low, high = (torch.empty_like(norm) for _ in range(3))
    bounds = None
    for block in _blocks(N, D):
        distance = matrices(x[block], x, 1, metric, norm.dtype)[0]
        # Rows of equal embeddings have norm 0: the floor keeps 0 / 0 out.
        norm[block] = torch.linalg.vector_norm(distance, dim=1).clamp_min(1e-12)
        relative = distance / norm[block, None]
        if per_row or bounds is None:
            ranked = (relative if per_row else relative[:1]).sort(1).values
            ranked = torch.nn.functional.pad(ranked, (0, 1), value=torch.inf)
            bounds = [ranked[:, min(round(bound * N), N)] for bound in (lower, upper)]
        low[block], high[block] = bounds
        inside = _inside(relative, low[block, None], high[block, None])
        inside &= ~_same(ids, block, N, x) | relative.isnan()
        row[block] = torch.where(inside, relative, 0).sum(1)
    return row, low, high


def _inside(key: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return ~((key <= low) | (key >= high))


def intra_modal_backward(
    grad: Tensor,  # [N]
    x: Tensor,
    ids: Tensor | None,
    row: Tensor,
    low: Tensor,
    high: Tensor,
    norm: Tensor,
    mask: Tensor,
    metric: str,
    mode: str,
) -> Tensor:
    """Return the gradient of x: a block's weights hold both places where a pair appears."""
    N, D = x.shape
    share = grad.to(norm.dtype) / norm
    if mode == "repel":
        share = -share
    slope = share * row if _relative(metric, mode) else None
    wide = x.to(norm.dtype)
    compared = wide
    if metric == "cosine" and mode != "official":
        compared = unit(wide)
    bits = torch.arange(32, device=x.device, dtype=torch.int32)
    blocks = []
    for block in _blocks(N, D):
        keep = mask.shape[0] > 0
        if not keep or metric == "l2":
            key = matrices(x[block], x, 1, _metric(metric, mode), norm.dtype)[0]
        if keep:
            inside = ((mask[block, :, None] >> bits) & 1).flatten(1)[:, :N].bool()
            weight = torch.where(inside, share[block, None] + share, 0)
        else:
            own, other = key / norm[block, None], key / norm
            if slope is not None and metric != "l1":
                # A bound is one of the row's own distances, to the last bit: products of parts
                # are not symmetric to the last bit, so that a row's are computed as its own.
                other = matrices(x, x[block], 1, metric, norm.dtype)[0].mT / norm
            if metric == "cosine" and mode != "official":
                own = other = 1 - key
            there = _inside(own, low[block, None], high[block, None])
            here = _inside(other, low, high)
            off = _same(ids, block, N, x)
            weight = torch.where(there & ~off, share[block, None], 0)
            weight += torch.where(here & ~off, share, 0)
            if slope is not None:
                weight -= slope[block, None] * own + slope * other
        if metric == "cosine":
            if mode == "official":
                # An infinite row is outside every band, and its sum is NaN: so is its gradient.
                weight.diagonal(block.start).add_(0 * row[block])
            blocks.append(weight @ compared if mode == "official" else -weight @ compared)
            continue
        if metric == "sqeuclidean":
            weight = 2 * weight
        if metric == "l2":
            # At distance 0 the gradient is 0, not 0 / 0.
            weight = (weight / key).masked_fill_(key == 0, 0)
        blocks.append(pull(wide[block], wide, weight[None], metric == "l1"))
    found = torch.cat(blocks)
    return (of_unit(x, found) if compared is not wide else found).to(x.dtype)
