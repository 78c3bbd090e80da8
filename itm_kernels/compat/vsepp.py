"""The loss of VSE++ (fartashf/vsepp), which SCAN, VSRN, IMC and many others carry along."""

import torch
from torch import Tensor, nn

from itm_kernels.losses import MaxOfHingesLoss, SumOfHingesLoss


class ContrastiveLoss(nn.Module):
    """Sum or maximum of hinges, summed over the batch.

    Args:
        margin: by how much a positive has to outscore a negative.
        measure: ``"order"`` scores by order violation; anything else by dot product.
        max_violation: take each anchor's hardest negative alone. May be set between epochs.

    Source: Faghri et al., VSE++, 2018, eqs 5-6; Vendrov et al., Order-embeddings, 2016, eq. 2.
    Where an order violation is zero the original's gradient is NaN, here it is 0.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[0.8, 0.7, 0.65], [0.3, 0.6, 0.55], [0.75, 0.2, 0.5]])
        >>> ContrastiveLoss(margin=0.2, max_violation=True)(scores, torch.eye(3))
        tensor(1.5000)
    """

    def __init__(
        self, margin: float = 0, measure: str | bool = False, max_violation: bool = False
    ) -> None:
        super().__init__()
        self.measure = measure
        self.max_violation = max_violation
        self.hardest = MaxOfHingesLoss(margin)
        self.all = SumOfHingesLoss(margin)

    def forward(
        self,
        im: Tensor,  # [N, D]
        s: Tensor,  # [N, D]
    ) -> Tensor:
        """Return the loss of N images and their N texts."""
        loss = self.hardest if self.max_violation else self.all
        if self.measure != "order":
            return loss(im, s)
        # [N, N, D], as in the original; vector_norm has a gradient at 0, where a root has none.
        violation = (s[None, :] - im[:, None]).clamp(min=0)
        return loss.from_scores(-torch.linalg.vector_norm(violation, dim=2))
