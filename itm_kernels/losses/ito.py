"""Images and texts as one: multiple alignment plus training-time fusion (paper 2)."""

from torch import Tensor, nn

from itm_kernels import _checks
from itm_kernels.losses._common import LogitScale, check_options
from itm_kernels.losses.fusion_contrastive import fusion_contrastive_loss
from itm_kernels.losses.multi_view_alignment import multi_view_alignment_loss


class ITOLoss(nn.Module):
    r"""Multiple alignment plus the fusion loss, with one logit scale for both.

    .. math:: L = L_{align}(images, texts) + w L_{fusion}(fused)

    Args:
        logit_scale: start of the logit scale, > 0.
        fusion_weight: w >= 0; the fusion loss's share.
        learnable: learn the scale, as the parameter `logit_scale.log`.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.

    Source: ITO, 2026.

    >>> import torch
    >>> images = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.8, 0.6], [0.0, 1.0]]])
    >>> texts = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]])
    >>> fused = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.8, 0.6], [0.6, 0.8]]])
    >>> ITOLoss(2.0, learnable=False)(images, texts, fused)
    tensor(2.1532)
    """

    def __init__(
        self,
        logit_scale: float = 20.0,
        *,
        fusion_weight: float = 2.0,
        learnable: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        _checks.number("ITOLoss", "fusion_weight", fusion_weight, least=0)
        check_options("ITOLoss", "mean", backend)
        self.logit_scale = LogitScale("ITOLoss", logit_scale, learnable)
        self.fusion_weight = fusion_weight
        self.backend = backend

    def forward(
        self,
        images: Tensor,  # [V, N, D]
        texts: Tensor,  # [U, N, D]
        fused: Tensor,  # [V, N, D]
    ) -> Tensor:
        """Return the loss of a batch of views and their fused vectors."""
        scale = self.logit_scale()
        align = multi_view_alignment_loss(images, texts, logit_scale=scale, backend=self.backend)
        fusion = fusion_contrastive_loss(fused, logit_scale=scale, backend=self.backend)
        return align + self.fusion_weight * fusion

    def extra_repr(self) -> str:
        """Show the options."""
        return f"fusion_weight={self.fusion_weight}, backend={self.backend!r}"
