"""Sigmoid loss of blocks that the fused operator does not support, in plain PyTorch.

Rows are processed in blocks, and the backward pass recomputes every block.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.utils.checkpoint import checkpoint

from itm_kernels._autocast import outside_autocast
from itm_kernels.reference._precision import wide


@outside_autocast
def sum_in_blocks(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    scale: Tensor,  # []
    bias: Tensor,  # []
    negative_only: bool,
    rows: int,
) -> Tensor:
    """Sum -log sigmoid over all pairs; the diagonal is positive unless `negative_only`."""

    def block(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, first: int) -> Tensor:
        logits = scale * (wide(image) @ wide(text).T) + bias
        if not negative_only:
            own = torch.arange(first, first + len(image), device=image.device)
            pair = own[:, None] == torch.arange(len(text), device=image.device)
            logits = torch.where(pair, -logits, logits)
        return -logsigmoid(-logits).sum()

    again = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
    starts = range(0, len(image), rows)
    sums = [
        again(part, text, scale, bias, start)
        for start, part in zip(starts, image.split(rows), strict=True)
    ]
    return torch.stack(sums).sum()
