"""Rows scaled to Euclidean length 1."""

import torch
from torch import Tensor

from itm_kernels.reference._precision import wide


def unit_rows(x: Tensor) -> Tensor:
    """Scale every row to Euclidean length 1, in fp32 or better, as `torch.nn.functional.normalize`.

    A row of length 0 has no direction: it stays zero and has no gradient, where `normalize` has
    1e12 times what arrives, which fp16 cannot hold.
    """
    x = wide(x)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.clamp_min(1e-12).masked_fill(length == 0, torch.inf)
