"""Library products of weights and rows, in the precision of the rows' dtype.

A kernel writes a block of weights in parts that tensor cores multiply, and the library accumulates
their products in fp32; no other pass over the block is needed. Weights of bf16 and fp16 rows are
one part of the same dtype, weights of fp32 rows two parts of fp16. Weights of tf32 rows are one
part, rounded to tf32, because tensor cores would truncate it. Weights of fp64 rows are fp64.

Measured in the interpreter: largest error against fp64, relative to the largest element, of W y
rounded to y's dtype, for normal and for softmax weights [64, 2048], D = 333.

    y       W and y in fp32        in bf16 parts            in fp16 parts
    fp32    2.4e-7, 1.2e-7         two: 1.1e-5, 2.4e-5      two: 2.4e-7, 1.5e-7
    bf16    2.6e-3, 2.0e-3         one: 3.1e-3, 2.9e-3      one (fine): 2.6e-3, 2.1e-3
    fp16    3.8e-4, 3.3e-4         -                        one: 3.8e-4, 3.7e-4
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import jit
from itm_kernels.triton._norms import power_of_two_scale
from itm_kernels.triton._operands import INTERPRETED, Operands, kind_of, to_tf32

_INTERPRETED = tl.constexpr(INTERPRETED)
# (parts of weights, parts of rows) -> pairs of parts that are multiplied, low to high.
_TERMS = {
    (1, 1): ((0, 0),),
    (1, 2): ((0, 1), (0, 0)),
    (2, 1): ((1, 0), (0, 0)),
    (2, 2): ((1, 0), (0, 1), (0, 0)),
}
# Gradients with fewer elements than this use two parts of weights also in half precision.
_FEW = 1 << 14


def row_parts(both: Operands, D: int) -> tuple[Tensor, Tensor]:  # [parts, N, D], [parts, M, D]
    """Return views of both sides' rows without the padding."""
    return both.x[..., :D], both.y[..., :D]


def weights_empty(
    R: int,
    M: int,
    x: Tensor,
    parts: int | None = None,
    fine: bool = False,
    kind: str = "",
) -> Tensor:  # [parts, R, M]
    """Allocate weights that a kernel writes by `store_parts` and that multiply rows of x.

    The stride between rows is a multiple of 16 elements, as the library's tensor-core kernels
    require; parts and rows are strided. fp16 cannot hold weights above 65504, so a kernel
    multiplies its weights by the `weight_scale` of their bound.

    Args:
        R: rows of weights.
        M: columns.
        x: the rows before `_scaled_operands` prepares them.
        parts: number of parts; None: by the kind and the size of x.
        fine: as for the operands; bf16 rows then have fp16 weights.
        kind: of the products; "" is that of x.
    """
    kind = kind or kind_of(x)
    fine = fine and x.dtype == torch.bfloat16
    few = kind == "half" and not fine and x.numel() < _FEW
    parts = parts or (2 if kind == "parts" or few else 1)
    dtype = torch.float16 if kind == "parts" or fine else x.dtype
    return torch.empty((parts, R, M + -M % 16), dtype=dtype, device=x.device)[..., :M]


def weight_scale(
    x: Tensor,  # [N, D]
    both: Operands,  # `scaled_operands` of x and y
    scale: Tensor,  # []
    *bounds: Tensor,  # up to three; the sum of their largest elements bounds every weight
) -> Tensor | None:  # []
    """Return the power of two that scales scale x weights x factors to below 2^15; None for 1.

    Weights below 2^-24 of the largest lose bits, weights below 2^-39 of it become zero.
    """
    if kind_of(x) != "parts" and torch.float16 not in (x.dtype, both.x.dtype, both.y.dtype):
        return None
    assert both.x_factor is not None
    assert both.y_factor is not None
    unit = torch.empty_like(scale)
    vectors = [*bounds, *(scale.new_empty(0) for _ in range(3 - len(bounds)))]
    sizes = [vector.numel() for vector in (*vectors, both.x_factor, both.y_factor)]
    _weight_scale_kernel[(1,)](
        *vectors, both.x_factor, both.y_factor, scale, unit, *sizes, BLOCK=1024
    )
    return unit


