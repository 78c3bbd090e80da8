"""How many kernels a step would launch on CUDA: our own, and ATen's.

Operators run on tests/support/emulator, which counts what our launchers start. A dispatch mode
sees every ATen operator, including those that our bindings call: views and uninitialised memory
launch nothing, some operators are several kernels on CUDA, the others are one.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from emulated import NAMESPACE, launches

NOTHING = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
NOTHING += ("promote_types",)  # of dtypes
# Read from ATen's sources: the kernels that these operators launch.
SEVERAL = {"masked_fill": 2, "select_backward": 2, "logsumexp": 9}
ON_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


class Launches(NamedTuple):
    """The kernels that a step launches."""

    own: int
    aten: int
    operators: Counter[str]  # of ATen, by name


class Counting(TorchDispatchMode):
    """Counts the kernels that ATen would launch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == NAMESPACE:
            with self:  # what the binding calls
                return func.redispatch(ON_CPU, *args, **(kwargs or {}))
        name, made = func.overloadpacket.__name__, func(*args, **(kwargs or {}))
        # `to` and `contiguous` may return views; a result with memory of its own is a copy.
        if name not in NOTHING and not (func.is_view and _shares(made, args)):
            self.found[name] += SEVERAL.get(name, 1)
        return made


def _shares(made: Any, args: tuple[Any, ...]) -> bool:
    """Return whether a view's tensors all lie in memory that was given."""
    given = {x.untyped_storage()._cdata for x in tree_leaves(args) if isinstance(x, Tensor)}
    tensors = (x for x in tree_leaves(made) if isinstance(x, Tensor))
    return all(x.untyped_storage()._cdata in given for x in tensors)


def of_step(loss: Callable[..., Tensor], *sides: Tensor) -> Launches:
    """Count forward and backward of a loss of some leaves."""
    before = launches()
    with Counting() as counting:
        torch.autograd.grad(loss(*sides), sides)
    return Launches(launches() - before, counting.found.total(), counting.found)
