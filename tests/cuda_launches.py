"""How many kernels a step would launch on CUDA: our own, and ATen's.

Operators run on tests/emulator, which counts what our launchers start. A dispatch mode sees every
ATen operator, those that our bindings call among them: views and memory without contents launch
nothing, some operators are several kernels on CUDA, the others are one.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from emulated import NAMESPACE, launches

NOTHING = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
NOTHING += ("promote_types",)  # of dtypes
# Read in ATen's sources: what these call in their turn.
SEVERAL = {"masked_fill": 2, "select_backward": 2, "logsumexp": 9}
ON_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


class Launches(NamedTuple):
    """What a step launches."""

    own: int
    aten: int
    operators: Counter[str]  # of ATen, by name


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == NAMESPACE:
            with self:  # what the binding calls
                return func.redispatch(ON_CPU, *args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in NOTHING:
            self.found[name] += SEVERAL.get(name, 1)
        return func(*args, **(kwargs or {}))


def of_step(loss: Callable[..., Tensor], *sides: Tensor) -> Launches:
    """Count forward and backward of a loss of some leaves."""
    before = launches()
    with _Counting() as counting:
        torch.autograd.grad(loss(*sides), sides)
    return Launches(launches() - before, counting.found.total(), counting.found)
