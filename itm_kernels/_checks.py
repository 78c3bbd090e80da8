"""Argument checks. A message states the argument, its value and the remedy in one sentence.

The public function is named by `_public.public`.
"""

import math
from collections.abc import Collection
from numbers import Integral, Real

import torch
from torch import Tensor
from torch.distributed import GroupMember, ProcessGroup, get_rank

from itm_kernels import _autocast, _devices
from itm_kernels._describe import argument, as_dense, as_tensor, dtype_name, shape
from itm_kernels._describe import describe as describe
from itm_kernels._describe import shown as shown
from itm_kernels._public import UnnamedRuntimeError, UnnamedTypeError, UnnamedValueError

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LARGEST = 2**63 - 1  # of an operator's int arguments
INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


# Remedies for a tensor whose rank differs from its layout.
_RANKS = {
    "[rows, D]": "encode or pool it to one row per sample first",
    "[views, N, D]": "encode or pool it to one row per view and sample first",
    "[N, M]": "reduce it to one score per image and text first",
}


def is_tensor(name: str, value: object) -> Tensor:
    """Raise TypeError unless the value is a dense tensor."""
    if not isinstance(value, Tensor):
        raise UnnamedTypeError(
            f"{name} must be a torch.Tensor, got {describe(value)}{as_tensor(name, value)}"
        )
    if value.layout is not torch.strided or value.is_nested or value.is_quantized:
        raise UnnamedTypeError(
            f"{name} must be a dense tensor, got {describe(value)}{as_dense(name, value)}"
        )
    return value


def can_read(tensor: Tensor) -> bool:
    """Return whether values can be read without device synchronisation or graph break."""
    if not tensor.is_cpu or torch.compiler.is_compiling() or type(tensor) is not Tensor:
        return False
    functorch = torch._C._functorch
    while functorch.is_gradtrackingtensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return not functorch.is_functorch_wrapped_tensor(tensor)  # under vmap: many values


def floating(name: str, value: object, layout: str | None = None, least: int = 1) -> None:
    """Check for a floating-point tensor; given a layout like "[N, D]", its rank and size too.

    With `least` 0 the tensor may have no rows, as on a rank that holds no samples.
    """
    tensor = is_tensor(name, value)
    if tensor.dtype not in FLOATING:
        raise UnnamedTypeError(
            f"{name} must be floating point (float16, bfloat16, float32 or float64), "
            f"got {describe(tensor)}; {_to_floating(name, tensor, layout)}"
        )
    if layout is None:
        return
    if tensor.dim() != layout.count(",") + 1:
        remedy = f"; {_RANKS[layout]}" if layout in _RANKS else ""
        if remedy and tensor.dim() == layout.count(","):
            remedy += f", {argument(name)}[None] if it is one"
        raise UnnamedValueError(
            f"{name} must have shape {layout}, got {shape(tensor.shape)}{remedy}"
        )
    if tensor.numel() == 0 and not (least == 0 and tensor.shape[-1]):
        raise UnnamedValueError(f"{name} {shape(tensor.shape)} is empty; skip batches without rows")


def _to_floating(name: str, tensor: Tensor, layout: str | None) -> str:
    """Return how to make a tensor of another dtype floating point."""
    x = argument(name)
    if tensor.dtype.is_complex:
        return f"concatenate its parts: torch.cat([{x}.real, {x}.imag], -1)"
    embeddings = layout is not None and layout.endswith(("D]", "dim]"))
    if embeddings and tensor.dtype in INTEGER:
        return "integers are token ids, labels or pixels: encode them first"
    return f"convert it with {x}.float()"


