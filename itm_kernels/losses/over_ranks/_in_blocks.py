"""Sums of rows whose scores are computed in blocks, and again in the backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from itm_kernels._autocast import outside_autocast
from itm_kernels.ops._similarity import fused_similarity
from itm_kernels.reference._precision import wide

_SCORES_AT_ONCE = 1 << 20  # more, if the inputs take more memory
Blocks = tuple[slice, ...]


def scores_of(backend: str) -> Callable[[Tensor, Tensor, str], Tensor]:
    """Return the function of scores `[n, N]` of a backend."""

    def score(rows: Tensor, columns: Tensor, metric: str) -> Tensor:
        return fused_similarity(rows, columns, metric, backend)

    return score


def blocks_of(rows: slice, columns: int, D: int) -> Blocks:
    """Split rows into blocks whose scores take no more memory than the inputs, or 2^20 numbers."""
    at_once = max(D, _SCORES_AT_ONCE // columns)
    firsts = range(rows.start, rows.stop, at_once)
    return tuple(slice(first, min(first + at_once, rows.stop)) for first in firsts)


class _InBlocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., Tensor], blocks: Blocks, *inputs: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.options = function, blocks
        found = [wide(tensor) for tensor in inputs]
        return torch.cat([function(block, *found) for block in blocks])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        function, blocks = ctx.options
        inputs = [wide(tensor).detach().requires_grad_() for tensor in ctx.saved_tensors]
        grads = [torch.zeros_like(tensor) for tensor in inputs]
        parts = grad.split([block.stop - block.start for block in blocks])
        for block, upstream in zip(blocks, parts, strict=True):
            with torch.enable_grad(), torch.autocast(grad.device.type, enabled=False):
                values = function(block, *inputs)
            for total, part in zip(
                grads, torch.autograd.grad(values, inputs, upstream), strict=True
            ):
                total += part
        saved = zip(grads, ctx.saved_tensors, strict=True)
        return None, None, *(total.to(tensor.dtype) for total, tensor in saved)


def in_blocks(function: Callable[..., Tensor], blocks: Blocks, *inputs: Tensor) -> Tensor:
    """Concatenate a function of a block of rows and of the inputs, over all blocks.

    The function gets fp16 and bf16 as fp32, and autocast is off. Memory is that of one block.
    """
    return outside_autocast(_apply)(inputs[0], function, blocks, *inputs[1:])


def _apply(
    first: Tensor, function: Callable[..., Tensor], blocks: Blocks, *others: Tensor
) -> Tensor:
    return _InBlocks.apply(function, blocks, first, *others)
