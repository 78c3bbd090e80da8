"""Descriptions of values for error messages: type, dtype, shape or size, never the contents."""

from collections.abc import Collection
from numbers import Number

import torch
from torch import Tensor

_MOST = 40  # characters per value, so that a message with three values fits in two lines
_MOST_SIZES = 6


def describe(value: object) -> str:
    """Return type and size of a value in one short line, like "list of 512" or "float 0.2"."""
    kind = _short(type(value).__name__)
    if isinstance(value, Tensor):
        return _tensor(value)
    if value is None or isinstance(value, (bool, str, Number, torch.dtype, torch.device)):
        text = shown(value)
        return text if text.startswith(kind) else f"{kind} {text}"
    dtype, sizes = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None and isinstance(sizes, tuple):  # of NumPy or another library
        return f"{kind} {_short(str(dtype))} {shape(sizes)}"
    if isinstance(value, Collection):
        try:
            return f"{kind} of {len(value)}"
        except Exception:  # the container of another library
            return kind
    return kind


def shown(value: object) -> str:
    """Return a word or number if it is short, else a description of it."""
    if isinstance(value, str):
        return repr(value) if len(value) <= _MOST else f"str of {len(value)} characters"
    if value is None or isinstance(value, (bool, Number, torch.dtype, torch.device)):
        try:
            return _short(str(value))
        except ValueError:  # Python refuses to print ints of more than 4300 digits
            return type(value).__name__
    return describe(value)


def shape(sizes: Collection[int]) -> str:
    """Return a shape as text, abbreviated beyond six dimensions."""
    if len(sizes) <= _MOST_SIZES:
        return str(list(sizes))
    first = ", ".join(str(size) for size, _ in zip(sizes, range(_MOST_SIZES), strict=False))
    return f"[{first}, ...] of {len(sizes)} dimensions"


def as_tensor(name: str, value: object) -> str:
    """Return the end of a message: how to convert a value to a tensor."""
    value_name = argument(name)
    first = None
    if isinstance(value, (list, tuple)) and value:
        first = value[0]
    if isinstance(first, Tensor):
        return f"; pass one of its tensors, or torch.stack({value_name})"
    if isinstance(value, str) or isinstance(first, str):
        return "; encode words, and number ids, first"
    if isinstance(value, (list, tuple)) or hasattr(value, "__array__"):
        return f"; use torch.as_tensor({value_name})"
    if isinstance(value, Collection):
        return "; pass one tensor of it"
    return ""


def as_dense(name: str, value: Tensor) -> str:
    """Return the end of a message: how to make a tensor dense."""
    if value.is_nested:
        return "; pool every sample to one row, and torch.stack the rows"
    way = "dequantize" if value.is_quantized else "to_dense"
    return f"; use {argument(name)}.{way}()"


def argument(name: str) -> str:
    """Return the name of an argument for a remedy, "it" for anything but an identifier."""
    return name if name.isidentifier() else "it"


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without its module."""
    return str(dtype).removeprefix("torch.")


def _tensor(value: Tensor) -> str:
    kind = dtype_name(value.dtype)
    if value.is_nested:  # has no shape
        return f"nested {kind} on {value.device}"
    layout = "" if value.layout is torch.strided else f" {str(value.layout).split('.')[-1]}"
    return f"{kind} {shape(value.shape)}{layout} on {value.device}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MOST else text[: _MOST - 3] + "..."
