"""A launch and what it does: the numbers that kernels' models return and times are made of."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

KINDS = ("half", "tf32", "fp32", "fp64")  # of products: bf16 and fp16 cost the same


class Operand(NamedTuple):
    """A tensor as a launch sees it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    strides: tuple[int, ...]
    storage: int  # the same for views of one tensor

    @property
    def elements(self) -> int:
        """Elements that exist: a broadcast dimension has one."""
        pairs = zip(self.shape, self.strides, strict=True)
        return math.prod(1 if stride == 0 else size for size, stride in pairs)

    @property
    def bytes(self) -> int:
        """Bytes of these."""
        return self.elements * self.dtype.itemsize


def operand(tensor: Tensor) -> Operand:
    """Describe a tensor."""
    storage = tensor.untyped_storage()._cdata
    return Operand(tuple(tensor.shape), tensor.dtype, tensor.stride(), storage)


class Launch(NamedTuple):
    """A Triton kernel as its launcher would launch it."""

    kernel: str  # file.function
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]  # tensors as Operand; constants under their own names

    @property
    def programs(self) -> int:
        """How many programs run."""
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
    """The work of one launch by kind; 0 for kinds that it has none of."""

    name: str
    triton: bool = False
    launches: int = 1
    kind: str = "half"  # of its products
    flop: float = 0
    depth: int = 1  # length of the products' sums: short ones do not fill the pipeline
    ceiling: float = 1.0  # share of the rate that the tile allows
    instructions: float = 0  # fp32 and integer, of one lane each
    exponentials: float = 0  # and logarithms, reciprocals, roots: the special-function units
    exposed: float = 1.0  # share of those two that products do not hide
    hbm: float = 0  # bytes
    l2: float = 0  # bytes
    seconds: float = 0  # of a chain of dependent steps, which nothing makes shorter
    programs: int = 0  # or blocks, where a model says how many


def unique_bytes(operands: Mapping[str, Operand]) -> int:
    """Return the bytes of operands, each storage once: one may stand in for another."""
    largest: dict[int, int] = {}
    for each in operands.values():
        largest[each.storage] = max(largest.get(each.storage, 0), each.bytes)
    return sum(largest.values())
