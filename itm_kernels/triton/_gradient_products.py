"""Products of the gradient of scores with rows of fp32, as three products of fp16 parts.

A block of the gradient is multiplied by the members, and its transpose by the anchors. Both sides
are laid out in two fp16 parts with a power of two per row (`_scaled_operands`). One pass multiplies
the gradient by both powers and by one that keeps it below 2^15, and splits it into two parts; the
library multiplies them at 16 times the rate of fp32 units, and the powers are divided out.
"""

import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._operands import INTERPRETED, Operands
from itm_kernels.triton._products import (
    add_product,
    row_parts,
    store_parts,
    weight_scale,
    weights_empty,
    whole_groups,
)

_ROWS, _COLUMNS = (64, 512) if INTERPRETED else (8, 256)


def gradient_products(
    gradient: Tensor,  # [R, M] fp32
    largest: Tensor,  # upper bounds of the gradient; the largest of them holds for all
    both: Operands,  # "parts" of R anchors and all members
    like: Tensor,  # [R, D] fp32 anchors
    of_members: Tensor | None,  # [M, D], added to in place
) -> tuple[Tensor, Tensor]:  # [R, D], [M, D]
    """Return the gradient times members, and its transpose times anchors added to a sum."""
    (R, M), D = gradient.shape, like.shape[1]
    assert both.x_factor is not None
    assert both.y_factor is not None
    one = both.x_factor.new_ones(())
    unit = weight_scale(like, both, one, largest.amax().view(1))
    assert unit is not None
    parts = weights_empty(R, M, like, kind="parts")
    _parts_kernel[(cdiv(R, _ROWS) * cdiv(M, _COLUMNS),)](
        gradient, both.x_factor, both.y_factor, unit, parts, parts.stride(0), parts.stride(1), R, M,
        ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
    anchors, members = row_parts(both, D)
    of_anchors = add_product(None, parts, members)
    found = add_product(None, parts, anchors, transposed=True)
    of_anchors.div_(both.x_factor[:, None]).div_(unit)
    found.div_(unit)  # one after the other: the product of both can exceed fp32
    if of_members is None:
        return of_anchors, found.div_(both.y_factor[:, None])
    return of_anchors, of_members.addcdiv_(found, both.y_factor[:, None])


@jit(do_not_specialize=["R"])
def _parts_kernel(
    gradient,  # [R, M]
    x_factor,  # [R]
    y_factor,  # [M]
    unit,  # []
    parts,  # [2, R, M]
    part,
    stride,
    R,
    M,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the gradient times the factors of both rows, in two parts."""
    across = tl.cdiv(M, COLUMNS)
    n = (tl.program_id(0) // across) * ROWS + tl.arange(0, ROWS)
    m = (tl.program_id(0) % across) * COLUMNS + tl.arange(0, COLUMNS)
    row = n[:, None].to(tl.int64)
    inside = (n < R)[:, None] & (m < M)[None, :]
    value = tl.load(gradient + row * M + m[None, :], mask=inside, other=0.0) * tl.load(unit)
    value *= tl.load(x_factor + n, mask=n < R, other=0.0)[:, None]
    value *= tl.load(y_factor + m, mask=m < M, other=0.0)[None, :]
    stored = (n < R)[:, None] & whole_groups(m, M)[None, :]
    to = parts + row * stride + m[None, :]
    store_parts(to, tl.cast(part, tl.int64), value, stored, 2, "ieee")
