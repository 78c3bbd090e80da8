"""Modules behind an encoder, and the wrappers among them that reduce gradients."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FunctionType, MethodType
from typing import Any, TypeVar

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from itm_kernels._public import UnnamedValueError

R = TypeVar("R")
_DEPTH = 4  # of objects around a Module, such as function, object, dict


def modules_of(encoder: object) -> list[nn.Module]:
    """Return the outermost Modules that a callable is, is bound to, or refers to."""
    found: dict[nn.Module, None] = {}
    seen: set[int] = set()
    near: list[Any] = [encoder]
    for _ in range(_DEPTH):
        further: list[Any] = []
        for value in near:
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, nn.Module):
                found[value] = None
            else:
                further += _references(value)
        near = further
    inner = {id(part) for module in found for part in module.modules() if part is not module}
    return [module for module in found if id(module) not in inner]


def _references(value: Any) -> list[Any]:
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_set(cell)]
        names = value.__code__.co_names
        used = [value.__globals__[name] for name in names if name in value.__globals__]
        return [*cells, *(value.__defaults__ or ()), *used]
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return list(value)
    # Objects only: a class or a Python module would lead everywhere.
    if isinstance(value, type) or type(value).__name__ == "module":
        return []
    return list(getattr(value, "__dict__", {}).values())


def _is_set(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return False
    return True


class Wrappers:
    """The DistributedDataParallel and FSDP Modules behind an encoder."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        parts = list(dict.fromkeys(part for module in modules for part in module.modules()))
        self.parallel = [part for part in parts if isinstance(part, DistributedDataParallel)]
        # By their attributes: importing torch.distributed.fsdp takes a second.
        self.sharded = [part for part in parts if hasattr(part, "set_requires_gradient_sync")]
        if any(hasattr(part, "_fsdp_wrapped_module") for part in parts):
            raise UnnamedValueError(
                "encoder contains a FullyShardedDataParallel, which is not supported; use "
                "torch.distributed.fsdp.fully_shard, or DistributedDataParallel"
            )
        if any(ddp.mixed_precision is not None for ddp in self.parallel):
            raise UnnamedValueError(
                "DistributedDataParallel(mixed_precision=) is not supported; use torch.autocast"
            )

    def around(self, run: Callable[[], R]) -> R:
        """Run the forward pass of all chunks as one forward pass of each DDP module.

        DDP prepares its reduction for the autograd node of the outputs, as for any other model.
        """
        for ddp in self.parallel:
            run = partial(_forward_of, ddp, run)
        return run()

    @contextmanager
    def unwrapped(self) -> Iterator[None]:
        """Make DDP modules call the Modules that they contain, and do nothing else."""
        with ExitStack() as stack:
            for ddp in self.parallel:
                stack.enter_context(_unwrapped(ddp, ddp.module))
            yield

    @contextmanager
    def reduced_after_last(self) -> Iterator[Callable[[bool], None]]:
        """Give a function that says whether a chunk is the last: FSDP reduces only after that."""
        groups = [group for part in self.sharded for group in _groups(part)]
        flags = [(group.reduce_grads, group.all_reduce_grads) for group in groups]

        def restore() -> None:
            for group, (reduce, all_reduce) in zip(groups, flags, strict=True):
                group.reduce_grads, group.all_reduce_grads = reduce, all_reduce

        def set_last(last: bool) -> None:
            for part in self.sharded if not last else ():
                part.set_requires_gradient_sync(False, recurse=False)  # type: ignore[operator]
            if last:
                restore()

        try:
            yield set_last
        finally:
            restore()


def _groups(part: Any) -> list[Any]:
    """Return the parameter groups of an FSDP module, whose flags have no public reader."""
    state = part._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    return [group for group in (state._fsdp_param_group,) if group is not None]


class _Body(nn.Module):
    """Stands in for the contents of a DDP module during its forward pass."""

    def __init__(self, inner: nn.Module, run: Callable[[], Any]) -> None:
        super().__init__()
        self.run = run
        # DDP broadcasts these from rank 0.
        self.named_buffers = inner.named_buffers  # type: ignore[method-assign]

    def forward(self) -> Any:
        """Run the chunks."""
        return self.run()


def _forward_of(ddp: DistributedDataParallel, run: Callable[[], R]) -> R:
    inner = ddp.module

    def body() -> R:
        with _unwrapped(ddp, inner):
            return run()

    ddp.module = _Body(inner, body)
    try:
        return type(ddp).forward(ddp)
    finally:
        ddp.module = inner


@contextmanager
def _unwrapped(ddp: DistributedDataParallel, inner: nn.Module) -> Iterator[None]:
    outer, own = ddp.module, ddp.__dict__.get("forward")
    ddp.module = inner
    ddp.__dict__["forward"] = inner.__call__
    try:
        yield
    finally:
        ddp.module = outer
        del ddp.__dict__["forward"]
        if own is not None:
            ddp.__dict__["forward"] = own
