"""What a rank runs in the tests of faults that other implementations have had."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from itm_kernels import functional
from loss_cases import batch

ROWS = (3, 2)


class Own(NamedTuple):
    """A rank's share of a loss, and gradients of its rows."""

    value: Tensor
    image: Tensor
    text: Tensor


def own_rows(group: Any, rows: tuple[int, ...] = ROWS) -> slice:
    """Return a rank's rows of the global batch."""
    first = sum(rows[: group.rank()])
    return slice(first, first + rows[group.rank()])


def losses_of_one_rank(group: Any, name: str, rank: int) -> Own:
    """Differentiate the values of one rank's texts only; every rank takes part."""
    own = own_rows(group)
    image, text = (x.detach()[own].requires_grad_() for x in batch(sum(ROWS)))
    loss = getattr(functional, name)
    values = loss(image, text, reduction="none", gradients="sum", group=group)
    weight = 1.0 if group.rank() == rank else 0.0
    grads = torch.autograd.grad((weight * values).sum(), (image, text))
    return Own(values.detach(), *grads)


def with_layout(group: Any, name: str, layout: str, exchange: str) -> Own:
    """Compute a loss of rows that are not contiguous, and of contiguous ones where `plain`."""
    own = own_rows(group)
    grads, leaves = [], []
    for rows in batch(sum(ROWS)):
        leaf = rows.detach()[own].clone().requires_grad_()
        leaves.append(leaf)
        if layout == "transposed":
            rows = leaf.T.contiguous().T
        elif layout == "strided":
            rows = torch.stack([leaf, leaf], 2).flatten(1)[:, ::2]
        elif layout == "expanded":
            rows = leaf[:1].expand(len(leaf), -1)
        elif layout == "expanded-copy":
            rows = leaf[:1].expand(len(leaf), -1).contiguous()
        else:
            rows = leaf
        assert rows.is_contiguous() == (layout in ("plain", "expanded-copy"))
        grads.append(rows)
    value = getattr(functional, name)(*grads, group=group, exchange=exchange)
    return Own(value.detach(), *torch.autograd.grad(value, leaves))


def identity(group: Any, name: str) -> float:
    """Compute a loss of orthogonal pairs."""
    rows = torch.eye(sum(ROWS), dtype=torch.float64)[own_rows(group)]
    return getattr(functional, name)(rows, rows, group=group).item()


def in_low_precision(group: Any, name: str) -> Own:
    """Compute a loss of bf16 rows."""
    own = own_rows(group)
    image, text = (x.detach()[own].requires_grad_() for x in batch(sum(ROWS), 33, torch.bfloat16))
    value = getattr(functional, name)(image, text, group=group)
    return Own(value.detach(), *torch.autograd.grad(value, (image, text)))


def scaled(group: Any, name: str, factor: float) -> Own:
    """Multiply a loss before its backward pass, as gradient scalers and accumulation do."""
    own = own_rows(group)
    image, text = (x.detach()[own].requires_grad_() for x in batch(sum(ROWS)))
    value = getattr(functional, name)(image, text, group=group)
    return Own(value.detach(), *torch.autograd.grad(factor * value, (image, text)))


def validation(group: Any, name: str) -> float:
    """Compute a loss without gradients."""
    own = own_rows(group)
    with torch.no_grad():
        return getattr(functional, name)(*(x[own] for x in batch(sum(ROWS))), group=group).item()
