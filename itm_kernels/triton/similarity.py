"""Batched similarity matrices, with gradients from library products or direct differences.

Large dot products of half-precision rows are the library's; those of fp32 rows are three products
of fp16 parts, which take a third of the time of fp32 units.
"""

from typing import Any

import torch
from torch import Tensor

from itm_kernels.triton import _scaled_operands
from itm_kernels.triton._blocked_products import products_in_parts
from itm_kernels.triton._distance_gradients import distance_gradient
from itm_kernels.triton._metrics import matrices, metric_operands, weighted_differences
from itm_kernels.triton._operand_gradients import gradients_of_rows
from itm_kernels.triton._operands import (
    INTERPRETED,
    Operands,
    contiguous_rows,
    kind_of,
    wide_dtype,
)
from itm_kernels.triton._score_gradients import gradient_scale, write_score_gradients

LIBRARY_PAIRS = 1 << 22  # 128 tiles of 128 x 256: one for every processor of an H200
_SMALLEST = 1e-12  # smallest divisor of a row, as in torch.nn.functional.normalize


def _flat(x: Tensor, batch: torch.Size) -> Tensor:  # [..., N, D] -> [B * N, D]
    return contiguous_rows(x.expand(*batch, *x.shape[-2:]).reshape(-1, x.shape[-1]))


def similarity_forward(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """Return the similarities or distances `[..., N, M]` of x `[..., N, D]` and y `[..., M, D]`."""
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    if metric == "dot" and _by_library(x, y):
        return x @ y.mT
    return _matrices(x, y, batch, metric, x.dtype)


def _by_library(x: Tensor, y: Tensor) -> bool:
    """Return whether the library computes dot products: large ones that need no parts.

    Smaller ones could be split along D, and their sums rounded to half precision in between.
    """
    whole = kind_of(x) in ("half", "fp64") and not INTERPRETED
    return whole and x.shape[-2] * y.shape[-2] >= LIBRARY_PAIRS


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
    if batch.numel() == 1 and grad.numel() > 0:
        found = _of_one_matrix(grad.reshape(grad.shape[-2:]), x, y, metric)
        if found is not None:
            return found
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
        to_x = weighted_differences(flat_x, flat_y, weight, metric == "l1")
        to_y = weighted_differences(flat_y, flat_x, weight.mT, metric == "l1")
        to_x, to_y = to_x.reshape(*batch, *x.shape[-2:]), to_y.reshape(*batch, *y.shape[-2:])
    return to_x.sum_to_size(x.shape).to(x.dtype), to_y.sum_to_size(y.shape).to(y.dtype)


def _divisor(norm: Tensor) -> Tensor:
    """Return the divisor of a row: its norm, at least 1e-12, or infinity for a zero row."""
    return norm.clamp_min(_SMALLEST).masked_fill_(norm == 0, torch.inf)


def _of_one_matrix(
    grad: Tensor,  # [N, M]
    x: Tensor,
    y: Tensor,
    metric: str,
) -> tuple[Tensor, Tensor] | None:
    """Return gradients from products of half-precision weights where these are faster, or None."""
    flat_x, flat_y = (contiguous_rows(side.reshape(-1, side.shape[-1])) for side in (x, y))
    kind, cosine = kind_of(x), metric == "cosine"
    if metric in ("l2", "sqeuclidean"):
        largest = _largest(grad, x)
        to_x = _of_distances(grad, flat_x, flat_y, metric, largest)
        to_y = _of_distances(grad.mT, flat_y, flat_x, metric, largest)
    elif metric != "l1" and (kind == "parts" or (cosine and kind == "half")):
        both = _scaled_operands.scaled_operands(flat_x, flat_y, cosine)
        if kind == "parts":
            unit = _weight_unit(both, _largest(grad, x), metric)
        else:
            # fp16 rows are scaled to norms of 2^13 and more by powers of two, and so are factors.
            size = 2.0**26 if x.dtype == torch.float16 else 1.0
            unit = torch.full((), size, device=x.device)
        factors = {"x_factor": both.x_factor, "y_factor": both.y_factor, "FACTORS": True}
        known = {**_given(grad, metric), **factors, "unit": unit}

        def fill(first: int, weights: Tensor) -> None:
            write_score_gradients(weights, first, flat_x, **known)

        products = products_in_parts(flat_x, both, fill)
        to_x, to_y = gradients_of_rows([flat_x, flat_y], products, unit, cosine)
    else:
        return None
    return to_x.reshape(x.shape), to_y.reshape(y.shape)


def _of_distances(
    grad: Tensor,  # [N, M]
    x: Tensor,  # [N, D]
    y: Tensor,  # [M, D]
    metric: str,
    largest: Tensor,  # contains the largest element of grad
) -> Tensor:  # [N, D]
    found = metric_operands(x, y, metric, (len(x), len(y)))
    assert found.both is not None
    unit = _weight_unit(found.both, largest, metric)
    return distance_gradient(x, y, found, unit, _given(grad, metric))


def _largest(grad: Tensor, x: Tensor) -> Tensor:  # [N]
    return torch.linalg.vector_norm(grad, torch.inf, 1, dtype=wide_dtype(x))


def _weight_unit(both: Operands, largest: Tensor, metric: str) -> Tensor:  # []
    """Return the factor of weights, which scales the largest to 2^14."""
    factors = [side for side in (both.x_factor, both.y_factor) if side is not None]
    return gradient_scale(largest, torch.ones_like(largest), None, torch.cat(factors), metric)


def _given(weight: Tensor, metric: str) -> dict[str, Any]:
    rows, columns = weight.stride()
    known = {"SOURCE": "given", "METRIC": metric, "given": weight}
    return {**known, "given_row": rows, "given_column": columns}


def _unit(x: Tensor) -> Tensor:
    """Return x / |x| in at least fp32, 0 for zero rows."""
    x = x.to(wide_dtype(x))
    return x / _divisor(torch.linalg.vector_norm(x, dim=-1, keepdim=True))


def _of_unit(x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient of x from the gradient of `_unit(x)`."""
    x = x.to(wide_dtype(x))
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    divisor = _divisor(norm)
    rows = x / divisor
    along = (rows * grad).sum(-1, keepdim=True).masked_fill(norm < _SMALLEST, 0)
    return (grad - rows * along) / divisor
