"""The precision of scores and sums."""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """Return fp16 and bf16 as fp32, other precisions unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
