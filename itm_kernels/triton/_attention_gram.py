"""Gram matrices of contexts, and the part of the contexts' gradient that comes through them."""

import torch
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._norms import power_of_two_scale
from itm_kernels.triton._operands import INTERPRETED
from itm_kernels.triton._products import rounded
from itm_kernels.triton._row_sets import CHUNK_BYTES, RowSets

_INTERPRETED = tl.constexpr(INTERPRETED)
_ROWS, _COLUMNS = 64, 64  # of a context per program, and elements of rows


def gram_matrices(rows: RowSets, chunk: slice) -> Tensor:  # [n, C, C]
    """Return the Gram matrices of a chunk of contexts, 0 for padded rows.

    Tensor cores multiply rows of half precision, whose products are exact in fp32.
    """
    own, C = operands(rows, chunk), rows.rows.shape[1]
    if rows.kind != "half":
        return torch.bmm(own, own.mT)
    if own.device.type == "cpu":  # no half-precision product with an fp32 result
        gram = torch.bmm(own.float(), own.float().mT)
    else:
        gram = torch.bmm(own, own.mT, out_dtype=torch.float32)
    if rows.powers:
        factor = rows.factor.view(-1, C)[chunk]
        gram.mul_(factor[:, :, None]).mul_(factor[:, None, :])
    return gram


def operands(rows: RowSets, chunk: slice) -> Tensor:  # [n, C, D or more]
    """Return the operands of a chunk: 0 for padded rows, in tf32 the rounded rows."""
    return rows.joined.view(-1, rows.rows.shape[1], rows.joined.shape[1])[chunk]


def gradients_of_gram(outer: Tensor, alpha: Tensor, rows: RowSets) -> Tensor:  # [n, C, C]
    """Return twice the gradients of the Gram matrices, from weighted alpha and alpha `[n C, M Q]`.

    Where rows cancel, so does its product with them: rounded to fp32, the matrices of fp32 rows
    would have errors of up to four times those of attending.
    """
    C = rows.rows.shape[1]
    outer, alpha = (pairs.view(-1, C, pairs.shape[1]) for pairs in (outer, alpha))
    if rows.kind != "ieee":
        return torch.bmm(outer, alpha.mT)
    # Contexts whose two copies in fp64 exist at once.
    size = max(1, CHUNK_BYTES // 2 // (2 * 8 * C * outer.shape[2]))
    parts = zip(outer.split(size), alpha.split(size), strict=True)
    return torch.cat([torch.bmm(one.double(), other.double().mT) for one, other in parts])


def add_through_gram(
    of_gram: Tensor,  # [n, C, C]
    rows: RowSets,
    chunk: slice,
    unit: Tensor | None,  # []
    into: Tensor,  # [n C, D], divided by unit and accumulated
) -> None:
    """Add the products of the gradients of Gram matrices and the rows of a chunk."""
    _, C, D = rows.rows.shape
    at = slice(chunk.start * C, None)
    if rows.kind != "half":
        own, sums = operands(rows, chunk)[..., :D], into.view(-1, C, D)
        if of_gram.dtype == into.dtype:
            sums.baddbmm_(of_gram, own)
        else:
            sums.add_(torch.bmm(of_gram, own.to(of_gram.dtype)))
        return
    _through_gram_kernel[(of_gram.shape[0], cdiv(D, _COLUMNS), cdiv(C, _ROWS))](
        of_gram, rows.joined[at], rows.factor[at], into if unit is None else unit, into,
        rows.joined.stride(0), C, D, POWERS=rows.powers, ROWS=_ROWS, COLUMNS=_COLUMNS,
        num_warps=4,
    )  # fmt: skip


@jit(do_not_specialize=["C"])
def _through_gram_kernel(
    of_gram,  # [n, C, C]
    rows,  # [n C, D] in half precision
    factor,  # [n C]
    unit,  # [], of POWERS
    into,  # [n C, D], accumulated
    stride,
    C,
    D,
    POWERS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    c = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    of_row = tl.load(factor + n * C + c, mask=c < C, other=0.0)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    DTYPE: tl.constexpr = rows.dtype.element_ty
    for first in range(0, C, ROWS):
        k = first + tl.arange(0, ROWS)
        inside = (c < C)[:, None] & (k < C)[None, :]
        weight = tl.load(of_gram + ((n * C + c) * C)[:, None] + k[None, :], mask=inside, other=0.0)
        scale = tl.full((ROWS,), 1.0, tl.float32)
        if POWERS:
            # Rows are multiplied by powers of two, and weights must fit fp16.
            weight *= of_row[:, None]
            weight *= tl.load(factor + n * C + k, mask=k < C, other=0.0)[None, :]
            scale = power_of_two_scale(tl.max(tl.abs(weight), 1), 15)
            weight *= scale[:, None]
        at = rows + ((n * C + k) * stride)[:, None] + d[None, :]
        row = tl.load(at, mask=(k < C)[:, None] & (d < D)[None, :], other=0.0)
        high = rounded(weight, DTYPE)
        low = rounded(weight - high.to(tl.float32), DTYPE)
        if _INTERPRETED:  # it multiplies bf16 incorrectly
            high, low, row = high.to(tl.float32), low.to(tl.float32), row.to(tl.float32)
        sums = tl.dot(high, row, tl.dot(low, row))
        total += sums / scale[:, None] if POWERS else sums
    to = into + ((n * C + c) * D)[:, None] + d[None, :]
    mask = (c < C)[:, None] & (d < D)[None, :]
    before = tl.load(to, mask=mask, other=0.0)
    tl.store(to, total + (before / tl.load(unit) if POWERS else before), mask=mask)
