"""The loss of SGRAF (Paranioar/SGRAF), of scores that its similarity encoder computes."""

from torch import Tensor

from itm_kernels._public import names_errors
from itm_kernels.compat._hinges import Hinges

_NAME = "ContrastiveLoss"


class ContrastiveLoss(Hinges):
    """Sum or maximum of hinges of a score matrix, summed over the batch.

    Every attribute may be set between steps. The scores exist already, so every `backend` runs in
    plain PyTorch.

    Args:
        margin: by how much a positive must outscore a negative.
        max_violation: use only the hardest negative of every anchor.

    Raises:
        TypeError: `margin` is not a number.

    Source: Diao et al., Similarity Reasoning and Filtration, 2021, section 3.4, and the code.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[0.8, 0.7, 0.65], [0.3, 0.6, 0.55], [0.75, 0.2, 0.5]])
        >>> ContrastiveLoss(margin=0.2, max_violation=True)(scores)
        tensor(1.5000)
    """

    def __init__(self, margin: float = 0, max_violation: bool = False) -> None:
        super().__init__(margin, max_violation)

    @names_errors(_NAME)
    def forward(
        self,
        scores: Tensor,  # [N, N]
    ) -> Tensor:
        """Return the loss of the scores of N images, in rows, and their N texts.

        Raises:
            TypeError: `scores` is not a floating-point tensor.
            ValueError: `scores` is not a square matrix.
        """
        return self._of_scores(scores, "scores must be square, got")
