"""Kernels for sm_90 in Gluon, beside the portable Triton kernels with the same results.

Gluon comes with Triton (3.6 to 3.8) and is imported where a kernel is taken, never before.
`is_selected` alone chooses.
"""

import functools
import importlib

import triton
from torch import Tensor

from itm_kernels.triton._operands import Operands
from itm_kernels.triton._tile_table import architecture

# Kernels, with the first version of Triton that compiles them.
KERNELS = {"hardest": (3, 6), "log_sum_exp": (3, 7)}
# Kernels whose values and times were measured on a GPU: what users get. None has run on one yet.
# `python -m tools.gpu_check --steps gluon` measures all of KERNELS; a kernel that passes there, and
# is faster than Triton's, is added here.
PROVEN: frozenset[str] = frozenset()

ARCHITECTURE = 90
# Predicted, from counts: below, most processors have no second tile to multiply while they reduce
# the first, or reduce a tile longer than they multiply it.
LEAST_ROWS = 4096
LEAST_DEPTH = 256


def is_selected(kernel: str, both: Operands) -> bool:
    """Return whether a kernel of this folder is launched instead of the Triton kernel."""
    N, M = both.shape
    return (
        kernel in PROVEN
        and architecture() == ARCHITECTURE
        and min(N, M) >= LEAST_ROWS
        and both.x.shape[2] >= LEAST_DEPTH
        and supports(kernel, both)
    )


def supports(kernel: str, both: Operands) -> bool:
    """Return whether a kernel of this folder can multiply some operands."""
    rows = both.x, both.y
    copied = both.kind in ("half", "parts") and all(map(is_tma_compatible, rows))
    return copied and is_available(kernel)


def is_tma_compatible(rows: Tensor) -> bool:
    """Return whether TMA can copy rows `[parts, N, D]`: it wants all multiples of 16 bytes."""
    parts, N, _ = rows.shape
    part, row, element = rows.stride()
    begin = rows.storage_offset() * rows.element_size() if rows.is_meta else rows.data_ptr()
    return (
        rows.element_size() == 2
        and element == 1
        and row % 8 == 0
        and begin % 16 == 0
        and (parts == 1 or part == N * row)
        and parts * N < 2**31
    )


@functools.cache
def is_available(kernel: str) -> bool:
    """Return whether this version of Triton has what a kernel uses."""
    if tuple(map(int, triton.__version__.split(".")[:2])) < KERNELS[kernel]:
        return False
    try:
        importlib.import_module(f"{__name__}.{kernel}")
    except (ImportError, AttributeError):  # Gluon is experimental: names may go
        return False
    return True
