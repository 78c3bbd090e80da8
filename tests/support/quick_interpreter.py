"""A faster Triton interpreter that caches repeated work and gives bitwise identical results.

NumPy takes a tenth of the time of an interpreted kernel. The rest is Python: every call of a
function inside a kernel patches the whole language again, the overflow of every integer operation
is computed for an assertion that is disabled, and immutable types are created repeatedly.
"""

import builtins
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


class Patches:
    """The patches of the language for a launch: computed once, then applied and undone."""

    def __init__(self) -> None:
        self.patch: Callable[[Any], Any] = interpreter._patch_lang
        self.known: dict[frozenset[str], dict[tuple[int, str], Any]] = {}
        self.of_function: dict[Any, frozenset[str]] = {}
        self.done: frozenset[str] | None = None  # modules that the current launch has patched
        self.kept: set[frozenset[str]] = set()  # patched by functions; Triton never undoes these

    def __call__(self, function: Any) -> "Patches":
        languages = self._languages(function)
        if self.done is None:
            self.scope = self._launch(function, languages)
            self.done = languages
        elif languages not in (self.done, *self.kept):
            self.patch(function)
            self.kept.add(languages)
        return self

    def _languages(self, function: Any) -> frozenset[str]:
        """Return the language modules that a function's file imports."""
        if function not in self.of_function:
            modules = filter(inspect.ismodule, function.__globals__.values())
            found = frozenset(module.__name__ for module in modules if module in (tl, tl.core))
            self.of_function[function] = found
        return self.of_function[function]

    def _launch(self, function: Any, languages: frozenset[str]) -> Any:
        missing = interpreter._MISSING
        known = self.known.get(languages, {})
        # The cached patches are valid only if the language has its original values.
        if known and all(getattr(at, n, missing) is was for (_, n), (at, was, _) in known.items()):
            scope = interpreter._LangPatchScope()
            for (_, name), (at, _, after) in known.items():
                scope.set_attr(at, name, after)
            return scope
        scope = self.patch(function)
        changes = self.known[languages] = {}
        for at, name, was in scope._changes:  # for repeated names the first value is the original
            changes.setdefault((id(at), name), (at, was, getattr(at, name)))
        return scope

    def restore(self) -> None:
        """Undo the patches of the launch."""
        self.scope.restore()
        self.done = None


def block_type(self: Any, element_ty: Any, shape: Any) -> None:
    """Initialize a block type from a cache."""
    key = (element_ty.name, *map(tl.core._unwrap_if_constexpr, shape))
    if key not in _types:
        _type_init(self, element_ty, shape)
        _types[key] = dict(self.__dict__)
    self.__dict__.update(_types[key])


def tensor(self: Any, handle: Any, type: Any) -> None:
    """Initialize a tensor, sharing the shape object between tensors of one shape."""
    key = builtins.tuple(type.shape) if type.is_block() else ()
    if key not in _shapes:
        _tensor_init(self, handle, type)
        _shapes[key] = self.shape, self.numel
    self.shape, self.numel = _shapes[key]
    self.handle, self.type, self.dtype = handle, type, type.scalar


def broadcast_impl_value(self: Any, lhs: Any, rhs: Any) -> tuple[Any, Any]:
    """Return blocks of equal shape unchanged."""
    return (lhs, rhs) if lhs.shape is rhs.shape else _broadcast(self, lhs, rhs)


def dtype_of(dtype: Any) -> Any:
    """Cache the NumPy type of every Triton type, whose table is otherwise built at every call."""
    if dtype.name not in _dtypes:
        _dtypes[dtype.name] = _dtype_of(dtype)
    return _dtypes[dtype.name]


_types: dict[Any, dict[str, Any]] = {}
_shapes: dict[Any, tuple[Any, Any]] = {}
_dtypes: dict[str, Any] = {}
_type_init, _tensor_init = tl.block_type.__init__, tl.tensor.__init__
_broadcast, _dtype_of = TritonSemantic.broadcast_impl_value, interpreter._get_np_dtype
_BUILDER = interpreter.interpreter_builder
assert not _BUILDER.options.debug  # in debug mode overflow is reported
QUICK: tuple[tuple[object, str, Any], ...] = (
    (_BUILDER, "options", replace(_BUILDER.options, sanitize_overflow=False)),
    (interpreter, "_patch_lang", Patches()),
    (interpreter, "_get_np_dtype", dtype_of),
    (tl.block_type, "__init__", block_type),
    (tl.tensor, "__init__", tensor),
    (TritonSemantic, "broadcast_impl_value", broadcast_impl_value),
)
SHIPPED = tuple((at, name, getattr(at, name)) for at, name, _ in QUICK)


@contextmanager
def using(changes: tuple[tuple[object, str, Any], ...]) -> Iterator[None]:
    """Apply some of the replacements, as a context."""
    with ExitStack() as changed:
        for at, name, value in changes:
            changed.enter_context(patch.object(at, name, value))
        yield
