"""Batched similarity matrices; gradients of products are the library's, of differences direct."""

import torch
from torch import Tensor

from itm_kernels.triton._compare import matrices, pull
from itm_kernels.triton._launch import rows_of, wide_dtype

_SMALLEST = 1e-12  # length of a row that is divided by, as torch.nn.functional.normalize has it


def _flat(x: Tensor, batch: torch.Size) -> Tensor:  # [..., N, D] -> [B * N, D]
    return rows_of(x.expand(*batch, *x.shape[-2:]).reshape(-1, x.shape[-1]))


def similarity_forward(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """Return the similarities or distances `[..., N, M]` of x `[..., N, D]` and y `[..., M, D]`."""
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    return _matrices(x, y, batch, metric, x.dtype)


def _matrices(x: Tensor, y: Tensor, batch: torch.Size, metric: str, dtype: torch.dtype) -> Tensor:
    if batch.numel() == 0:
        return x.new_empty((*batch, x.shape[-2], y.shape[-2]), dtype=dtype)
    found = matrices(_flat(x, batch), _flat(y, batch), batch.numel(), metric, dtype)
    return found.reshape(*batch, *found.shape[1:])


def similarity_backward(
    grad: Tensor,  # [..., N, M]
    x: Tensor,
    y: Tensor,
    metric: str,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and y."""
    batch = grad.shape[:-2]
    dtype = wide_dtype(x)
    if metric in ("dot", "cosine"):
        rows = [x, y]
        if metric == "cosine" or x.shape[:-2] != y.shape[:-2]:  # sums over the batch are in fp32
            rows, grad = [side.to(dtype) for side in rows], grad.to(dtype)
        if metric == "cosine":
            rows = [_unit(side) for side in rows]
        to_x, to_y = grad @ rows[1], grad.mT @ rows[0]
        if metric == "cosine":
            to_x, to_y = _of_unit(x, to_x), _of_unit(y, to_y)
    else:
        weight = grad.to(dtype)
        if metric == "sqeuclidean":
            weight = 2 * weight
        if metric == "l2":
            distance = _matrices(x, y, batch, "l2", dtype)
            # At distance 0 the gradient is 0, not 0 / 0.
            weight = (weight / distance).masked_fill_(distance == 0, 0)
        weight = weight.reshape(-1, *weight.shape[-2:])
        flat_x, flat_y = _flat(x, batch), _flat(y, batch)
        to_x = pull(flat_x, flat_y, weight, metric == "l1").reshape(*batch, *x.shape[-2:])
        to_y = pull(flat_y, flat_x, weight.mT, metric == "l1").reshape(*batch, *y.shape[-2:])
    return to_x.sum_to_size(x.shape).to(x.dtype), to_y.sum_to_size(y.shape).to(y.dtype)


def _divisor(length: Tensor) -> Tensor:
    """Return what a row is divided by: infinity for one of length 0, which has no direction."""
    return length.clamp_min(_SMALLEST).masked_fill_(length == 0, torch.inf)


def _unit(x: Tensor) -> Tensor:
    """Return x / |x| in fp32 or better, 0 where |x| is."""
    x = x.to(wide_dtype(x))
    return x / _divisor(torch.linalg.vector_norm(x, dim=-1, keepdim=True))


def _of_unit(x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient of x from that of `_unit(x)`."""
    x = x.to(wide_dtype(x))
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    divisor = _divisor(length)
    rows = x / divisor
    along = (rows * grad).sum(-1, keepdim=True).masked_fill(length < _SMALLEST, 0)
    return (grad - rows * along) / divisor
