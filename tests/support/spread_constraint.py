"""The intra-modal constraint over ranks: what a rank runs, and what it computes."""

import warnings
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from itm_kernels import _policies, functional
from itm_kernels.losses import _band
from itm_kernels.losses.over_ranks import _in_blocks


class Found(NamedTuple):
    """Value and gradient of a rank, the largest tensor, and the scores of the forward pass."""

    value: Tensor
    grad: Tensor
    largest: int  # elements
    scores: int  # elements
    warnings: list[str]


class Largest(TorchDispatchMode):
    """Finds the largest floating-point tensor that an operation returns, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(found):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.elements = max(self.elements, tensor.numel())
        return found


def constraint_on_rank(
    group: Any,
    x: Tensor,  # [N, D]
    ids: Tensor | None,  # [N]
    counts: tuple[int, ...],  # rows of every rank
    options: dict[str, Any],
    scores_at_once: int | None = None,
) -> Found:
    """Compute the constraint of this rank's rows; without a group, of all rows."""
    own = slice(None)
    if group is not None:
        own = slice(sum(counts[: group.rank()]), sum(counts[: group.rank() + 1]))
        options = {**options, "group": group, "gradients": "sum"}
    x = x[own].clone().requires_grad_()
    ids = None if ids is None else ids[own]
    shapes: list[int] = []
    score = _in_blocks.fused_similarity

    def counted(*args: Any) -> Tensor:
        found = score(*args)
        shapes.append(found.numel())
        return found

    _band._warned.clear()
    with ExitStack() as stack:
        stack.enter_context(patch.object(_in_blocks, "fused_similarity", counted))
        if scores_at_once is not None:
            stack.enter_context(patch.object(_in_blocks, "_SCORES_AT_ONCE", scores_at_once))
            stack.enter_context(patch.object(_policies, "RING_SCORES", scores_at_once))
        told = stack.enter_context(warnings.catch_warnings(record=True))
        largest = stack.enter_context(Largest())
        warnings.simplefilter("always")
        value = functional.intra_modal_constraint(x, ids=ids, **options)
        scores = sum(shapes)
        value.sum().backward()
    assert x.grad is not None
    return Found(value.detach(), x.grad, largest.elements, scores, [str(w.message) for w in told])
