"""`unit_synthesis` in eager PyTorch, for eager_backend.py."""

from typing import Any

import torch
from torch import Tensor

from itm_kernels import reference


def formula(anchors: Tensor, members: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
    units = reference.unit_rows(anchors), reference.unit_rows(members)
    return reference.rbf_synthesis_logits(*units, *inputs, True)


def forward(*arguments: Any) -> tuple[Tensor, ...]:
    (anchors, members, *inputs), gradients = arguments[:-1], arguments[-1]
    cosine, valid = formula(anchors, members, *inputs)
    (N, K), (M, D) = cosine.shape, members.shape
    N, M = (N, M) if gradients else (0, 0)
    sums = cosine.new_zeros(2, N, K)
    if cosine.dtype == torch.float64:
        return cosine, valid, sums, sums.new_zeros(1, M, D), sums.new_zeros(0)
    return cosine, valid, sums, sums.new_zeros(2, M, D + -D % 16).half(), sums.new_zeros(M)
