"""Shapes of ATen's calls on meta tensors, computed by ATen itself.

For compilers with symbolic sizes, torch replaces most of ATen's functions for meta tensors by
functions in Python, which take 150 us per elementwise call. ATen's own take 1 us. A GPU computes
shapes and strides by the same code.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, _meta_registrations
from torch.library import Library

# The name in torch of the library of all Python functions for meta tensors.
_LIBRARY = "_meta_lib_dont_use_me_use_register_meta"
# ATen's functions for meta tensors. Those of the last two keys serve all devices: they call other
# functions, and raise an error if they read a value.
_NATIVE = ("Meta", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")


def _is_native(name: str) -> bool:
    """Return whether ATen has a function for meta tensors, while no other is registered."""
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in _NATIVE)


def _function_of(name: str) -> Callable[..., Any]:
    """Return torch's Python function for an operator or overload."""
    packet, _, overload = name.removeprefix("aten::").partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
    function: Callable[..., Any] = operator.py_kernels[torch._C.DispatchKey.Meta]
    return function


def _isnan(x: Tensor) -> Tensor:
    return x.ne(x)


def _where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the result for contiguous tensors of one shape and numbers, otherwise torch's."""
    given = [each for each in (condition, x, y) if each.dim()]
    if given and all(each.shape == given[0].shape and each.is_contiguous() for each in given):
        return given[0].new_empty(given[0].shape, dtype=torch.result_type(x, y))
    found: Tensor = _function_of("aten::where.self")(condition, x, y)
    return found


# ATen has none for these. The first use of torch's imports its compiler, which takes a second.
_ADDED: dict[str, Callable[..., Any]] = {"aten::isnan": _isnan, "aten::where.self": _where}


@contextlib.contextmanager
def native_meta() -> Iterator[None]:
    """Use ATen's own functions for meta tensors where ATen has one."""
    python = getattr(_meta_registrations, _LIBRARY)
    names = ["aten::" + name.split("/")[1] for name in python._op_impls]
    functions = {name: _function_of(name) for name in names}
    _replace({**functions, **_ADDED}, lambda name: not _is_native(name))
    try:
        yield
    finally:
        _replace(functions, lambda name: True)


def _replace(functions: dict[str, Callable[..., Any]], chosen: Callable[[str], bool]) -> None:
    """Register the chosen functions instead of those that are registered."""
    getattr(_meta_registrations, _LIBRARY)._destroy()
    library = Library("aten", "IMPL", "Meta")
    for name, function in functions.items():
        if chosen(name):
            library.impl(name.removeprefix("aten::"), function)
    setattr(_meta_registrations, _LIBRARY, library)
