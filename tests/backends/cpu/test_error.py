"""The compiled operators' error against fp64 is at most twice that of plain PyTorch.

Held for every operator, metric and mode at every precision, forward and backward, so that no loss
can hide the rounding of its parts.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from compiled import needs_extension
from itm_kernels import functional, ops

pytestmark = needs_extension

IDS = {"image_ids": torch.arange(130) // 2, "text_ids": torch.arange(130) // 2}


def constraint(x: Tensor, y: Tensor, backend: str, metric: str, mode: str) -> Tensor:
    # Bounds in gaps of the data: no pair may change sides in another precision.
    delta = ops.similarity(x.detach().double(), x.detach().double(), metric, backend="reference")
    delta = 1 - delta if metric == "cosine" else delta
    between = delta[torch.ones_like(delta, dtype=torch.bool).triu(1)].sort().values
    gaps = between.diff()
    middle = len(gaps) // 2
    low, high = (
        start + int(gaps[start : start + middle // 2].argmax()) for start in (middle // 2, middle)
    )
    bounds = [float((between[k] + between[k + 1]) / 2) for k in (low, high)]
    if mode == "official":
        bounds = [bounds[0], 1 - bounds[1]] if metric == "cosine" else [0.2, 2.0]
    return functional.intra_modal_constraint(
        x,
        metric=metric,
        mode=mode,
        lower=bounds[0],
        upper=bounds[1],
        reduction="none",
        backend=backend,
    )


Operation = Callable[[Tensor, Tensor, str], Any]
OPERATIONS: dict[str, Operation] = {
    **{
        f"similarity-{metric}": lambda x, y, b, metric=metric: ops.similarity(
            x, y, metric, backend=b
        )
        for metric in ("dot", "cosine", "l1", "l2", "sqeuclidean")
    },
    **{
        f"constraint-{mode}-{metric}": lambda x, y, b, mode=mode, metric=metric: constraint(
            x, y, b, metric, mode
        )
        for mode in ("paper", "repel", "official")
        for metric in ("cosine", "l1", "l2", "sqeuclidean")
    },
    "hardest_negatives": lambda x, y, b: ops.hardest_negatives(x, y, backend=b, **IDS),
    "max_of_hinges": lambda x, y, b: functional.max_of_hinges_loss(
        x, y, reduction="none", backend=b, **IDS
    ),
    "semihard": lambda x, y, b: functional.max_of_hinges_loss(
        x, y, mining="semihard", reduction="none", backend=b, **IDS
    ),
    "sum_of_hinges": lambda x, y, b: functional.sum_of_hinges_loss(
        x, y, reduction="none", backend=b, **IDS
    ),
    "log_sum_exp": lambda x, y, b: ops.log_sum_exp(x, y, 20.0, backend=b),
    "sigmoid": lambda x, y, b: functional.sigmoid_loss(x, y, reduction="none", backend=b, **IDS),
}


def outputs_and_gradients(
    operation: Operation, rows: tuple[Tensor, Tensor], backend: str
) -> list[Tensor]:
    x, y = (t.detach().requires_grad_() for t in rows)
    found = operation(x, y, backend)
    found = [found] if isinstance(found, Tensor) else [t for t in found if t.is_floating_point()]
    # Upstream gradients of both signs that bf16 holds exactly: their rounding is no error of ours.
    total = sum((t.double() * signs(t)).sum() for t in found)
    grads = torch.autograd.grad(total, (x, y), allow_unused=True, materialize_grads=True)
    return [t.detach().double() for t in (*found, *grads)]


def signs(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(like.numel())
    return torch.randint(-4, 5, like.shape, generator=generator).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("D", [5, 333])
@pytest.mark.parametrize("name", OPERATIONS)
def test_error_is_at_most_twice_the_references(name: str, D: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(D)
    shared = torch.randn(1, D, generator=generator)
    rows = [shared + torch.randn(130, D, generator=generator) for _ in range(2)]
    x, y = (normalize(t).to(dtype) for t in rows)
    exact = outputs_and_gradients(OPERATIONS[name], (x.double(), y.double()), "reference")
    eager = outputs_and_gradients(OPERATIONS[name], (x, y), "reference")
    ours = outputs_and_gradients(OPERATIONS[name], (x, y), "native")
    for wanted, theirs, found in zip(exact, eager, ours, strict=True):
        size = wanted.abs().max()
        allowed = 2 * (theirs - wanted).abs().max() + 4 * torch.finfo(torch.float32).eps * size
        assert (found - wanted).abs().max() <= allowed
