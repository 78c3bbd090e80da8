"""The cost of an ATen call, from its shapes: launches, products, passes over memory, sorts."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.cost_sheet.counts import Count, Operand
from benchmarks.cost_sheet.rates import RESIDENT

# Calls that only allocate or inspect metadata.
NO_LAUNCH = ("empty", "new_empty", "_to_dense", "lift_fresh", "promote_types", "detach", "alias")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "addmm_", "baddbmm_")
# Calls that read as many elements of their first operand as they return.
GATHERS = ("gather", "index", "index_select", "embedding", "take")


def kind_of(dtype: torch.dtype) -> str:
    """Return the kind of product that the library uses for a dtype."""
    if dtype in (torch.bfloat16, torch.float16):
        return "half"
    if dtype == torch.float64:
        return "fp64"
    return "fp32" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def moved(*operands: Operand) -> tuple[float, float]:
    """Return the bytes of operands moved in HBM and in the L2, in which small ones stay."""
    sizes = [each.bytes for each in operands]
    return sum(size for size in sizes if size > RESIDENT), float(sum(sizes))


def count_of(
    func: Any, inputs: Sequence[Operand], outputs: Sequence[Operand], args: Sequence[Any]
) -> Count | None:
    """Return the work of a call on the device, None if it launches nothing."""
    name = func._schema.name.removeprefix("aten::")
    writes = func._schema.is_mutable
    known = {each.storage for each in inputs}
    if name.startswith(NO_LAUNCH) or (
        not writes and all(each.storage in known for each in outputs)
    ):
        return None
    if name in PRODUCTS:
        return _product(name, inputs, outputs)
    if name.startswith("sort") or name == "topk":
        return _sort(name, inputs, outputs)
    if name == "_cdist_forward":
        return _cdist(name, inputs, outputs, 2)
    if name == "multinomial":  # an exponential per element, a division, and an argmax
        size = 5.0 * inputs[0].bytes
        return Count(name, hbm=size if size > RESIDENT else 0, l2=size, launches=3)
    if name == "_euclidean_dist":
        return _expanded(name, inputs, outputs)
    if name == "_cdist_backward":
        # A buffer [D, N, M] is written, then read by a sum.
        hbm = 2.0 * 4 * math.prod(inputs[1].shape) * inputs[2].shape[-2]
        return Count(name, hbm=hbm, l2=hbm, launches=3)
    if name in ("cholesky", "linalg_cholesky_ex", "cholesky_solve", "linalg_solve_triangular"):
        return _factor(name, inputs, outputs)
    if name in GATHERS:
        hbm, l2 = moved(*outputs, *inputs[1:], *outputs)
        return Count(name, hbm=hbm, l2=l2)
    if name.startswith(("scatter", "index_add", "index_put", "index_copy")):
        hbm, l2 = moved(*inputs, *(() if name.endswith("_") else outputs))
        return Count(name, hbm=hbm, l2=l2, launches=1 if name.endswith("_") else 2)
    hbm, l2 = moved(*inputs, *(outputs[:1] if writes else outputs))
    return Count(name, hbm=hbm, l2=l2, launches=2 if name == "nll_loss_backward" else 1)


def _product(name: str, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> Count:
    a, b = inputs[1:3] if "add" in name else inputs[:2]  # `out` may follow
    depth, out = a.shape[-1], outputs[0]
    hbm, l2 = moved(a, b, out, *(inputs[:1] if "add" in name else ()))
    flop = 2.0 * math.prod(out.shape) * depth
    kind = kind_of(a.dtype)
    # Few sums, long or short, do not fill the processors: a product takes at least its bytes.
    return Count(name, kind=kind, flop=flop, depth=depth, hbm=hbm, l2=l2)


def _sort(name: str, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> Count:
    """Count radix passes of eight bits over keys and int64 indices, and two more launches."""
    passes = max(1, inputs[0].dtype.itemsize)
    size = sum(each.bytes for each in outputs)
    small = inputs[0].shape[-1] <= 1024 if inputs[0].shape else True  # sorted by one block
    passes = 1 if small else passes
    total = 2.0 * passes * size
    launches = 1 if small else passes + 2
    return Count(name, hbm=total if size > RESIDENT else 0, l2=total, launches=launches)


def _cdist(name: str, inputs: Sequence[Operand], outputs: Sequence[Operand], per: int) -> Count:
    """Count one block per pair, which reads both rows from the L2."""
    pairs, D = math.prod(outputs[0].shape), inputs[0].shape[-1]
    hbm, _ = moved(*inputs, *outputs)
    l2 = 2.0 * pairs * D * inputs[0].dtype.itemsize
    return Count(name, hbm=hbm, l2=l2, instructions=float(per * pairs * D))


def _expanded(name: str, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> Count:
    """Count a product of rows extended by their squares and ones, then a clamp and a root."""
    rows, out = sum(each.bytes for each in inputs), outputs[0].bytes
    depth = inputs[0].shape[-1] + 2
    total = 5.0 * rows + 5.0 * out
    return Count(
        name, kind=kind_of(inputs[0].dtype), flop=2.0 * out / inputs[0].dtype.itemsize * depth,
        depth=depth, hbm=total if out > RESIDENT else 5.0 * rows, l2=total, launches=11,
    )  # fmt: skip


def _factor(name: str, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> Count:
    matrix = inputs[-1] if name == "cholesky_solve" else inputs[0]
    n = matrix.shape[-1]
    batch = math.prod(matrix.shape[:-2])
    columns = inputs[0].shape[-1] if name == "cholesky_solve" else n
    flop = 2.0 * batch * n * n * columns if name == "cholesky_solve" else batch * n**3 / 3
    kind = "fp64" if matrix.dtype == torch.float64 else "fp32"
    hbm, l2 = moved(*inputs, *outputs)
    # Sequential panels of 128 columns (estimate).
    launches = 2 * math.ceil(n / 128)
    return Count(name, kind=kind, flop=flop, depth=64, hbm=hbm, l2=l2, launches=launches)


def workspace(func: Any, inputs: Sequence[Operand]) -> int:
    """Return the bytes of temporary memory that a call allocates."""
    name = func._schema.name.removeprefix("aten::")
    if name == "_cdist_backward":  # N x M x D
        return math.prod(inputs[1].shape) * inputs[2].shape[-2] * inputs[1].dtype.itemsize
    if name == "multinomial":
        return 2 * inputs[0].bytes
    if name == "_euclidean_dist":
        return 2 * sum(each.bytes for each in inputs)
    if name.startswith("sort"):  # a second copy of keys and indices
        return inputs[0].elements * (inputs[0].dtype.itemsize + 8)
    return 0
