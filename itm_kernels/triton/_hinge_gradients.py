"""Weights of active hinges, and the gradients of rows from sums of weighted rows.

The gradient of a hinge sum counts active hinges. The weight of a pair's own score is the number of
its active hinges, up to N + M, which half precision cannot represent. The library's products
therefore contain negatives only; one pass removes the powers of two, subtracts the term of the
positive, and writes the dtype of the rows.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._operands import Operands, contiguous_rows, row_blocks, stored_dtype
from itm_kernels.triton._products import weight_scale, weights_empty


@triton.jit
def _gradient_of_side(
    sums,  # [M, D]
    factor,  # [M] of rows
    other,  # [M, D] the other row of every pair
    out,  # [M, D]
    active,  # [M] number of active hinges
    grad,  # [M]
    unit,  # []
    other_stride,
    grad_stride,
    M,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FACTORS: tl.constexpr,
    HAS_UNIT: tl.constexpr,
    UNIFORM: tl.constexpr,
    HAS_POSITIVES: tl.constexpr,
):
    m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(m, M - 1)
    grad_here = tl.load(grad + rows * grad_stride).to(sums.dtype.element_ty)
    scale = tl.full((ROWS,), 1.0, grad_here.dtype)
    if FACTORS:  # powers of two
        scale /= tl.load(factor + rows)
    if HAS_UNIT:
        scale /= tl.load(unit)
    positive_weight = grad_here
    if UNIFORM:
        positive_weight = tl.full((ROWS,), 1.0, grad_here.dtype)
    if HAS_POSITIVES:
        positive_weight *= tl.load(active + rows)
    for first in range(0, D, COLUMNS):
        d = (first + tl.arange(0, COLUMNS))[None, :].to(tl.int64)
        inside = (m < M)[:, None] & (d < D)
        at = rows[:, None] * D + d
        found = tl.load(sums + at, mask=inside, other=0.0) * scale[:, None]
        if HAS_POSITIVES:
            own = tl.load(other + rows[:, None] * other_stride + d, mask=inside, other=0.0)
            found -= positive_weight[:, None] * own.to(grad_here.dtype)
        if UNIFORM:
            found *= grad_here[:, None]
        tl.store(out + at, found.to(out.dtype.element_ty), mask=inside)


@jit
def _hinge_gradients_kernel(
    x,
    y,
    of_x,
    of_y,
    x_factor,
    y_factor,
    grad_x,
    grad_y,
    active,
    grad,
    unit,
    x_stride,
    y_stride,
    grad_stride,
    M,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FACTORS: tl.constexpr,
    HAS_UNIT: tl.constexpr,
    UNIFORM: tl.constexpr,
    HAS_POSITIVES: tl.constexpr,
):
    if tl.program_id(1) == 0:
        _gradient_of_side(
            of_x, x_factor, y, grad_x, active, grad, unit, y_stride, grad_stride, M, D,
            ROWS, COLUMNS, FACTORS, HAS_UNIT, UNIFORM, HAS_POSITIVES,
        )  # fmt: skip
    else:
        _gradient_of_side(
            of_y, y_factor, x, grad_y, active, grad, unit, x_stride, grad_stride, M, D,
            ROWS, COLUMNS, FACTORS, HAS_UNIT, UNIFORM, HAS_POSITIVES,
        )  # fmt: skip


class HingeWeights(NamedTuple):
    """The gradients of hinge sums, and the representation of weights."""

    grad: Tensor  # [M]
    uniform: bool  # equal for all pairs: weights are 0, 1 and 2, and it is applied last
    unit: Tensor | None  # [] factor of stored weights
    parts: int  # of weights: one is exact for 0, 1 and 2; other values need two
    like: Tensor  # rows that weights multiply

    def weights_empty(self, R: int, M: int) -> Tensor:  # [parts, R, M]
        """Allocate a block of weights."""
        return weights_empty(R, M, self.like, self.parts)

    def width(self, M: int) -> int:
        """Return the size of a row of weights in elements of the rows' dtype, at most."""
        return M * self.parts if self.like.element_size() == 2 else M

    def pair_gradients(
        self,
        x: Tensor,  # [M, D]
        y: Tensor,  # [M, D]
        both: Operands,  # of x and y
        of_x: Tensor,  # [M, D] sums of weighted rows of y
        of_y: Tensor,  # [M, D] sums of weighted rows of x
        active: Tensor,  # [M] active hinges of every pair
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of x, in `dtype`, and of y, in its own dtype."""
        grad_x = torch.empty(x.shape, dtype=stored_dtype(dtype), device=x.device)
        grad_y = torch.empty(y.shape, dtype=stored_dtype(y.dtype), device=y.device)
        self._launch(x, y, both, (of_x, of_y), (grad_x, grad_y), active)
        return grad_x.to(dtype), grad_y.to(y.dtype)

    def row_gradient(self, sums: Tensor, both: Operands) -> Tensor:
        """Return the gradient of the first side's rows from sums of weighted rows, in place."""
        self._launch(sums, sums, both, (sums, sums), (sums, sums), None)
        return sums

    def _launch(
        self,
        x: Tensor,
        y: Tensor,
        both: Operands,
        sums: tuple[Tensor, Tensor],
        grads: tuple[Tensor, Tensor],
        active: Tensor | None,
    ) -> None:
        (M, D), options = x.shape, row_blocks(x.shape[1])
        x, y = contiguous_rows(x), contiguous_rows(y)
        assert both.x_factor is not None
        _hinge_gradients_kernel[(cdiv(M, options["ROWS"]), 1 if active is None else 2)](
            x, y, *sums, both.x_factor, both.y_factor, *grads,
            self.grad if active is None else active, self.grad,
            self.grad if self.unit is None else self.unit,
            x.stride(0), y.stride(0), self.grad.stride(0), M, D,
            FACTORS=both.x_factor.shape[0] > 0, HAS_UNIT=self.unit is not None,
            UNIFORM=self.uniform, HAS_POSITIVES=active is not None, **options,
        )  # fmt: skip


def is_uniform(grad: Tensor) -> bool:
    """Return whether all pairs have the same gradient: that of a reduced loss is expanded."""
    return grad.stride(0) == 0 or grad.shape[0] == 1


def hinge_weights(
    grad: Tensor,  # [M]
    image: Tensor,  # [N, D]
    both: Operands,  # `scaled_operands` of image and text
) -> HingeWeights:
    """Return how weights represent the gradients of hinge sums."""
    uniform = is_uniform(grad)
    in_parts = both.kind == "parts" or image.dtype in (torch.bfloat16, torch.float16)
    unit = None
    assert both.x_factor is not None
    if both.x_factor.shape[0]:
        two = grad.new_full((1,), 2.0)
        bounds = (two,) if uniform else (grad.contiguous(),)
        unit = weight_scale(image, both, two[0], *bounds)
    return HingeWeights(grad, uniform, unit, 1 if uniform or not in_parts else 2, image)