def alike(**tensors: Tensor) -> tuple[Tensor, ...]:
    """Check that tensors share dtype, device and last dimension; return them.

    Inside autocast the two encoders of a model may differ in dtype (a linear layer returns bf16, a
    normalisation fp32): the tensors are promoted by PyTorch's rules, and each gets its gradient in
    its own dtype.
    """
    (first_name, first), *others = tensors.items()
    dtype = first.dtype
    for name, other in others:
        pair = first_name, first, name, other
        if first.shape[-1] != other.shape[-1]:
            raise UnnamedValueError(
                f"{_both(*pair)} differ in the last dimension; "
                "project both into one embedding space"
            )
        if first.dtype != other.dtype and not _autocast.is_on(first):
            raise UnnamedTypeError(
                f"{_both(*pair)} differ in dtype, "
                f"{dtype_name(first.dtype)} and {dtype_name(other.dtype)}; "
                "convert one with .to(other.dtype)"
            )
        if first.device != other.device:
            raise UnnamedValueError(
                f"{_both(*pair)} are on different devices, "
                f"{first.device} and {other.device}; move one with .to(other.device)"
            )
        dtype = torch.promote_types(dtype, other.dtype)
    return tuple(
        tensor if tensor.dtype == dtype else tensor.to(dtype) for tensor in tensors.values()
    )


def _both(first_name: str, first: Tensor, name: str, other: Tensor) -> str:
    return f"{first_name} {shape(first.shape)} and {name} {shape(other.shape)}"


def embeddings(**tensors: object) -> tuple[Tensor, ...]:
    """Check floating-point matrices [rows, D] of one width, dtype and device; return them.

    Use the returned tensors: `alike` may promote them.
    """
    for name, value in tensors.items():
        floating(name, value, "[rows, D]")
    return alike(**tensors)  # type: ignore[arg-type]


def rows_of_a_rank(**tensors: object) -> tuple[Tensor, ...]:
    """Check embeddings of one rank, which may have no rows; return them."""
    for name, value in tensors.items():
        floating(name, value, "[rows, D]", least=0)
    return alike(**tensors)  # type: ignore[arg-type]


def option(name: str, value: object, allowed: Collection[str]) -> None:
    """Check that a value is one of the allowed words."""
    # isinstance first: an array compared with a word gives an array, which has no truth value.
    if not isinstance(value, str) or value not in allowed:
        words = ", ".join(repr(word) for word in allowed)
        raise UnnamedValueError(f"{name} must be one of {words}, got {shown(value)}")


def number(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    power: float = 1,
) -> None:
    """Check a finite real number of Python or NumPy, > above, >= least and < below.

    Its power must fit fp32, and with above = 0 also the reciprocal of the power.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        item = f"; use {argument(name)}.item()" if isinstance(value, Tensor) else ""
        raise UnnamedTypeError(f"{name} must be a number, got {describe(value)}{item}")
    try:
        x = float(value)
    except OverflowError:  # an int beyond fp64
        x = math.inf
    # Comparisons only: torch.compile(dynamic=True) turns a number of a Module into a symbol.
    if not (above < x < below and least <= x):
        bounds = [f"> {above:g}"] if above > -math.inf else []
        bounds += [f">= {least:g}"] if least > -math.inf else []
        bounds += [f"< {below:g}"] if below < math.inf else []
        wanted = " and ".join(["finite", *bounds])
        raise UnnamedValueError(f"{name} must be {wanted}, got {shown(value)}")
    _fits_fp32(name, x, reciprocal=above == 0, power=power)


def integer(name: str, value: object, least: int) -> None:
    """Check an integer of Python or NumPy, >= least."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UnnamedTypeError(f"{name} must be an int, got {describe(value)}")
    if not least <= int(value):
        raise UnnamedValueError(f"{name} must be >= {least}, got {shown(value)}")
    if int(value) > _LARGEST:
        raise UnnamedValueError(f"{name} must be < 2 ** 63, got {shown(value)}")


