"""Operands that are not aligned for vector loads, as the bindings pass them to the kernels.

An unaligned load or store of 8 or 16 bytes is an error on a device, and ends a kernel of the
emulator. Every operator of whole steps is called again with its operands moved: same bits.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from emulated import NAMESPACE, OPERATORS, as_native, needs_compiler
from itm_kernels import losses, ops
from itm_kernels.ops._define import operator_of
from loss_cases import batch
from synthesis_problems import WEIGHTS, problem, results

pytestmark = needs_compiler
STEPS: tuple[nn.Module, ...] = (
    losses.MaxOfHingesLoss(),
    losses.MaxOfHingesLoss(reduction="none"),
    losses.SumOfHingesLoss(),
    losses.SigmoidLoss(),
    losses.SigmoidLoss(reduction="none"),
    losses.InfoNCELoss(),
    losses.InfoNCELoss(reduction="none"),
    losses.IMCLoss(),
    losses.IMCLoss(metric="l1"),
    losses.InfoCMRLoss(num_noise=8),
    losses.InfoCMRLoss(num_noise=8, clustering="per_anchor"),
)


def one_number_on(t: Tensor) -> Tensor:
    """Return the same values, starting at the second element of an allocation."""
    return t.new_empty(t.numel() + 1)[1:].view(t.shape).copy_(t)


def one_number_apart(t: Tensor) -> Tensor:
    """Return the same values with a gap after each row."""
    return t.new_empty(*t.shape[:-1], t.shape[-1] + 1)[..., :-1].copy_(t) if t.dim() else t


class _Moved(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.namespace == NAMESPACE:
            name = func.overloadpacket.__name__
            self.seen.add(operator_of(name))
            for moved in (one_number_on, one_number_apart):
                again = func(*tree_map_only(Tensor, moved, args), **(kwargs or {}))
                for a, b in zip(tree_flatten(found)[0], tree_flatten(again)[0], strict=True):
                    torch.testing.assert_close(b, a, rtol=0, atol=0, equal_nan=True, msg=name)
        return found


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    with as_native():
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_operands_off_alignment_give_the_same_bits(dtype: torch.dtype) -> None:
    with _Moved() as moved:
        for loss in STEPS:
            sides = batch(6, 8, dtype)
            torch.autograd.grad(loss(*sides).sum(), sides)
        sides = batch(6, 8, dtype)
        torch.autograd.grad(ops.similarity(*sides, "l1").sum(), sides)
        ops.hardest_negatives(*sides)
        for weights in WEIGHTS:
            results(problem(5, 20, 8, 3).to(dtype), "native", weights, logits=False)
    assert moved.seen == OPERATORS
