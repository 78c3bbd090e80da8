"""The intra-modal constraint as its authors' code has it."""

from torch import Tensor, nn

from itm_kernels.functional import intra_modal_constraint

_METRICS = {"cosine": "cosine", "msd": "sqeuclidean", "l1": "l1", "l2": "l2"}


class IntraLoss(nn.Module):
    """Sum over the pairs of one modality that lie inside a band, divided by the batch.

    Args:
        margin: not used, as in the original.
        measure: ``"cosine"``, ``"msd"``, ``"l1"`` or ``"l2"``. The original's default has no
            measure and cannot run.
        max_violation: not used, as in the original.
        up: upper bound; the lower bound of a cosine.
        down: lower bound; a cosine has to stay below ``1 - down``.
        lamb: factor of the result.

    Source: Chen et al., Intra-modal constraint loss, 2022, the code: maths, section 2, "official".
    A rank ``round(up * N)`` beyond the batch is no bound here and an error in the original.

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
        lamb: float = 1.0,
    ) -> None:
        super().__init__()
        self.margin = margin
        self.measure = measure
        self.max_violation = max_violation
        self.up = up
        self.down = down
        self.lamb = lamb

    def forward(
        self,
        mx: Tensor,  # [N, D]
    ) -> Tensor:
        """Return the constraint of one modality.

        Raises:
            ValueError: `measure` is none of the four.
        """
        if self.measure not in _METRICS:
            measures = ", ".join(map(repr, _METRICS))
            raise ValueError(
                f"IntraLoss: measure must be one of {measures}, got {self.measure!r}, for which "
                "the original defines no distance either"
            )
        loss = intra_modal_constraint(
            mx, metric=_METRICS[self.measure], lower=self.down, upper=self.up, weight=self.lamb
        )
        if self.measure != "cosine":
            return loss
        # The original takes 1 from the diagonal instead of leaving it out: rows longer than 1
        # may bring |x|^2 - 1 into the band.
        diagonal = mx.to(loss.dtype).square().sum(1) - 1
        outside = (diagonal <= self.up) | (diagonal >= 1 - self.down)
        return loss + self.lamb * diagonal.masked_fill(outside, 0).mean()
