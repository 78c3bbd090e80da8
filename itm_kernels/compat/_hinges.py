"""The hinges that VSE++, SCAN and SGRAF share: attributes, and the loss of a score matrix."""

from typing import Any

from torch import Tensor

from itm_kernels import _checks
from itm_kernels._positives import Pairs
from itm_kernels._public import UnnamedValueError
from itm_kernels.compat._drop_in import DropIn
from itm_kernels.ops._max_of_hinges_from_scores import fused_max_of_hinges_from_scores
from itm_kernels.ops._sum_of_hinges_from_scores import fused_sum_of_hinges_from_scores

DIAGONAL = Pairs(None, None, None)


class Hinges(DropIn):
    """Sum or maximum of hinges against the diagonal, summed over both directions.

    Every attribute may be set between steps.
    """

    margin: float
    max_violation: bool

    def __init__(self, margin: float, max_violation: bool) -> None:
        super().__init__()
        self.margin = margin
        self.max_violation = max_violation

    def _checked(self, name: str, value: Any) -> Any:
        if name == "margin":
            _checks.number(name, value)
        return super()._checked(name, value)

    def _of_scores(self, scores: Tensor, origin: str) -> Tensor:  # [N, N]
        """Return the loss of scores; a message about their shape begins with their origin."""
        _checks.floating("scores", scores, "[N, N]")
        if scores.shape[0] != scores.shape[1]:
            raise UnnamedValueError(f"{origin} {list(scores.shape)}; pass one text per image")
        inputs = scores, DIAGONAL, float(self.margin)
        if self.max_violation:
            return fused_max_of_hinges_from_scores(*inputs, False, self.backend).sum()
        return fused_sum_of_hinges_from_scores(*inputs, self.backend).sum()
