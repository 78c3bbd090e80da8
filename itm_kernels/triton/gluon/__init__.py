"""Kernels for sm_90 in Gluon, beside the portable Triton kernels with the same results.

Gluon comes with Triton (3.6 to 3.8) and is imported where a kernel is taken, never before.
`takes` chooses; nothing else does.
"""

import functools
import importlib

from torch import Tensor

from itm_kernels.triton._launch import Operands
from itm_kernels.triton._table import architecture

KERNELS = ("hardest", "log_sum_exp")
# Kernels whose values and times were measured on a GPU: what users get. None has run on one yet.
# `python -m tools.gpu_check --steps gluon` measures all of KERNELS; a kernel that passes there, and
# is faster than Triton's, is added here.
PROVEN: frozenset[str] = frozenset()

ARCHITECTURE = 90
# Predicted, from counts: below, most processors have no second tile to multiply while they reduce
# the first, or reduce a tile longer than they multiply it.
LEAST_ROWS = 4096
LEAST_DEPTH = 256


def takes(kernel: str, both: Operands) -> bool:
    """Return whether a kernel of this folder is launched instead of the Triton kernel."""
    N, M = both.shape
    return (
        kernel in PROVEN
        and architecture() == ARCHITECTURE
        and min(N, M) >= LEAST_ROWS
        and both.x.shape[2] >= LEAST_DEPTH
        and can_take(both)
    )


def can_take(both: Operands) -> bool:
    """Return whether the kernels of this folder can multiply some operands."""
    return both.kind in ("half", "parts") and is_copied(both.x) and is_copied(both.y) and _there()


def is_copied(rows: Tensor) -> bool:
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
def _there() -> bool:
    try:
        importlib.import_module(f"{__name__}._launch")
    except (ImportError, AttributeError):  # a version of Triton without what is used
        return False
    return True
