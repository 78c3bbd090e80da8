"""A faster Triton interpreter that caches repeated work and gives bitwise identical results.

NumPy takes a tenth of the time of an interpreted kernel. The rest is Python: every call of a
function inside a kernel patches the whole language again, the overflow of every integer operation
is computed for an assertion that is disabled, immutable types are created repeatedly, and the types
and shapes of two operands are derived at every operation.

Objects that a cache holds are never freed, so their ``id`` identifies them: shapes of types
(``_shapes``) and of tensors (``_by_value``).
"""

import builtins
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
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


def patch_attr(at: object, name: str, member: Any, builder: Any, scope: Any) -> None:
    """Replace a function of the language by one that passes the interpreter, without checks."""
    function, semantic = getattr(member, "__wrapped__", member), TritonSemantic(builder)

    def replacement(*args: Any, **named: Any) -> Any:
        named["_semantic"] = semantic
        return function(*args, **named)

    scope.set_attr(at, name, replacement)


def block_type(self: Any, element_ty: Any, shape: Any) -> None:
    """Initialize a block type from a cache."""
    key = (element_ty.name, *map(tl.core._unwrap_if_constexpr, shape))
    if key not in _types:
        _type_init(self, element_ty, shape)
        _types[key] = dict(self.__dict__)
    self.__dict__.update(_types[key])


def with_element_ty(self: Any, scalar_ty: Any) -> Any:
    """Return the block type of this shape with another element type, from a cache."""
    key = id(self.shape), scalar_ty.name
    if key not in _blocks:
        _blocks[key] = self, tl.block_type(scalar_ty, self.shape)
    return _blocks[key][1]


def equal(self: Any, other: Any) -> Any:
    """Compare types by their names."""
    return self is other or _equal(self, other)


def tensor(self: Any, handle: Any, type: Any) -> None:
    """Initialize a tensor, sharing the shape object between tensors of one shape."""
    shape = getattr(type, "shape", None)
    known = _shapes.get(id(shape))
    if known is None:
        _tensor_init(self, handle, type)
        key = () if shape is None else builtins.tuple(shape)
        shared = _by_value.setdefault(key, (self.shape, self.numel))
        known = _shapes[id(shape)] = *shared, shape
    self.shape, self.numel, _ = known
    self.handle, self.type, self.dtype = handle, type, type.scalar


def broadcast_impl_value(self: Any, lhs: Any, rhs: Any) -> tuple[Any, Any]:
    """Return blocks of equal shape unchanged, others in the shape that two such shapes had."""
    if lhs.shape is rhs.shape:
        return lhs, rhs
    key = id(lhs.shape), id(rhs.shape)
    if key not in _common:
        found = _broadcast(self, lhs, rhs)
        given = zip((lhs, rhs), found, strict=True)
        _common[key] = [None if new is old else new.type for old, new in given]
        return found
    left, right = _common[key]
    return lhs if left is None else _stretched(self, lhs, left), (
        rhs if right is None else _stretched(self, rhs, right)
    )


def _stretched(self: Any, x: Any, like: Any) -> Any:
    """Return a tensor in the shape of a block type, as Triton broadcasts it."""
    block = with_element_ty(like, x.dtype)
    if x.type.is_block():
        return self.tensor(self.builder.create_broadcast(x.handle, like.shape), block)
    return self.tensor(self.builder.create_splat(block.to_ir(self.builder), x.handle), block)


def of_one_type(lhs: Any, rhs: Any) -> bool:
    """Return whether two operands are tensors of a type that no operation converts."""
    if not isinstance(lhs, tl.tensor) or not isinstance(rhs, tl.tensor):
        return False
    return lhs.dtype.name == rhs.dtype.name and lhs.dtype.name in _PROMOTED_TO_ITSELF


