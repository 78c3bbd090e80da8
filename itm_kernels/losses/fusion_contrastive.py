"""Fusion loss: NT-Xent between the fused vectors of two views (paper 2)."""

from itertools import combinations

import torch
from torch import Tensor, nn

from itm_kernels import _checks
from itm_kernels.losses._common import LogitScale, check_options
from itm_kernels.losses._contrast import cross_entropy
from itm_kernels.losses.multi_view_alignment import check_views
from itm_kernels.ops.log_sum_exp import as_scalar
from itm_kernels.ops.log_sum_exp import run as log_sum_exp
from itm_kernels.ops.unit_rows import run as unit_rows
from itm_kernels.reference._rows import paired_scores


def fusion_contrastive_loss(
    fused: Tensor, *, logit_scale: float | Tensor = 20.0, backend: str = "auto"
) -> Tensor:
    r"""Recognise a sample's other view among the fused vectors of both views (NT-Xent).

    .. math:: \ell_n = -\gamma f_n \cdot f'_n + \log \Big( \sum_m e^{\gamma f_n \cdot f'_m}
              + \sum_{m \ne n} e^{\gamma f_n \cdot f_m} \Big)

    averaged with the exchanged term, over samples, and over all pairs of views.

    Args:
        fused: `[V, N, D]` fused image-text vectors, V >= 2 views, normalised inside.
        logit_scale: 1 / temperature, > 0: a number, or a tensor of one element (differentiable).
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.

    Returns:
        The loss, in fp32 for fp16 and bf16 inputs.

    Raises:
        TypeError: fused is no floating-point tensor.
        ValueError: shapes or options do not fit.
        RuntimeError: the backend asked for cannot run here.

    Source: ITO, 2026, training-time fusion; Chen et al., SimCLR, 2020, eq. 1.

    >>> import torch
    >>> fusion_contrastive_loss(torch.eye(2).expand(2, 2, 2), logit_scale=2.0)
    tensor(0.2395)
    """
    name = "fusion_contrastive_loss"
    check_views(name, fused=fused)
    if fused.shape[0] < 2:
        raise ValueError(f"{name}: fused {list(fused.shape)} must hold at least two views")
    _checks.scalar(name, "logit_scale", logit_scale, above=0)
    check_options(name, "mean", backend)
    scale = as_scalar(logit_scale, fused)
    # Taken apart once: every view picked by its index would have a gradient of all views' size.
    views = unit_rows(fused, name, backend).unbind()
    own = torch.arange(fused.shape[1], device=fused.device)
    # Equal ids on the diagonal alone: a vector is no negative of itself.
    within = [log_sum_exp(f, f, scale, own, own, name, backend).row for f in views]
    losses = []
    for a, b in combinations(range(len(views)), 2):
        across = log_sum_exp(views[a], views[b], scale, own, own, name, backend)
        positive = scale * paired_scores(views[a], views[b], None)
        to_b, to_a = [across.row, within[a]], [across.column, within[b]]
        losses.append(cross_entropy(positive, to_b, to_a, 0.5, name, backend))
    return torch.stack(losses).mean()


class FusionContrastiveLoss(nn.Module):
    """Fusion loss as a Module; see `fusion_contrastive_loss`.

    >>> import torch
    >>> fused = torch.eye(4).expand(2, 4, 4).clone().requires_grad_()
    >>> FusionContrastiveLoss(learnable=True)(fused).backward()
    """

    def __init__(
        self, logit_scale: float = 20.0, *, learnable: bool = False, backend: str = "auto"
    ) -> None:
        super().__init__()
        check_options("FusionContrastiveLoss", "mean", backend)
        self.logit_scale = LogitScale("FusionContrastiveLoss", logit_scale, learnable)
        self.backend = backend

    def forward(
        self,
        fused: Tensor,  # [V, N, D]
        *,
        logit_scale: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch of views; a scale given here replaces the Module's own."""
        scale = self.logit_scale() if logit_scale is None else logit_scale
        return fusion_contrastive_loss(fused, logit_scale=scale, backend=self.backend)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"backend={self.backend!r}"
