"""TMA descriptors, grids and arguments of the Gluon kernels."""

from typing import Any

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from itm_kernels.triton._launch import cdiv
from itm_kernels.triton._operands import Operands
from itm_kernels.triton.gluon._pipeline import (
    COLUMNS,
    DEPTH,
    HALF,
    ROWS,
    START_REGISTERS,
    WARPS,
)

_TYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}


def descriptor(rows: torch.Tensor, at_once: int) -> TensorDescriptor:
    """Return a TMA descriptor that copies `at_once` rows of `[parts, N, D]`."""
    flat = rows.flatten(0, 1)  # a view: parts are contiguous
    box = [at_once, DEPTH.value]
    layout = gl.NVMMASharedLayout.get_default_for(box, _TYPES[rows.dtype])
    return TensorDescriptor(flat, list(flat.shape), list(flat.stride()), box, layout)


def grid(both: Operands) -> tuple[int]:
    """Return the grid: one program per processor, or per tile if there are fewer tiles."""
    N, M = both.shape
    device = both.x.device
    processors = 132  # of an H100, for launches on meta tensors
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    return (min(processors, cdiv(N, ROWS.value) * cdiv(M, COLUMNS.value)),)


def arguments(both: Operands) -> dict[str, Any]:
    """Return the operands as a kernel's arguments, with the options of a launch."""
    N, M = both.shape
    return {
        **{"x": descriptor(both.x, HALF.value), "y": descriptor(both.y, COLUMNS.value)},
        **{"N": N, "M": M, "chunks": cdiv(both.x.shape[2], DEPTH.value)},
        **{"PARTS": both.x.shape[0]},
        **{"num_warps": WARPS.value, "maxnreg": START_REGISTERS},
    }
