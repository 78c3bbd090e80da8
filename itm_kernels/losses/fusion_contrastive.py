"""Fusion loss of ITO: NT-Xent between the fused vectors of two views."""

from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from itm_kernels._options import Backend, Exchange, Gradients
from itm_kernels._public import public
from itm_kernels.losses._contrast import Embeddings, LogSums, cross_entropy, log_sums
from itm_kernels.losses._logit_scale import MAX_SCALE, ScaledLoss, scale_as_tensor
from itm_kernels.losses._module import DISTRIBUTED, SHARED, check_options, spread
from itm_kernels.losses._views import check_fused
from itm_kernels.losses.over_ranks._fusion_contrastive import fusion_over_ranks


@public
def fusion_contrastive_loss(
    fused: Tensor,
    *,
    logit_scale: float | Tensor | None = None,
    temperature: float | Tensor | None = None,
    max_scale: float | None = None,
    backend: Backend = "auto",
    group: ProcessGroup | None = None,
    gradients: Gradients = "mean",
    exchange: Exchange = "auto",
) -> Tensor:
    r"""Compute NT-Xent: identify a sample's other view among the fused vectors of both views.

    .. math:: \ell_n = -\gamma f_n \cdot f'_n + \log \Big( \sum_m e^{\gamma f_n \cdot f'_m}
              + \sum_{m \ne n} e^{\gamma f_n \cdot f_m} \Big)

    averaged over both directions (f and f' exchanged), over samples, and over all pairs of views.

    Args:
        fused: `[V, N, D]` fused image-text vectors, V >= 2 views, normalised internally.
        logit_scale: 1 / temperature, > 0: a number, or a differentiable tensor of one element;
            default 20.
        temperature: 1 / logit_scale; pass at most one of the two.
        max_scale: upper bound of the scale; a clamped scale has no gradient. None: no bound.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.
        group: a process group over whose ranks the batch is spread: every rank passes its own rows
            and gets the loss of the global batch (`itm_kernels.distributed`). None: this process
            holds the batch.
        gradients: with a group, `"mean"` multiplies gradients by the number of ranks, for trainers
            that average them (DistributedDataParallel, FSDP); `"sum"` does not.
        exchange: with a group, `"gather"`, `"ring"` or `"auto"`: how rows travel.

    Returns:
        The loss, in fp32 for fp16 and bf16 inputs.

    Raises:
        TypeError: fused is not a floating-point tensor.
        ValueError: shapes or options do not fit.
        RuntimeError: the requested backend cannot run here.

    Source: ITO: Images and Texts as One via Synergizing Multiple Alignment and Training-Time
    Fusion, 2026; Chen et al., SimCLR, 2020, eq. 1.

    >>> import torch
    >>> fusion_contrastive_loss(torch.eye(2).expand(2, 2, 2), logit_scale=2.0)
    tensor(0.2395)
    """
    agreement = spread(group, gradients, exchange)
    if agreement is not None:
        scales = logit_scale, temperature, max_scale
        return fusion_over_ranks(fused, scales, backend, agreement)
    check_fused(fused)
    check_options("mean", backend)
    scale = scale_as_tensor(fused, logit_scale, temperature, max_scale)
    views = Embeddings(fused, backend).unbind()
    own = torch.arange(fused.shape[1], device=fused.device)
    # Only the diagonal shares an id: a vector is not a negative of itself.
    among = [log_sums(f, f, scale, own, own) for f in views]
    within = [LogSums(found.row, found.row_highest) for found in among]
    losses = []
    for a, b in combinations(range(len(views)), 2):
        across = log_sums(views[a], views[b], scale, own, own, own)
        to_b = [LogSums(across.row, across.row_highest), within[a]]
        to_a = [LogSums(across.column, across.column_highest), within[b]]
        losses.append(cross_entropy(across.positive, to_b, to_a, 0.5, backend))
    return torch.stack(losses).mean()


class FusionContrastiveLoss(ScaledLoss):
    """Fusion loss as a Module; `functional.fusion_contrastive_loss` has the formula.

    Rows are normalised internally; the result is the mean over pairs of views and samples. Options
    are attributes: they may be changed between steps, and are checked when they are set.

    Args:
        logit_scale: 1 / temperature, > 0; default 20.
        temperature: 1 / logit_scale; pass at most one of the two.
        learnable: learn the scale, as the parameter `logit_scale.log`. Pass `parameters()` to the
            optimiser, without weight decay.
        max_scale: upper bound of a learnt scale (CLIP's is 100): the parameter is clamped to it. A
            tensor passed to a call is clamped too, without gradient beyond the bound; a number is
            used as it is. None: no bound.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.
        group: a process group over whose ranks the batch is spread (`itm_kernels.distributed`), or
            None.
        gradients: with a group, `"mean"` for trainers that average gradients over ranks, or
            `"sum"`.
        exchange: with a group, `"gather"`, `"ring"` or `"auto"`: how rows travel.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range.

    >>> import torch
    >>> fused = torch.eye(4).expand(2, 4, 4).clone().requires_grad_()
    >>> FusionContrastiveLoss(learnable=True)(fused).backward()
    """

    checks = {"backend": SHARED["backend"], **DISTRIBUTED}

    def __init__(
        self,
        logit_scale: float | None = None,
        *,
        temperature: float | None = None,
        learnable: bool = False,
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
            backend=backend,
            group=group,
            gradients=gradients,
            exchange=exchange,
        )

    @public
    def forward(
        self,
        fused: Tensor,  # [V, N, D]
        *,
        logit_scale: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch of views; a scale passed here replaces the Module's own."""
        return fusion_contrastive_loss(fused, logit_scale=self.scale(logit_scale), **self.options)

    if TYPE_CHECKING:
        __call__ = forward
