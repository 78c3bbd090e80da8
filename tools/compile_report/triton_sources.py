"""Identify a Triton kernel by its source: the code of all functions that it calls, and constants.

The IR of a kernel takes 30 ms, its source less than one: functions are read once for all kernels.
"""

import inspect
from functools import cache
from typing import Any

import triton.language as tl
from triton.runtime.jit import DependenciesFinder, JITCallable

from tools.compile_report import recorded


class _Dependencies(DependenciesFinder):
    """Triton's search for what a function depends on, with another hash.

    Triton's own hash changes with comments and line numbers, and leaves out constants that are
    attributes of a module.
    """

    def __init__(self, function: JITCallable) -> None:
        super().__init__(
            name=function.__name__,
            globals=function.__globals__,
            nonlocals=inspect.getclosurevars(function.fn).nonlocals,
            src=recorded.undocumented(function.parse()),
        )
        self.function = function
        self.hasher.update(str(getattr(function, "noinline", None)).encode())

    def record_reference(self, val: Any, var_dict: Any = None, name: Any = None) -> None:
        if isinstance(val, (tl.constexpr, tl.dtype, int, float, str)):
            self.hasher.update(repr(val).encode())
        super().record_reference(val, var_dict, name)

    def _update_hash(self, func: JITCallable) -> None:
        if func is not self.function:  # a function may call itself
            self.hasher.update(source_of(func).encode())


@cache
def source_of(function: JITCallable) -> str:
    """Return a hash of the code of a function and of everything that it calls, and of constants."""
    found = _Dependencies(function)
    found.visit(function.parse())
    return str(found.ret)


def value_of(constant: Any) -> str:
    """Return a text that identifies the value of a constant, which may be a function."""
    return source_of(constant) if isinstance(constant, JITCallable) else str(constant)
