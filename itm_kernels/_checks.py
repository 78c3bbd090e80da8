"""Argument checks: one sentence per mistake, naming the function, the values and the remedy."""

import math
from collections.abc import Collection
from numbers import Real

import torch
from torch import Tensor

from itm_kernels import _autocast

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def describe(value: object) -> str:
    """Return what an error message shows of a value: dtype and shape of a tensor, else its repr."""
    if isinstance(value, Tensor):
        return f"{_name(value.dtype)} {list(value.shape)} on {value.device}"
    return f"{type(value).__name__} {value!r}"


def is_tensor(function: str, name: str, value: object) -> Tensor:
    """Raise TypeError unless the value is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a torch.Tensor, got {describe(value)}")
    return value


def can_read(tensor: Tensor) -> bool:
    """Return whether values may be read: no device waits, no graph is being made of them."""
    return tensor.is_cpu and not torch.compiler.is_compiling() and type(tensor) is Tensor


def floating(function: str, name: str, value: object, layout: str | None = None) -> None:
    """Check a floating-point tensor, with a layout like "[N, D]" one of its rank and not empty."""
    tensor = is_tensor(function, name, value)
    if tensor.dtype not in FLOATING:
        raise TypeError(
            f"{function}: {name} must be floating point (float16, bfloat16, float32 or float64), "
            f"got {describe(tensor)}; convert it with {name}.float()"
        )
    if layout is None:
        return
    if tensor.dim() != layout.count(",") + 1:
        raise ValueError(f"{function}: {name} must have shape {layout}, got {list(tensor.shape)}")
    if tensor.numel() == 0:
        raise ValueError(
            f"{function}: {name} {list(tensor.shape)} is empty; skip batches without rows"
        )


def alike(function: str, **tensors: Tensor) -> tuple[Tensor, ...]:
    """Check that tensors share dtype, device and their last dimension; return them.

    Inside autocast a model's two encoders may differ in dtype (a linear layer gives bf16, a
    normalisation fp32): the tensors are promoted as PyTorch promotes, and their gradients come back
    in the dtype of each.
    """
    (first_name, first), *others = tensors.items()
    dtype = first.dtype
    for name, other in others:
        both = f"{first_name} {list(first.shape)} and {name} {list(other.shape)}"
        if first.shape[-1] != other.shape[-1]:
            raise ValueError(
                f"{function}: {both} differ in the last dimension; "
                "project both into one embedding space"
            )
        if first.dtype != other.dtype and not _autocast.is_on(first):
            raise TypeError(
                f"{function}: {both} differ in dtype, {_name(first.dtype)} and "
                f"{_name(other.dtype)}; convert one with .to(other.dtype)"
            )
        if first.device != other.device:
            raise ValueError(
                f"{function}: {both} are on different devices, {first.device} and "
                f"{other.device}; move one with .to(other.device)"
            )
        dtype = torch.promote_types(dtype, other.dtype)
    return tuple(
        tensor if tensor.dtype == dtype else tensor.to(dtype) for tensor in tensors.values()
    )


def embeddings(function: str, **tensors: object) -> tuple[Tensor, ...]:
    """Check floating-point matrices [rows, D] of one width, dtype and device; return them.

    The caller continues with the returned tensors: see `alike`.
    """
    for name, value in tensors.items():
        floating(function, name, value, "[rows, D]")
    return alike(function, **tensors)  # type: ignore[arg-type]


def option(function: str, name: str, value: object, allowed: Collection[str]) -> None:
    """Check that a value is one of the allowed words."""
    if value not in allowed:
        words = ", ".join(repr(word) for word in allowed)
        raise ValueError(f"{function}: {name} must be one of {words}, got {value!r}")


def number(
    function: str,
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
) -> None:
    """Check a finite Python number > above, >= least and < below."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{function}: {name} must be a number, got {describe(value)}")
    x = float(value)
    # In comparisons alone: torch.compile(dynamic=True) makes a symbol of a Module's number.
    if not (above < x < below and least <= x):
        bounds = [f"> {above:g}"] if above > -math.inf else []
        bounds += [f">= {least:g}"] if least > -math.inf else []
        bounds += [f"< {below:g}"] if below < math.inf else []
        wanted = " and ".join(["finite", *bounds])
        raise ValueError(f"{function}: {name} must be {wanted}, got {value}")


def integer(function: str, name: str, value: object, least: int) -> None:
    """Check a Python int >= least."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{function}: {name} must be an int, got {describe(value)}")
    if value < least:
        raise ValueError(f"{function}: {name} must be >= {least}, got {value}")


def scalar(function: str, name: str, value: object, *, above: float = -math.inf) -> None:
    """Check a number, or a floating-point tensor of one element (whose value is not read)."""
    if not isinstance(value, Tensor):
        number(function, name, value, above=above)
    elif value.numel() != 1 or value.dtype not in FLOATING:
        raise ValueError(
            f"{function}: {name} must be a number or a floating-point tensor of one element, "
            f"got {describe(value)}"
        )


def identifiers(
    function: str, name: str, value: object, rows: int, like: Tensor, *, what: str = "id"
) -> None:
    """Check integer ids, one per row, on the CPU or on the device of `like`."""
    ids = is_tensor(function, name, value)
    if ids.dtype not in INTEGER:
        raise TypeError(f"{function}: {name} must be integers, got {describe(ids)}; use .long()")
    if ids.shape != (rows,):
        raise ValueError(
            f"{function}: {name} must have shape [{rows}], one {what} per row, "
            f"got {list(ids.shape)}"
        )
    if ids.device != like.device and ids.device.type != "cpu":
        raise ValueError(
            f"{function}: {name} is on {ids.device}, the embeddings on {like.device}; "
            f"move it with .to({str(like.device)!r})"
        )


def id_pair(
    function: str,
    names: tuple[str, str],
    ids: tuple[Tensor | None, Tensor | None],
    sides: tuple[Tensor, Tensor],
) -> tuple[Tensor | None, Tensor | None]:
    """Check that ids come for both sides or for neither; return them as int64 on their device."""
    if (ids[0] is None) != (ids[1] is None):
        given, missing = names if ids[1] is None else names[::-1]
        raise ValueError(f"{function}: {given} is given without {missing}; pass both or neither")
    for name, value, side in zip(names, ids, sides, strict=True):
        if value is not None:
            identifiers(function, name, value, side.shape[0], sides[0])
    first, second = (
        None if value is None else value.to(sides[0].device, torch.int64, non_blocking=True)
        for value in ids
    )
    return first, second
