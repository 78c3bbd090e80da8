"""ITO loss: multiple alignment plus training-time fusion."""

from typing import TYPE_CHECKING

from torch import Tensor
from torch.distributed import ProcessGroup

from itm_kernels._options import Backend, Exchange, Gradients, number
from itm_kernels._public import public
from itm_kernels.losses._logit_scale import MAX_SCALE, ScaledLoss
from itm_kernels.losses._module import DISTRIBUTED, SHARED, spread
from itm_kernels.losses.fusion_contrastive import fusion_contrastive_loss
from itm_kernels.losses.multi_view_alignment import multi_view_alignment_loss
from itm_kernels.losses.over_ranks._ito import ito_over_ranks


class ITOLoss(ScaledLoss):
    r"""Sum of the multiple-alignment loss and the fusion loss, with one logit scale for both.

    .. math:: L = L_{align}(images, texts) + w L_{fusion}(fused)

    Rows are normalised internally; both parts are means. Options are attributes: they may be
    changed between steps, and are checked when they are set.

    Args:
        logit_scale: 1 / temperature, > 0; default 20.
        temperature: 1 / logit_scale; pass at most one of the two.
        fusion_weight: w >= 0, factor of the fusion loss.
        learnable: learn the scale, as the parameter `logit_scale.log`. Pass `parameters()` to the
            optimiser, without weight decay.
        max_scale: upper bound of a learnt scale (CLIP's is 100): the parameter is clamped to it. A
            fixed scale is used as it is. None: no bound.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.
        group: a process group over whose ranks the batch is spread (`itm_kernels.distributed`), or
            None.
        gradients: with a group, `"mean"` for trainers that average gradients over ranks, or
            `"sum"`.
        exchange: with a group, `"gather"`, `"ring"` or `"auto"`: how rows travel.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range.

    Source: ITO: Images and Texts as One via Synergizing Multiple Alignment and Training-Time
    Fusion, 2026.

    >>> import torch
    >>> images = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.8, 0.6], [0.0, 1.0]]])
    >>> texts = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]])
    >>> fused = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.8, 0.6], [0.6, 0.8]]])
    >>> ITOLoss(2.0, learnable=False)(images, texts, fused)
    tensor(2.1532)
    """

    checks = {"fusion_weight": number(least=0), "backend": SHARED["backend"], **DISTRIBUTED}
    fusion_weight: float
    group: ProcessGroup | None
    gradients: Gradients
    exchange: Exchange

    def __init__(
        self,
        logit_scale: float | None = None,
        *,
        temperature: float | None = None,
        fusion_weight: float = 2.0,
        learnable: bool = True,
        max_scale: float | None = MAX_SCALE,
        backend: Backend = "auto",
        group: ProcessGroup | None = None,
        gradients: Gradients = "mean",
        exchange: Exchange = "auto",
    ) -> None:
        super().__init__(
            logit_scale,
            temperature,
            learnable,
            max_scale,
            fusion_weight=fusion_weight,
            backend=backend,
            group=group,
            gradients=gradients,
            exchange=exchange,
        )

    @public
    def forward(
        self,
        images: Tensor,  # [V, N, D]
        texts: Tensor,  # [U, N, D]
        fused: Tensor,  # [V, N, D]
    ) -> Tensor:
        """Return the loss of a batch of views and their fused vectors."""
        scale = self.logit_scale()
        agreement = spread(self.group, self.gradients, self.exchange)
        if agreement is not None:
            given = images, texts, fused, scale, self.fusion_weight, self.backend
            return ito_over_ranks(*given, agreement)
        align = multi_view_alignment_loss(images, texts, logit_scale=scale, backend=self.backend)
        fusion = fusion_contrastive_loss(fused, logit_scale=scale, backend=self.backend)
        return align + self.fusion_weight * fusion

    if TYPE_CHECKING:
        __call__ = forward
