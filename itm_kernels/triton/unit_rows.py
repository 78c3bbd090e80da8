"""Row normalization: a program sums the squares of its rows, then writes the scaled rows.

The second read of a row hits the cache: memory traffic is one read and one write per element.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._norms import SMALLEST, divided_by_norm, square_root, squared_norms
from itm_kernels.triton._operands import row_blocks, stored_dtype, wide_dtype
from itm_kernels.triton._score_tiles import wide_type


@triton.jit
def _place(N, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return a program's row indices, which of them exist, and the columns of a chunk."""
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return tl.minimum(n, N - 1), n < N, tl.arange(0, COLUMNS)


@jit
def _forward_kernel(
    x,
    rows,  # [N, D]
    norm,  # [N]
    stride,
    column_stride,
    N,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write x / |x| and |x|."""
    n, there, columns = _place(N, ROWS, COLUMNS)
    DTYPE: tl.constexpr = wide_type(x.dtype)
    from_row = x + n * stride
    own = square_root(squared_norms(from_row, column_stride, D, columns))
    tl.store(norm + n, own, mask=there)
    for first in range(0, D, COLUMNS):
        d = (first + columns)[None, :].to(tl.int64)
        value = tl.load(from_row[:, None] + d * column_stride, mask=d < D, other=0.0).to(DTYPE)
        at = rows + n[:, None] * D + d
        tl.store(at, divided_by_norm(value, own), mask=there[:, None] & (d < D))


@jit
def _backward_kernel(
    grad,
    rows,  # [N, D]
    norm,  # [N]
    out,  # [N, D]
    stride,
    column_stride,
    N,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write (grad - (grad . unit) unit) / |x|."""
    n, there, columns = _place(N, ROWS, COLUMNS)
    own = tl.load(norm + n)
    from_row = grad + n[:, None] * stride
    products = tl.zeros((ROWS, COLUMNS), own.dtype)
    for first in range(0, D, COLUMNS):
        d = (first + columns)[None, :].to(tl.int64)
        value = tl.load(from_row + d * column_stride, mask=d < D, other=0.0)
        products += value * tl.load(rows + n[:, None] * D + d, mask=d < D, other=0.0)
    # A unit row has no gradient along itself. A row below the smallest norm is not a unit row.
    along = tl.where(own > SMALLEST, tl.sum(products, 1), 0.0)[:, None]
    for first in range(0, D, COLUMNS):
        d = (first + columns)[None, :].to(tl.int64)
        value = tl.load(from_row + d * column_stride, mask=d < D, other=0.0)
        unit = tl.load(rows + n[:, None] * D + d, mask=d < D, other=0.0)
        across = divided_by_norm(value - along * unit, own)
        tl.store(out + n[:, None] * D + d, across, mask=there[:, None] & (d < D))


def _launch(kernel: Any, x: Tensor, *others: Tensor) -> None:
    """Launch a kernel over the rows of x `[..., D]`; the other tensors are contiguous."""
    flat = x.reshape(-1, x.shape[-1])
    N, D = flat.shape
    options = row_blocks(D)
    kernel[(cdiv(N, options["ROWS"]),)](flat, *others, *flat.stride(), N, D, **options)


def unit_rows_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x / |x| for the rows of x `[..., D]`, and |x|."""
    rows = torch.empty(x.shape, dtype=wide_dtype(x), device=x.device)
    norm = rows.new_empty(x.shape[:-1])
    _launch(_forward_kernel, x, rows, norm)
    return rows, norm


def unit_rows_backward(grad: Tensor, rows: Tensor, norm: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the gradient of x, in its dtype, from the gradient of its unit rows."""
    out = torch.empty(rows.shape, dtype=stored_dtype(dtype), device=rows.device)
    _launch(_backward_kernel, grad.to(rows.dtype), rows.contiguous(), norm.contiguous(), out)
    return out.to(dtype)
