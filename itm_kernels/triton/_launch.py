"""Launches of Triton kernels that skip Triton's own look-up of a compiled kernel.

At every launch `kernel[grid](...)` of Triton binds the arguments, specialises each of them, formats
the options as a string and calls hooks. A kernel that is declared with `jit` is looked up by a key
instead, and takes Triton's path for a key that it does not know. The key contains everything that
Triton specialises on, or something finer:

- the number of positional arguments and the names of the others;
- the types of all arguments, and of the members of named tuples;
- of a tensor its dtype, its address modulo 16 bytes, and whether it is on a GPU: Triton's path
  reports a tensor that is not;
- the value of every integer and string, and of a float that is a constant; other floats are
  specialised by their type;
- compile-time constants and functions by identity;
- the driver and the current device.

Launches also take Triton's path with arguments of other types, on AMD GPUs (Triton specialises on
the size of a tensor's memory there), in the interpreter, in unknown versions of Triton, and while
hooks, debugging or instrumentation are active. A kernel's globals must not change after its first
launch.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

# In these versions a `CompiledKernel.run` takes the grid, stream, function, metadata, metadata of
# the launch, two hooks, and all parameters in their order.
VERSIONS = ((3, 6), (3, 7), (3, 8))
_VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
SUPPORTED = _VERSION in VERSIONS and torch.version.hip is None
MOST_KEYS = 1024  # of a kernel: sizes that change at every step must not fill the memory
_TENSORS = (Tensor, torch.nn.Parameter)
_VALUES = (int, bool, str, type(None))
Values = tuple[Any, ...]


def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Declare a kernel as `triton.jit` does, for launches with less host time."""
    if function is None:
        return functools.partial(jit, **options)
    if knobs.runtime.interpret or not SUPPORTED:
        return triton.jit(function, **options)
    return Kernel(function, **options)


class _Binding(NamedTuple):
    """How arguments of known names and types select a compiled kernel and become its parameters."""

    # Everything that selects a kernel, besides names and types; and the parameters in their order,
    # with addresses in the place of tensors, which the launcher would look up in the driver.
    key_and_parameters: Callable[..., tuple[Values, Values]]
    objects: Callable[..., Values]  # of the key by identity


class _Ready(NamedTuple):
    """A compiled kernel."""

    run: Callable[..., None]
    function: Any
    metadata: Any
    objects: Values  # of the key: an id is unique while its object lives