def operands(self: Any, lhs: Any, rhs: Any, *rules: Any, **named: Any) -> tuple[Any, Any]:
    """Convert two operands: numbers from a cache, tensors of equal type by their shapes only."""
    if of_one_type(lhs, rhs):
        return self.broadcast_impl_value(lhs, rhs)
    left, right = isinstance(lhs, tl.tensor), isinstance(rhs, tl.tensor)
    number, given = (rhs, lhs) if left else (lhs, rhs)
    if left == right or type(number) not in (int, float, bool):
        return _operands(self, lhs, rhs, *rules, **named)
    # repr distinguishes 1, 1.0 and True, and 0.0 from -0.0.
    kind = given.dtype.name, id(given.shape), given.type.is_block()
    key = (*kind, repr(number), left, rules, *named.items())
    if key not in _numbers:
        found = _operands(self, lhs, rhs, *rules, **named)
        if found[0 if left else 1] is not given:  # converted itself
            return found
        _numbers[key] = found[1 if left else 0]
    return (lhs, _numbers[key]) if left else (_numbers[key], rhs)


def binary(name: str, function: Callable[[Any, Any], Any]) -> Any:
    """Return an operation that leaves the broadcasting of tensors of one type to NumPy."""
    original = getattr(TritonSemantic, name)

    def operation(self: Any, lhs: Any, rhs: Any, *rest: Any, **named: Any) -> Any:
        if not of_one_type(lhs, rhs):
            return original(self, lhs, rhs, *rest, **named)
        key = name, lhs.dtype.name, id(lhs.shape), id(rhs.shape)
        if key not in _results:
            found = original(self, lhs, rhs, *rest, **named)
            _results[key] = found.type
            return found
        data = function(lhs.handle.data, rhs.handle.data)
        # A comparison's result, too, has a handle of the operands' type.
        return tl.tensor(interpreter.TensorHandle(data, lhs.handle.dtype.scalar), _results[key])

    return operation


def dtype_of(dtype: Any) -> Any:
    """Cache the NumPy type of every Triton type, whose table is otherwise built at every call."""
    if dtype.name not in _dtypes:
        _dtypes[dtype.name] = _dtype_of(dtype)
    return _dtypes[dtype.name]


# Two operands of such a type are not converted, whatever the operation.
_PROMOTED_TO_ITSELF = frozenset(("fp64", "fp32", "int64", "int32", "int1"))
_types: dict[Any, dict[str, Any]] = {}
_blocks: dict[Any, tuple[Any, Any]] = {}
_shapes: dict[int, tuple[Any, Any, Any]] = {}
_by_value: dict[Any, tuple[Any, Any]] = {}
_common: dict[tuple[int, int], list[Any]] = {}
_numbers: dict[Any, Any] = {}
_results: dict[Any, Any] = {}
_dtypes: dict[str, Any] = {}
_type_init, _tensor_init, _equal = tl.block_type.__init__, tl.tensor.__init__, tl.dtype.__eq__
_broadcast, _dtype_of = TritonSemantic.broadcast_impl_value, interpreter._get_np_dtype
_operands = TritonSemantic.binary_op_type_checking_impl
_BUILDER = interpreter.interpreter_builder
assert not _BUILDER.options.debug  # in debug mode overflow is reported
_FUNCTIONS = {
    **{"add": np.add, "sub": np.subtract, "mul": np.multiply},
    **{"and_": np.bitwise_and, "or_": np.bitwise_or, "equal": np.equal, "not_equal": np.not_equal},
    **{"less_than": np.less, "less_equal": np.less_equal},
    **{"greater_than": np.greater, "greater_equal": np.greater_equal},
}
QUICK: tuple[tuple[object, str, Any], ...] = (
    (_BUILDER, "options", replace(_BUILDER.options, sanitize_overflow=False)),
    (interpreter, "_patch_lang", Patches()),
    (interpreter, "_patch_attr", patch_attr),
    (interpreter, "_get_np_dtype", dtype_of),
    (tl.block_type, "__init__", block_type),
    (tl.block_type, "with_element_ty", with_element_ty),
    (tl.dtype, "__eq__", equal),
    (tl.tensor, "__init__", tensor),
    (TritonSemantic, "binary_op_type_checking_impl", operands),
    (TritonSemantic, "broadcast_impl_value", broadcast_impl_value),
    *((TritonSemantic, name, binary(name, function)) for name, function in _FUNCTIONS.items()),
)
SHIPPED = tuple((at, name, getattr(at, name)) for at, name, _ in QUICK)


@contextmanager
def using(changes: tuple[tuple[object, str, Any], ...]) -> Iterator[None]:
    """Apply some of the replacements, as a context."""
    with ExitStack() as changed:
        for at, name, value in changes:
            changed.enter_context(patch.object(at, name, value))
        yield
