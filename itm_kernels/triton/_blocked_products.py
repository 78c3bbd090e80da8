"""Products of a matrix of weights with rows, one block of weights at a time.

The gradient of a sum over pairs is W y and W^T x, where W are the gradients of scores. A kernel
writes a block of W, and the library multiplies it. With the forward pass this is four products of
N x M x D: the scores, the scores of a block again, and two here. A fused kernel would accumulate D
sums per row of scores, which registers cannot hold at D = 1024. A block takes about the memory of
the inputs, and its products run at the library's speed.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from itm_kernels.triton._operands import Operands, wide_dtype
from itm_kernels.triton._products import add_product, row_parts, weights_empty

_MOST_ROWS = 4096


def weights_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of weights: small weights would underflow in fp16."""
    return torch.bfloat16 if x.dtype == torch.bfloat16 else wide_dtype(x)


def no_scores(x: Tensor) -> Tensor:  # [0, 0]
    """Return the empty output of a forward pass whose backward pass recomputes the scores."""
    return torch.empty((0, 0), dtype=wide_dtype(x), device=x.device)


def rows_per_block(x: Tensor, y: Tensor, width: int) -> int:
    """Return how many rows of `width` values fit in the memory of the inputs, at least 128."""
    inputs = (x.shape[0] + y.shape[0]) * x.shape[1]
    return min(_MOST_ROWS, max(1, inputs // width // 128) * 128)


def products_of_weights(
    x: Tensor,  # [N, D]
    y: Tensor,  # [M, D]
    fill: Callable[[int, Tensor], None],  # first row, weights [R, M] to write
    at_once: int | None = None,  # rows of a block; None: as many as fit
) -> tuple[Tensor, Tensor]:  # [N, D], [M, D]
    """Return W y and W^T x for weights W `[N, M]`, of which one block of rows exists at a time."""
    dtype = weights_dtype(x)
    rows = x.to(dtype)[None], y.to(dtype)[None]

    def empty(R: int, M: int) -> Tensor:
        return x.new_empty((1, R, M), dtype=dtype)

    return blocked_products(*rows, empty, lambda first, weights: fill(first, weights[0]), at_once)


def products_in_parts(
    x: Tensor,  # [N, D], the input
    both: Operands,  # `_scaled_operands.scaled_operands` of x and y
    fill: Callable[[int, Tensor], None],  # first row, weights [parts, R, M] for `store_parts`
    fine: bool = False,
) -> tuple[Tensor, Tensor]:  # [N, D], [M, D]
    """Return W y and W^T x for prepared rows, on tensor cores where their dtype allows.

    `_operand_gradients.gradients_of_rows` turns them into gradients.
    """
    rows = row_parts(both, x.shape[1])
    # bf16 blocks have twice the rows of fp32 blocks: 4096 at N = 32,768, D = 1024, so that the
    # product of a block with y has 128 tiles of 128 x 256 for 132 processors.
    row = weights_empty(0, both.shape[1], x, fine=fine)
    numbers = row.shape[0] * row.shape[2] * row.element_size() // 4
    at_once = rows_per_block(rows[0][0], rows[1][0], max(1, numbers))
    return blocked_products(*rows, lambda R, M: weights_empty(R, M, x, fine=fine), fill, at_once)


def blocked_products(
    x: Tensor,  # [parts, N, D]
    y: Tensor,  # [parts, M, D]
    empty: Callable[[int, int], Tensor],
    fill: Callable[[int, Tensor], None],
    at_once: int | None = None,
    of_y: Tensor | None = None,  # W^T x is added to it in place
) -> tuple[Tensor, Tensor]:
    """Return W y and W^T x, block by block; a block is freed before the next is allocated."""
    (_, N, D), M = x.shape, y.shape[1]
    at_once = at_once or rows_per_block(x[0], y[0], M)
    of_x = torch.empty((N, D), dtype=wide_dtype(x), device=x.device)
    for first in range(0, N, at_once):
        R = min(at_once, N - first)
        weights = empty(R, M)
        fill(first, weights)
        add_product(None, weights, y, out=of_x[first : first + R])
        of_y = add_product(of_y, weights, x[:, first : first + R], transposed=True)
        del weights
    assert of_y is not None
    return of_x, of_y
