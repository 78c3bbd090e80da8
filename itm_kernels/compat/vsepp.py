"""The loss of VSE++ (fartashf/vsepp), which VSRN, IMC and other projects copied.

SCAN and SGRAF have classes of the same name with other arguments: `compat.scan`, `compat.sgraf`.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from itm_kernels import _checks
from itm_kernels._public import UnnamedTypeError, UnnamedValueError, names_errors
from itm_kernels.compat._hinges import DIAGONAL, Hinges
from itm_kernels.ops._max_of_hinges import fused_max_of_hinges
from itm_kernels.ops._sum_of_hinges import fused_sum_of_hinges
from itm_kernels.reference._precision import wide

F = TypeVar("F", bound=Callable[..., Any])

_NAME = "ContrastiveLoss"


def cosine_sim(
    im: Tensor,  # [N, D]
    s: Tensor,  # [M, D]
) -> Tensor:  # [N, M]
    """Return the dot products of all images and texts; the encoders normalise the rows."""
    return im @ s.T


def order_sim(
    im: Tensor,  # [N, D]
    s: Tensor,  # [M, D]
) -> Tensor:  # [N, M]
    """Return the negated order violations of all images and texts, via `[N, M, D]` differences."""
    violation = wide(s)[None, :] - wide(im)[:, None]
    # clamp would give NaN the gradient 0. vector_norm has gradient 0 at 0, where sqrt has none.
    return -torch.linalg.vector_norm(violation.masked_fill(violation <= 0, 0), dim=2)


def _like_vsepp(method: F) -> F:
    """Raise TypeError for the constructor arguments of the classes of SCAN and SGRAF."""

    @wraps(method)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else None
        if "opt" in kwargs or hasattr(first, "max_violation"):
            raise TypeError(
                f"{_NAME}: this is VSE++'s ContrastiveLoss(margin, measure, max_violation), not "
                "SCAN's ContrastiveLoss(opt, margin, max_violation); import that from "
                "itm_kernels.compat.scan"
            )
        return method(self, *args, **kwargs)

    return cast(F, called)


def _two_embeddings(method: F) -> F:
    """Raise TypeError for the forward arguments of the classes of SCAN and SGRAF."""

    @wraps(method)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        count = len(args) + len(kwargs)
        if count == 1 or count == 3:
            theirs, module = ("SGRAF's", "sgraf") if count == 1 else ("SCAN's", "scan")
            taken = "(scores)" if count == 1 else "(im, s, s_l)"
            raise TypeError(
                f"{_NAME}: VSE++'s forward takes (im, s), got {count} arguments; {theirs} takes "
                f"{taken}: import it from itm_kernels.compat.{module}"
            )
        return method(self, *args, **kwargs)

    return cast(F, called)


class ContrastiveLoss(Hinges):
    """Sum or maximum of hinges, summed over the batch.

    Every attribute may be set between steps. Setting `measure` sets `sim`, the function of (im, s)
    that computes scores. If `sim` is set to another function, the loss runs in plain PyTorch.

    Args:
        margin: by how much a positive must outscore a negative.
        measure: ``"order"`` scores by order violation; anything else by dot product.
        max_violation: use only the hardest negative of every anchor.

    Raises:
        TypeError: `margin` is not a number, or the arguments are those of the class of SCAN.

    Source: Faghri et al., VSE++, 2018, eqs 5-6; Vendrov et al., Order-embeddings, 2016, eq. 2.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[0.8, 0.7, 0.65], [0.3, 0.6, 0.55], [0.75, 0.2, 0.5]])
        >>> ContrastiveLoss(margin=0.2, max_violation=True)(scores, torch.eye(3))
        tensor(1.5000)
    """

    @_like_vsepp
    def __init__(
        self, margin: float = 0, measure: str | bool = False, max_violation: bool = False
    ) -> None:
        super().__init__(margin, max_violation)
        self.measure = measure

    @property
    def measure(self) -> str | bool:
        """The measure that last set `sim`."""
        return self._measure

    @measure.setter
    def measure(self, measure: str | bool) -> None:
        self._measure = measure
        ordered = isinstance(measure, str) and measure == "order"
        self.sim = order_sim if ordered else cosine_sim

    def _checked(self, name: str, value: Any) -> Any:
        if name == "sim" and not callable(value):
            raise UnnamedTypeError(
                f"sim must be a function of (im, s), got {_checks.describe(value)}; "
                "set measure to choose by name"
            )
        return super()._checked(name, value)

    @_two_embeddings
    @names_errors(_NAME)
    def forward(
        self,
        im: Tensor,  # [N, D]
        s: Tensor,  # [N, D]
    ) -> Tensor:
        """Return the loss of N images and their N texts.

        Raises:
            TypeError: an argument is not a floating-point tensor.
            ValueError: shapes or devices do not fit.
        """
        if self.sim is not cosine_sim and self.sim is not order_sim:
            return self._of_scores(self.sim(im, s), "sim returned scores")
        for name, value in (("im", im), ("s", s)):
            if isinstance(value, Tensor) and not value.is_nested and value.dim() == 3:
                raise UnnamedValueError(
                    f"{name} must have shape [rows, D], got {list(value.shape)}; SCAN's class of "
                    "this name takes regions and words: import it from itm_kernels.compat.scan"
                )
        im, s = _checks.embeddings(im=im, s=s)
        if im.shape[0] != s.shape[0]:
            raise UnnamedValueError(
                f"im {list(im.shape)} and s {list(s.shape)} differ in rows; pass one text per image"
            )
        if self.sim is order_sim:
            return self._of_scores(order_sim(im, s), "sim returned scores")
        inputs = im, s, DIAGONAL, float(self.margin)
        if self.max_violation:
            return fused_max_of_hinges(*inputs, False, self.backend).sum()
        return fused_sum_of_hinges(*inputs, self.backend).sum()
