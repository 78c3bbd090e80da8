"""Checks of tensors that hold several views of every sample."""

from torch import Tensor

from itm_kernels import _checks
from itm_kernels._public import UnnamedValueError


def check_views(least: int = 1, /, **views: Tensor) -> tuple[Tensor, ...]:
    """Check tensors of views [V, N, D] of the same N samples; return them in one dtype.

    With `least` 0 there may be no samples, as on a rank that holds none.
    """
    (first_name, first), *others = views.items()
    for name, tensor in views.items():
        _checks.is_tensor(name, tensor)
        _checks.floating(
            name, tensor, "[views, N, D]", least=least if tensor.shape[:1] != (0,) else 1
        )
    alike = _checks.alike(**views)
    for name, other in others:
        if other.shape[1] != first.shape[1]:
            raise UnnamedValueError(
                f"{first_name} {list(first.shape)} and {name} {list(other.shape)} "
                "differ in samples; every view holds the same N samples in the same order"
            )
    return alike


def check_fused(fused: Tensor, least: int = 1) -> None:
    """Check a tensor of at least two views."""
    check_views(least, fused=fused)
    if fused.shape[0] < 2:
        raise UnnamedValueError(f"fused {list(fused.shape)} must hold at least two views")
