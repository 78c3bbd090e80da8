"""open_clip's losses on ranks: the package's own, where installed, and ours."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.rivals import UnavailableError
from benchmarks.rivals.packages import load_open_clip
from itm_kernels.compat import open_clip as ours
from loss_cases import batch

Outcome = tuple[Tensor, ...]  # value and gradients of features, scale and bias


@cache
def _original() -> Any:
    try:
        return load_open_clip()
    except UnavailableError:
        return None


def is_installed() -> bool:
    """Return whether the original can be compared with."""
    return _original() is not None


def features(rank: int, n: int, dtype: torch.dtype) -> list[Tensor]:
    """Return this rank's features, which are not normalised, and the learned scale and bias."""
    image, text = batch(n, 6, torch.float64, seed=rank)
    rows = [(1.5 * x.detach()).to(dtype) for x in (image, image / 2 + text)]
    leaves = [*rows, torch.tensor(4.5, dtype=dtype), torch.tensor(-3.0, dtype=dtype)]
    return [leaf.clone().requires_grad_() for leaf in leaves]


def compute(group: Any, kind: str, source: str, options: dict[str, Any], n: int = 3) -> Outcome:
    """Return what one of the two losses gives on this rank."""
    options = dict(options)
    backend = options.pop("backend", "auto")
    chosen = ours if source == "ours" else _original()
    loss = getattr(chosen, kind)(rank=group.rank(), world_size=group.size(), **options)
    loss.backend = backend
    leaves = features(group.rank(), n, torch.float64)
    value = loss(*leaves)
    grads = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    return value.detach(), *grads


def of_subclass(group: Any, kind: str, options: dict[str, Any]) -> Outcome:
    """Return what a subclass with its own `get_logits` gives."""

    class Own(getattr(ours, kind)):  # type: ignore[misc]
        def get_logits(self, *args: Any, **more: Any) -> Any:
            return super().get_logits(*args, **more)

    leaves = features(group.rank(), 3, torch.float64)
    value = Own(rank=group.rank(), world_size=group.size(), **options)(*leaves)
    grads = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    return value.detach(), *grads


def with_rows(group: Any, kind: str, rows: tuple[int, ...], ranks: tuple[int, ...]) -> None:
    """Call a loss with numbers of rows and with ranks that may be wrong."""
    loss = getattr(ours, kind)(rank=ranks[group.rank()], world_size=group.size())
    loss(*features(group.rank(), rows[group.rank()], torch.float64))