class Kernel(JITFunction):
    """A kernel that keeps its compiled versions by a key of its own."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        super().__init__(function, **options)
        self._places: dict[Any, tuple[int, ...]] = {}  # of named tuples
        self._bindings: dict[Any, _Binding | None] = {}
        self._ready: dict[Any, _Ready] = {}

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        return functools.partial(self._launch, grid)

    def _launch(self, grid: Any, /, *given: Any, **named: Any) -> Any:
        values = (*given, *named.values())
        form = (*named, *map(type, values))
        places = self._places.get(form)
        if places is None:
            places = self._places[form] = _places_of_members(values)
        for place in places:
            form += tuple(map(type, values[place]))
        binding = self._bindings.get(form, _UNKNOWN)
        if binding is _UNKNOWN:
            binding = self._bindings[form] = _binding(self, tuple(named), values)
        if binding is None or callable(grid) or self.pre_run_hooks or not _is_plain():
            return self.run(*given, grid=grid, warmup=False, **named)
        active = driver.active
        device = active.get_current_device()
        own, parameters = binding.key_and_parameters(*values)
        key = active, device, form, own
        ready = self._ready.get(key)
        if ready is None:
            compiled = self.run(*given, grid=grid, warmup=False, **named)
            self._keep(key, compiled, binding.objects(*values))
            return compiled
        x, y, z = (*grid, 1, 1)[:3]
        stream = active.get_current_stream(device)
        ready.run(x, y, z, stream, ready.function, ready.metadata, None, None, None, *parameters)
        return None

    def _keep(self, key: Values, compiled: Any, objects: Values) -> None:
        if not isinstance(compiled, CompiledKernel):  # a stand-in compiled nothing
            return
        if len(self._ready) >= MOST_KEYS:
            self._ready.clear()
        ready = _Ready(compiled.run, compiled.function, compiled.packed_metadata, objects)
        self._ready[key] = ready


_UNKNOWN: Any = object()


def _is_plain() -> bool:
    """Return whether nothing observes launches or changes what they compile to."""
    runtime = knobs.runtime
    return (
        getattr(runtime.launch_enter_hook, "calls", None) == []
        and getattr(runtime.launch_exit_hook, "calls", None) == []
        and not runtime.debug
        and runtime.add_stages_inspection_hook is None
        and not knobs.compilation.instrumentation_mode
    )


def _binding(kernel: JITFunction, names: tuple[str, ...], values: Values) -> _Binding | None:
    """Return how arguments form a key, None if Triton must look them up."""
    parameters = [each.name for each in kernel.params]
    constants = {each.name for each in kernel.params if each.is_constexpr}
    own = [*parameters[: len(values) - len(names)], *names]  # the name of every value
    if len(set(own)) != len(own) or not set(parameters) <= set(own):
        return None  # a default, or an error that Triton reports
    terms, objects, passed = list[str](), list[str](), dict[str, str]()
    for place, (name, value) in enumerate(zip(own, values, strict=True)):
        typed, members = name in parameters and name not in constants, list[str]()
        for at, member in _members(f"v{place}", value):
            found = _terms(at, member, typed)
            if found is None:
                return None
            terms += found
            objects += [at] if found == [f"id({at})"] else []
            members.append(_pointer(at) if type(member) in _TENSORS else at)
        passed[name] = _tuple(members) if _is_named(value) else members[0]
    arguments = ", ".join(f"v{place}" for place in range(len(values)))
    given = _tuple([passed[name] for name in parameters])
    # Built from places and attributes only; one expression is twice as fast as a loop.
    return _Binding(
        eval(f"lambda {arguments}: ({_tuple(terms)}, {given})"),
        eval(f"lambda {arguments}: {_tuple(objects)}"),
    )


def _tuple(expressions: list[str]) -> str:
    return f"({''.join(f'{each}, ' for each in expressions)})"


def _pointer(at: str) -> str:
    """Return the name of a tensor's address."""
    return "p" + at.translate({ord("["): "_", ord("]"): None})


def _places_of_members(values: Values) -> tuple[int, ...]:
    """Return the places of named tuples, whose members have types of their own."""
    return tuple(place for place, value in enumerate(values) if _is_named(value))


def _is_named(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _members(at: str, value: Any) -> list[tuple[str, Any]]:
    """Return an expression for every member of a named tuple, or for the value itself."""
    if _is_named(value):
        return [(f"{at}[{k}]", member) for k, member in enumerate(value)]
    return [(at, value)]


def _terms(at: str, value: Any, typed: bool) -> list[str] | None:
    """Return the expressions that describe a value besides its type, None for unknown types.

    `typed`: its type is all that Triton specialises a float on.
    """
    of = type(value)
    if of in _TENSORS:
        return [f"{at}.dtype", f"{at}.is_cuda", f"({_pointer(at)} := {at}.data_ptr()) & 15"]
    if of in _VALUES:
        return [at]
    if of is float:
        return [] if typed else [f"repr({at})"]
    return [f"id({at})"] if isinstance(value, (tl.constexpr, JITFunction)) else None


def cdiv(number: int, size: int) -> int:
    """Return number / size, rounded up; `triton.cdiv` takes ten times as long."""
    return -(-number // size)


def next_power_of_2(number: int) -> int:
    """Return the smallest power of two that is not below a number >= 1."""
    return 1 << (number - 1).bit_length()
