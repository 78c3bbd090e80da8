"""The intra-modal constraint with the interface of its authors' code."""

from typing import Any

from torch import Tensor

from itm_kernels import _checks
from itm_kernels._public import UnnamedValueError, names_errors
from itm_kernels.compat._drop_in import DropIn
from itm_kernels.ops._intra_modal import fused_intra_modal

_NAME = "IntraLoss"
_METRICS = {"cosine": "cosine", "msd": "sqeuclidean", "l1": "l1", "l2": "l2"}


class IntraLoss(DropIn):
    """Sum over the pairs of one modality that lie inside a band, divided by the batch.

    Every attribute may be set between steps.

    Args:
        margin: not used, as in the original.
        measure: ``"cosine"``, ``"msd"``, ``"l1"`` or ``"l2"``. The default, as in the original, is
            no measure and raises ValueError when called.
        max_violation: not used, as in the original.
        up: upper bound, a fraction of the batch; the lower bound of a cosine.
        down: lower bound, a fraction of the batch; a cosine must be below ``1 - down``.
        lamb: factor of the result, a number or a tensor of one element.

    Raises:
        TypeError: `up`, `down` or `lamb` is not a number.

    Source: Chen et al., Intra-modal constraint loss, 2022, the code.

    Example:
        >>> import torch
        >>> IntraLoss(measure="cosine")(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]))
        tensor(0.9333)
    """

    def __init__(
        self,
        margin: float = 0,
        measure: str | bool = False,
        max_violation: bool = False,
        up: float = 0.5,
        down: float = 0.05,
        lamb: float | Tensor = 1.0,
    ) -> None:
        super().__init__()
        self.margin = margin
        self.measure = measure
        self.max_violation = max_violation
        self.up = up
        self.down = down
        self.lamb = lamb

    def _checked(self, name: str, value: Any) -> Any:
        if name in ("up", "down"):
            _checks.number(name, value)
        if name == "lamb":
            _checks.scalar(name, value)
        if name == "sim":
            raise AttributeError(
                f"{_NAME}: sim cannot be set, because the kernels support four measures; "
                f"set measure to one of {_measures()}"
            )
        return super()._checked(name, value)

    @names_errors(_NAME)
    def forward(
        self,
        mx: Tensor,  # [N, D]
    ) -> Tensor:
        """Return the constraint of one modality.

        Raises:
            TypeError: `mx` is not a floating-point tensor.
            ValueError: `measure` is not one of the four, `mx` is not a matrix, or a bound of a
                distance is negative.
        """
        if not isinstance(self.measure, str) or self.measure not in _METRICS:
            raise UnnamedValueError(
                f"measure must be one of {_measures()}, got "
                f"{_checks.shown(self.measure)}, for which the original defines no distance either"
            )
        _checks.embeddings(mx=mx)
        if self.measure != "cosine":
            _checks.number("up", self.up, least=0)
            _checks.number("down", self.down, least=0)
        metric = _METRICS[self.measure]
        bounds = "official", self.down, self.up, False
        loss = fused_intra_modal(mx, None, metric, *bounds, self.backend).mean()
        if self.measure == "cosine":
            # The original subtracts 1 from the diagonal instead of masking it, so for rows of norm
            # above 1, |x|^2 - 1 may lie inside the band.
            diagonal = mx.to(loss.dtype).square().sum(1) - 1
            outside = (diagonal <= self.up) | (diagonal >= 1 - self.down)
            loss = loss + diagonal.masked_fill(outside, 0).mean()
        return self.lamb * loss


def _measures() -> str:
    return ", ".join(map(repr, _METRICS))
