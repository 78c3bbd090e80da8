"""Rows scaled to Euclidean norm 1."""

import torch
from torch import Tensor

from itm_kernels.reference._precision import wide


def unit_rows(x: Tensor) -> Tensor:
    """Scale every row to Euclidean norm 1, in fp32 or better, as `torch.nn.functional.normalize`.

    A zero row stays zero and has gradient 0. The gradient of `normalize` would be 1e12 times the
    incoming one, which overflows fp16.
    """
    x = wide(x)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.clamp_min(1e-12).masked_fill(norm == 0, torch.inf)
