"""Definition of operators: one schema and one fake kernel for the namespaces of all backends.

A backend adds an implementation for its dispatch key: TORCH_LIBRARY_IMPL in C++, and for Triton a
function with the operator's name in the operator's file. The autograd formula of an operator is the
`autograd.Function` in its module, one for all backends.
"""

import importlib
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from itm_kernels import backends
from itm_kernels.backends import INTERPRETED, NAMESPACES, REMEDIES
from itm_kernels.reference._precision import wide


class Definition(NamedTuple):
    """The forward or backward pass of an operator, as every namespace defines it."""

    name: str
    schema: str
    fake: Callable[..., Any]
    runs_with: str | None = None  # the operator that it is run in place of

    @property
    def operator(self) -> str:
        """Return the operator's name in `backends.OPERATORS`."""
        return operator_of(self.name)


DEFINITIONS: list[Definition] = []


def operator_of(name: str) -> str:
    """Return the operator of a forward or backward pass."""
    return name.removesuffix("_forward").removesuffix("_backward")


def define(
    name: str,
    schema: str,
    fake: Callable[..., Any],
    *,
    runs_with: str | None = None,
    triton_file: str | None = None,
) -> None:
    """Define an operator in all namespaces.

    Args:
        name: in the dispatcher; one named *_backward cannot be differentiated.
        schema: arguments and results.
        fake: returns results for fake tensors.
        runs_with: another operator, whose backend runs this one too; it is not chosen by itself.
        triton_file: name of the file with its Triton kernels, if that is not the operator's.

    torch keeps operators for the life of the process. A package that is imported again, after a
    purge of sys.modules or by a reload, reuses the operators of the first import.
    """
    DEFINITIONS[:] = [known for known in DEFINITIONS if known.name != name]
    definition = Definition(name, schema, fake, runs_with)
    DEFINITIONS.append(definition)
    for namespace in NAMESPACES.values():
        define_in(namespace, definition)
    if triton_file is not None:
        backends.SHARED_FILES[definition.operator] = triton_file
    if runs_with is None and not name.endswith("_backward"):
        backends.add_operator(definition.operator, name)
    stem = backends.triton_file(definition.operator)
    if stem is not None:
        _implement_in_triton(name, f"itm_kernels.triton.{stem}")


def _implement_in_triton(name: str, module: str) -> None:
    """Register an implementation that imports the Triton kernels when it first runs.

    The package never imports Triton, and an import while a graph is traced would break the graph.
    An exported graph may run in a process that never chose a backend.
    """

    def run(*arguments: Any) -> Any:
        launcher = getattr(sys.modules.get(module) or importlib.import_module(module), name)
        like = next(argument for argument in arguments if isinstance(argument, Tensor))
        if not like.is_cuda or like.get_device() == torch.cuda.current_device():
            return launcher(*arguments)
        with torch.cuda.device_of(like):
            return launcher(*arguments)

    qualified = f"{NAMESPACES['triton']}::{name}"
    for key in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
        if not torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key):
            torch.library.impl(qualified, key, run)


def define_in(namespace: str, definition: Definition) -> None:
    """Define an operator in one namespace, unless an earlier import has defined it."""
    qualified = f"{namespace}::{definition.name}"
    if hasattr(getattr(torch.ops, namespace), definition.name):
        _check_schema(qualified, definition.schema)
        return
    try:
        torch.library.define(qualified, definition.schema)
    except RuntimeError as error:
        if "inferred schema" not in str(error):
            raise
        raise RuntimeError(
            f"itm_kernels: {qualified} of the extension is from another version of the package; "
            f"to rebuild it, {REMEDIES['cpu'][1]}"
        ) from error
    torch.library.register_fake(qualified, _latest_fake(definition))
    if definition.name.endswith("_backward"):
        # Without a formula of its own a second derivative would silently be None.
        torch.library.register_autograd(qualified, _refuse_second_derivative(definition.name))


def _check_schema(qualified: str, schema: str) -> None:
    """Raise an error unless torch holds the operator with this schema."""
    held = str(torch._C._get_schema(qualified, ""))
    wanted = str(torch._C.parse_schema(qualified + schema))
    if held != wanted:
        raise RuntimeError(
            f"itm_kernels: {qualified} is registered by another version of the package as {held}, "
            f"this version needs {wanted}; restart Python to import it"
        )


def _latest_fake(definition: Definition) -> Callable[..., Any]:
    """Return a fake kernel that calls the one of the latest import."""

    def fake(*arguments: Any) -> Any:
        known = importlib.import_module(__name__).DEFINITIONS
        latest = next((d for d in known if d.name == definition.name), definition)
        return latest.fake(*arguments)

    return fake


def _refuse_second_derivative(name: str) -> Callable[..., NoReturn]:
    def refuse(ctx: Any, *grads: Tensor) -> NoReturn:
        raise RuntimeError(
            f"{name} has no derivative: fused operators are differentiable once; "
            'for second derivatives pass backend="reference"'
        )

    return refuse


def torch_op(namespace: str, name: str) -> Callable[..., Any]:
    """Return an operator of the dispatcher.

    A backward pass that is not differentiated skips the autograd kernel that refuses it.
    """
    found = getattr(getattr(torch.ops, namespace), name)
    if not name.endswith("_backward"):
        return found
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return found
    return partial(_below_autograd, found)


def _below_autograd(found: Callable[..., Any], *arguments: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return found(*arguments)


def resolve_best(operator: str, like: Tensor, backend: str) -> str | None:
    """Choose the namespace of a part of a loss: the best available unless it is the reference.

    Not every backend has a kernel for every part.
    """
    return backends.resolve(operator, like, "reference" if backend == "reference" else "auto")


def distinct(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the tensors, with views for repeated ones, which Dynamo rejects in one Function."""
    found: list[Tensor | None] = []
    for i, tensor in enumerate(tensors):
        for other in tensors[:i]:
            if tensor is other and tensor is not None:
                tensor = tensor.view_as(tensor)
                break
        found.append(tensor)
    return tuple(found)


def scores_empty(keep: bool, x: Tensor, y: Tensor) -> Tensor:
    """Return uninitialised scores `[N, M]` if they are kept, otherwise `[0, 0]`."""
    return wide_empty(x, *((x.shape[0], y.shape[0]) if keep else (0, 0)))


def wide_empty(like: Tensor, *shape: int) -> Tensor:
    """Return an uninitialised tensor in the precision of computations with an input."""
    return wide(like.new_empty(shape))


def index_empty(like: Tensor, *shape: int) -> Tensor:
    """Return an uninitialised index tensor."""
    return like.new_empty(shape, dtype=torch.int64)
