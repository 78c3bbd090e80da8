"""Gradients of sums over pairs: a block of weights is written, and multiplied by the library.

Four products of N x M x D altogether: the forward pass, a block's scores again, and two here. A
fused kernel would keep D sums per row of scores, which registers do not hold at D = 1024; a block
costs memory like the inputs and runs at the library's speed.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from itm_kernels.triton._launch import wide_dtype

_MOST_ROWS = 4096


def weights_dtype(x: Tensor) -> torch.dtype:
    """Return the precision of weights: fp16 is too short for the small ones."""
    return torch.bfloat16 if x.dtype == torch.bfloat16 else wide_dtype(x)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return a b as it was summed: what is added to it is not rounded twice."""
    if a.dtype != torch.bfloat16:
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def no_scores(x: Tensor) -> Tensor:  # [0, 0]
    """Return what a forward pass hands to a backward pass that multiplies again."""
    return torch.empty((0, 0), dtype=wide_dtype(x), device=x.device)


def rows_at_once(x: Tensor, y: Tensor, per_row: int) -> int:
    """Return for how many rows so many numbers each are no more than the inputs, or 128 rows."""
    inputs = (x.shape[0] + y.shape[0]) * x.shape[1]
    return min(_MOST_ROWS, max(1, inputs // per_row // 128) * 128)


def products_of_weights(
    x: Tensor,  # [N, D]
    y: Tensor,  # [M, D]
    fill: Callable[[int, Tensor], None],  # first row, weights [R, M] to write
    at_once: int | None = None,  # rows of weights; None: as many as fit
) -> tuple[Tensor, Tensor]:  # [N, D], [M, D]
    """Return W y and W^T x, for weights W `[N, M]` of which a block of rows exists at a time."""
    dtype = weights_dtype(x)
    x, y = x.to(dtype), y.to(dtype)
    (N, D), M = x.shape, y.shape[0]
    at_once = at_once or rows_at_once(x, y, M)
    of_x, of_y = [], torch.zeros((M, D), dtype=wide_dtype(x), device=x.device)
    for first in range(0, N, at_once):
        rows = x[first : first + at_once]
        weights = torch.empty((rows.shape[0], M), dtype=dtype, device=x.device)
        fill(first, weights)
        of_x.append(_product(weights, y))
        of_y += _product(weights.mT, rows)
    return torch.cat(of_x), of_y
