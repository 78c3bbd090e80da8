"""Run a loss on meta tensors as it would run on a GPU, and record its launches and peak memory.

Operators of the Triton namespace run their launchers, which compute nothing on meta tensors; their
kernels are recorded instead of launched. ATen calls that would launch are recorded by their shapes.
A storage is alive from the call that allocates it to its last reference.
"""

import contextlib
import importlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cost_sheet import aten, cluster_models
from benchmarks.cost_sheet.counts import Count, Launch, operand
from benchmarks.cost_sheet.kernels import count_of
from itm_kernels import backends
from itm_kernels.ops._define import operator_of

PRECISIONS = {
    "bf16": (torch.bfloat16, "highest"),
    "fp32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
}
ARCHITECTURE = 90
_ATOMS = set[Any]()  # operators that do not decompose into others


class Trace(NamedTuple):
    """The launches of a loss, forward and backward, and its peak memory."""

    forward: list[Count]
    backward: list[Count]
    peak: int  # bytes beyond the inputs
    gradients: int  # bytes of the inputs' gradients, included in the peak
    outputs: int = 0  # bytes of the outputs and of their gradients, also included

    @property
    def counts(self) -> list[Count]:
        """All launches."""
        return self.forward + self.backward


class Watch(TorchDispatchMode):
    """Records calls that reach the device, and the storages that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[Count] = []
        self.launches: list[Launch] = []
        self.alive = self.peak = 0
        self._known = weakref.WeakSet[torch.UntypedStorage]()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Record a call, or the calls that it decomposes into."""
        kwargs = kwargs or {}
        if func.namespace == backends.NAMESPACES["triton"]:
            launcher = _launcher(func._opname)
            with self:
                return launcher(*args, **kwargs)
        if func.namespace == "aten" and func not in _ATOMS:
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
            _ATOMS.add(func)
        given = [*_tensors(args), *_tensors(kwargs.values())]
        found = func(*args, **kwargs)
        made = [*_tensors((found,))]
        hidden = 0
        if any(each.is_meta for each in (*given, *made)):
            inputs, outputs = [operand(each) for each in given], [operand(each) for each in made]
            count = aten.count_of(func, inputs, outputs, args)
            if count is not None:
                self.counts.append(count)
                hidden = aten.workspace(func, inputs)
        for each in made:
            self._hold(each)
        self.peak = max(self.peak, self.alive + hidden)
        return found

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if not tensor.is_meta or storage in self._known:
            return
        self._known.add(storage)
        self.alive += storage.nbytes()
        weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, size: int) -> None:
        self.alive -= size

    def inputs(self, *tensors: Tensor) -> None:
        """Exclude the storages of inputs from the memory."""
        for tensor in tensors:
            self._known.add(tensor.untyped_storage())

    def launch(self, launch: Launch) -> None:
        """Record a kernel."""
        self.launches.append(launch)
        self.counts.append(count_of(launch))


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among the arguments or results of a call, also those of lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _launcher(name: str) -> Callable[..., Any]:
    stem = backends.triton_file(operator_of(name))
    return getattr(importlib.import_module(f"itm_kernels.triton.{stem}"), name)


def _members(arguments: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield arguments by name; those of a named tuple under its members' names."""
    for name, value in arguments.items():
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            for member, each in zip(value._fields, value, strict=True):
                yield member, getattr(each, "value", each) if not isinstance(each, Tensor) else each
        else:
            yield name, value


def _described(value: Any) -> Any:
    value = getattr(value, "base", value) if not isinstance(value, Tensor) else value
    return operand(value) if isinstance(value, Tensor) else value


@contextlib.contextmanager
def noting(watch: Watch, architecture: int = ARCHITECTURE) -> Iterator[None]:
    """Record every Triton kernel in a watch instead of launching it.

    Without Triton there are no kernels, and only eager PyTorch is traced.
    """
    if not backends.HAS_TRITON:
        yield
        return
    import triton
    from triton.runtime.jit import JITFunction

    from tools.compile_report.triton_jobs import StandIn

    def run(self: Any, *given: Any, grid: Any, warmup: bool = False, **named: Any) -> None:
        names = [parameter.name for parameter in self.params]
        defaults = {each.name: each.default for each in self.params if each.has_default}
        arguments = {**defaults, **dict(zip(names, given, strict=False)), **named}
        size = grid(arguments) if callable(grid) else grid
        described = {name: _described(value) for name, value in _members(arguments)}
        name = f"{self.fn.__module__.removeprefix('itm_kernels.triton.')}.{self.__name__}"
        watch.launch(Launch(name, tuple(size), described))

    from itm_kernels.triton import _cluster_batches

    triton.runtime.driver.set_active(StandIn(architecture))
    with (
        patch.object(JITFunction, "run", run),
        patch.object(_cluster_batches, "starts_on_host", cluster_models.equal_starts),
    ):
        yield


@contextlib.contextmanager
def precision_of(name: str) -> Iterator[torch.dtype]:
    """Set the precision of fp32 products, and yield the dtype of the rows."""
    dtype, setting = PRECISIONS[name]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        yield dtype
    finally:
        torch.set_float32_matmul_precision(before)


def traced(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Trace:
    """Trace a function forward, and backward if its value has a gradient."""
    watch = Watch()
    watch.inputs(*inputs)
    # The backend that "auto" chooses on CUDA for a large batch, also inside composed losses.
    with patch.dict(backends.PREFERENCE, meta=("triton",)), noting(watch), watch:
        value = function(*inputs)
        forward = len(watch.counts)
        grad = torch.empty_like(value) if value.requires_grad else None
        if grad is not None:
            torch.autograd.backward(value, grad)
    gradients = sum(each.grad.nbytes for each in inputs if each.grad is not None)
    outputs = value.nbytes + (grad.nbytes if grad is not None else 0)
    forward_counts, backward_counts = watch.counts[:forward], watch.counts[forward:]
    return Trace(forward_counts, backward_counts, watch.peak, gradients, outputs)
