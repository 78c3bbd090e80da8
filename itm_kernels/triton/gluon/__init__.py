"""Kernels for sm_90 in Gluon, with the same results as the portable Triton kernels.

Gluon is part of Triton (3.6 to 3.8) and is only imported when a kernel is selected. `is_selected`
makes that choice.
"""

import functools
import importlib

import triton
from torch import Tensor

from itm_kernels.triton._operands import Operands
from itm_kernels.triton._tile_table import architecture

# Kernels, with the first version of Triton that compiles them.
KERNELS = {"hardest": (3, 6), "log_sum_exp": (3, 7)}
# Kernels whose values and times have been measured on a GPU; only these are selected. The hardest
# negatives of N = 32,768, D = 1024 in bf16 take 4.0 ms on an H200, with Triton's kernel 5.1 ms (N =
# 4096: 6 % less, host time included). The log-sum-exp has not run: it needs a later Triton than was
# there. `python -m tools.gpu_check --steps gluon` measures all of KERNELS; a kernel that passes and
# is faster than Triton's is added here.
PROVEN = frozenset({"hardest"})

ARCHITECTURE = 90
# Predicted from counts: below these sizes most processors have no second tile to multiply while
# they reduce the first, or the reduction of a tile takes longer than its products.
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
    """Return whether a kernel of this folder supports the operands."""
    rows = both.x, both.y
    copied = both.kind in ("half", "parts") and all(map(is_tma_compatible, rows))
    return copied and is_available(kernel)


def is_tma_compatible(rows: Tensor) -> bool:
    """Return whether TMA can copy rows `[parts, N, D]`: strides are multiples of 16 bytes."""
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
    """Return whether the installed version of Triton supports a kernel."""
    if tuple(map(int, triton.__version__.split(".")[:2])) < KERNELS[kernel]:
        return False
    try:
        importlib.import_module(f"{__name__}.{kernel}")
    except (ImportError, AttributeError):  # Gluon is experimental: names may be removed
        return False
    return True