def scalar(name: str, value: object, *, above: float = -math.inf) -> None:
    """Check a number, or a floating-point tensor of one element (whose value is not read)."""
    if not isinstance(value, Tensor):
        number(name, value, above=above)
    elif is_tensor(name, value).numel() != 1 or value.dtype not in FLOATING:
        raise UnnamedValueError(
            f"{name} must be a number or a floating-point tensor of one element, "
            f"got {describe(value)}"
        )


def identifiers(name: str, value: object, rows: int, like: Tensor, *, what: str = "id") -> None:
    """Check integer ids, one per row, on the CPU or on the device of `like`."""
    ids = is_tensor(name, value)
    if ids.dtype not in INTEGER:
        raise UnnamedTypeError(f"{name} must be integers, got {describe(ids)}; use .long()")
    if ids.shape != (rows,):
        raise UnnamedValueError(
            f"{name} must have shape [{rows}], one {what} per row, got {shape(ids.shape)}"
        )
    if ids.device != like.device and ids.device.type != "cpu":
        raise UnnamedValueError(
            f"{name} is on {ids.device}, the embeddings on {like.device}; "
            f"move it with .to({str(like.device)!r})"
        )
    # A replay of the graph would read the host memory of the ids again, after it may have changed.
    if ids.device != like.device and _devices.is_capturing():
        raise UnnamedRuntimeError(
            f"{name} is on the CPU while a CUDA graph is captured; "
            f"move it with .to({str(like.device)!r}) before the capture"
        )


def id_pair(
    names: tuple[str, str],
    ids: tuple[Tensor | None, Tensor | None],
    sides: tuple[Tensor, Tensor],
) -> tuple[Tensor | None, Tensor | None]:
    """Check that both or neither of two ids are given; return them as int64 on the device."""
    if (ids[0] is None) != (ids[1] is None):
        given, missing = names if ids[1] is None else names[::-1]
        raise UnnamedValueError(f"{given} is given without {missing}; pass both or neither")
    for name, value, side in zip(names, ids, sides, strict=True):
        if value is not None:
            identifiers(name, value, side.shape[0], sides[0])
    first, second = (
        None if value is None else value.to(sides[0].device, torch.int64, non_blocking=True)
        for value in ids
    )
    return first, second


_FP32 = torch.finfo(torch.float32)


def _fits_fp32(name: str, x: float, *, reciprocal: bool, power: float) -> None:
    """Check that fp32 holds a power of a number, and its reciprocal where kernels use that.

    Python floats and fp64 have a larger range and would give results where kernels overflow to
    infinity or underflow to zero.
    """
    low, high = (_FP32.tiny, 1 / _FP32.tiny) if reciprocal else (_FP32.min, _FP32.max)
    if power == 2:
        low, high = math.sqrt(low), math.sqrt(high)
    if low <= x <= high:
        return
    held = "its square" if power == 2 else "it"
    held += " and 1 over that" if reciprocal else ""
    raise UnnamedValueError(
        f"{name} must lie between {low:.3g} and {high:.3g}, so that fp32 holds {held}, got {x:g}"
    )


def process_group(name: str, value: object) -> None:
    """Check for a process group of torch.distributed that this process belongs to."""
    if value is GroupMember.NON_GROUP_MEMBER or (
        isinstance(value, ProcessGroup) and get_rank(value) < 0
    ):
        # new_group returns this to processes outside the group.
        raise UnnamedValueError(
            f"{name} does not contain this process; call the loss on the group's ranks only"
        )
    if not isinstance(value, ProcessGroup):
        raise UnnamedTypeError(
            f"{name} must be a process group, got {describe(value)}; after "
            "torch.distributed.init_process_group() use torch.distributed.group.WORLD"
        )


def generator(value: object) -> None:
    """Check a source of random draws: a torch.Generator, or None for the default generator."""
    if value is not None and not isinstance(value, torch.Generator):
        raise UnnamedTypeError(
            f"generator must be a torch.Generator, got {describe(value)}; "
            "for a seed use torch.Generator().manual_seed(seed)"
        )