@triton.jit
def _largest(vector, size, BLOCK: tl.constexpr):
    found = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, size, BLOCK):
        at = first + tl.arange(0, BLOCK)
        found = tl.maximum(found, tl.abs(tl.load(vector + at, mask=at < size, other=0.0)))
    return tl.max(found, 0)


@jit
def _weight_scale_kernel(
    a, b, c, x_factor, y_factor, scale, unit, a_size, b_size, c_size, N, M, BLOCK: tl.constexpr
):  # fmt: skip
    weight = _largest(a, a_size, BLOCK) + _largest(b, b_size, BLOCK) + _largest(c, c_size, BLOCK)
    factor = _largest(x_factor, N, BLOCK) * _largest(y_factor, M, BLOCK)
    bound = tl.abs(tl.load(scale).to(tl.float32)) * weight * factor
    tl.store(unit, power_of_two_scale(bound, 15))


def precision_of(weights: Tensor) -> str:
    """Return the input precision of the library's products, for `store_parts`."""
    return "tf32" if kind_of(weights) == "tf32" else "ieee"


@triton.jit
def store_parts(at, part, value, mask, PARTS: tl.constexpr, PRECISION: tl.constexpr):
    """Store a value as a sum of PARTS values of the pointers' type, high to low; return the rest.

    Args:
        at: pointers to the first part.
        part: stride between parts, int64.
        value: fp32, or fp64 as one part.
        mask: of the pointers.
        PARTS: number of parts.
        PRECISION: input precision of the library's products, "tf32" or "ieee".
    """
    for k in tl.static_range(PARTS):
        high = rounded(value, at.dtype.element_ty)
        if PRECISION == "tf32" and not _INTERPRETED:  # the interpreter multiplies tf32 in fp32
            high = to_tf32(high)
        tl.store(at + k * part, high, mask=mask)
        value -= high.to(value.dtype)
    return value


@triton.jit
def whole_groups(m, M):
    """Mark the columns of every group of eight that contains a column below M.

    Rows of `weights_empty` are padded. The compiler assumes nothing about M: with the mask m < M
    it stores single elements, with whole groups 16 bytes at once.
    """
    return m // 8 * 8 < M


@triton.jit
def rounded(value, DTYPE: tl.constexpr):
    """Convert to a dtype, rounding to nearest even also in the interpreter, which truncates."""
    if _INTERPRETED and DTYPE == tl.bfloat16:
        bits = value.to(tl.float32).to(tl.int32, bitcast=True)
        even = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        finite = tl.abs(value) < float("inf")
        value = tl.where(finite, even.to(tl.float32, bitcast=True), value)
    return value.to(DTYPE)


def add_product(
    total: Tensor | None,  # [R, D], or [M, D] when transposed; updated in place
    weights: Tensor,  # [parts, R, M]
    rows: Tensor,  # [parts, M, D], or [parts, R, D]
    transposed: bool = False,
    out: Tensor | None = None,  # the result if there is no total
) -> Tensor:
    """Return total + W rows, or total + W^T rows, in fp32 or fp64."""
    for of_weights, of_rows in _TERMS[weights.shape[0], rows.shape[0]]:
        block = weights[of_weights]
        total = _add(total, block.mT if transposed else block, rows[of_rows], out)
    assert total is not None
    return total


def _add(total: Tensor | None, a: Tensor, b: Tensor, out: Tensor | None) -> Tensor:
    half = a.dtype in (torch.bfloat16, torch.float16)
    if half and a.device.type == "cpu":  # no half-precision product with an fp32 result
        a, b, half = a.float(), b.float(), False
    options: dict[str, Any] = {"out_dtype": torch.float32} if half else {}
    if total is None:
        return torch.mm(a, b, out=out, **options)
    return torch.addmm(total, a, b, out=total, **options)
