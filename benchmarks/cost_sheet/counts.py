"""A launch and its work: the quantities that cost models return and times are computed from."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

KINDS = ("half", "tf32", "fp32", "fp64")  # kinds of products: bf16 and fp16 cost the same


class Operand(NamedTuple):
    """A tensor argument of a launch."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    strides: tuple[int, ...]
    storage: int  # the same for views of one tensor

    @property
    def elements(self) -> int:
        """Number of elements in memory: a broadcast dimension has one."""
        pairs = zip(self.shape, self.strides, strict=True)
        return math.prod(1 if stride == 0 else size for size, stride in pairs)

    @property
    def bytes(self) -> int:
        """Bytes of these elements."""
        return self.elements * self.dtype.itemsize


def operand(tensor: Tensor) -> Operand:
    """Return the description of a tensor."""
    storage = tensor.untyped_storage()._cdata
    return Operand(tuple(tensor.shape), tensor.dtype, tensor.stride(), storage)


class Launch(NamedTuple):
    """A recorded launch of a Triton kernel."""

    kernel: str  # file.function
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]  # by name; tensors as Operand

    @property
    def programs(self) -> int:
        """Number of programs."""
        return math.prod(self.grid)

    @property
    def operands(self) -> dict[str, Operand]:
        """The tensors among the arguments."""
        return {name: each for name, each in self.arguments.items() if isinstance(each, Operand)}

    def __getattr__(self, name: str) -> Any:
        """Return an argument by its name."""
        try:
            return self.arguments[name]
        except KeyError:
            raise AttributeError(f"{self.kernel} has no argument {name}") from None


class Count(NamedTuple):
    """The work of one launch."""

    name: str
    triton: bool = False
    launches: int = 1
    kind: str = "half"  # kind of its products
    flop: float = 0
    depth: int = 1  # inner dimension of the products: short sums do not fill the pipeline
    ceiling: float = 1.0  # fraction of the rate that the tile allows
    instructions: float = 0  # fp32 and integer, per lane
    exponentials: float = 0  # special-function units: also logarithms, reciprocals, roots
    exposed: float = 1.0  # fraction of those two that products do not hide
    hbm: float = 0  # bytes
    l2: float = 0  # bytes
    seconds: float = 0  # a chain of dependent steps
    programs: int = 0  # programs or blocks, if a model states them


def unique_bytes(operands: Mapping[str, Operand]) -> int:
    """Return the bytes of operands, each storage once: unused arguments repeat another tensor."""
    largest: dict[int, int] = {}
    for each in operands.values():
        largest[each.storage] = max(largest.get(each.storage, 0), each.bytes)
    return sum(largest.values())
