"""Weights whose largest is known after they are: scaled by a power of two, and split into parts."""

import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._norms import power_of_two_scale
from itm_kernels.triton._products import store_parts, whole_groups

_ROWS, _COLUMNS = 8, 128


def split(
    values: Tensor,  # [R, M] fp32
    weights: Tensor,  # [parts, R, M], of `weights_empty`, to write
    largest: Tensor,  # contains the largest absolute value
) -> tuple[Tensor, Tensor]:  # weights, []
    """Write values in parts of fp16, times the power of two that is returned."""
    unit, (parts, R, M) = largest.new_empty(()), weights.shape
    _unit_kernel[(1,)](largest, unit, largest.numel(), BLOCK=1024)
    _split_kernel[(cdiv(R, _ROWS), cdiv(M, _COLUMNS))](
        values, unit, weights, weights.stride(0), weights.stride(1), R, M, PARTS=parts,
        ROWS=_ROWS, COLUMNS=_COLUMNS,
    )  # fmt: skip
    return weights, unit


@jit
def _unit_kernel(largest, unit, size, BLOCK: tl.constexpr):
    found = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, size, BLOCK):
        at = first + tl.arange(0, BLOCK)
        found = tl.maximum(found, tl.load(largest + at, mask=at < size, other=0.0))
    tl.store(unit, power_of_two_scale(tl.max(found, 0), 15))


@jit(do_not_specialize=["rows"])
def _split_kernel(
    values,  # [rows, columns]
    unit,
    weights,  # [PARTS, rows, columns]
    part,
    stride,
    rows,
    columns,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    at = values + (row * columns)[:, None] + column[None, :]
    value = tl.load(at, mask=inside, other=0.0) * tl.load(unit)
    to = weights + (row * stride)[:, None] + column[None, :]
    mask = (row < rows)[:, None] & whole_groups(column, columns)[None, :]
    store_parts(to, tl.cast(part, tl.int64), value, mask, PARTS, "ieee")
