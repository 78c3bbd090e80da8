"""Row hashes in one pass, bit-identical to those of `itm_kernels.ops._ranks.row_keys`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._operands import INTERPRETED, contiguous_rows


@triton.jit
def _mixed(numbers):
    """Return the splitmix64 hash of every int64; products wrap around."""
    bits = numbers * -7046029254386353131  # 0x9E3779B97F4A7C15
    bits = (bits ^ ((bits >> 30) & ((1 << 34) - 1))) * -4658895280553007687
    bits = (bits ^ ((bits >> 27) & ((1 << 37) - 1))) * -7723592293110705685
    return bits ^ ((bits >> 31) & ((1 << 33) - 1))


@jit
def _keys_kernel(
    bits,  # [G, D] bit patterns as integers
    keys,  # [G] int64
    stride,
    G,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the sum over D of hashed values times odd pseudo-random coefficients."""
    g = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = tl.minimum(g, G - 1)[:, None] * stride
    WIDTH: tl.constexpr = bits.dtype.element_ty.primitive_bitwidth
    total = tl.zeros((ROWS, COLUMNS), tl.int64)
    for first in range(0, D, COLUMNS):
        d = first + tl.arange(0, COLUMNS)
        found = tl.load(bits + at + d[None, :], mask=(d < D)[None, :], other=0).to(tl.int64)
        found = tl.where(found == -(1 << (WIDTH - 1)), 0, found)  # -0 becomes 0
        # A product carries differences to higher bits only, so the high half is mixed into the low.
        found = found ^ (found >> (WIDTH // 2))
        total += found * (_mixed(d.to(tl.int64) + 1) | 1)[None, :]
    tl.store(keys + g, tl.sum(total, 1), mask=g < G)


_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def row_keys(x: Tensor) -> Tensor:  # [G, D] -> [G]
    """Return int64 keys: equal rows have equal keys, and different rows rarely do."""
    G, D = x.shape
    bits = contiguous_rows(x).view(_BITS[x.element_size()])
    keys = torch.empty(G, dtype=torch.int64, device=x.device)
    rows, columns = (64, 128) if INTERPRETED else (4, 256)
    _keys_kernel[(cdiv(G, rows),)](
        bits, keys, bits.stride(0), G, D, ROWS=rows, COLUMNS=columns, num_warps=4
    )
    return keys
