"""Multiple alignment of ITO: InfoNCE over all pairs of an image view and a text view."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from itm_kernels._options import Backend, Exchange, Gradients
from itm_kernels._positives import Pairs
from itm_kernels._public import public
from itm_kernels.losses._contrast import Embeddings, mean_cross_entropy
from itm_kernels.losses._logit_scale import MAX_SCALE, ScaledLoss, scale_as_tensor
from itm_kernels.losses._module import DISTRIBUTED, SHARED, check_options, spread
from itm_kernels.losses._views import check_views
from itm_kernels.losses.over_ranks._multi_view_alignment import alignment_over_ranks


@public
def multi_view_alignment_loss(
    images: Tensor,
    texts: Tensor,
    *,
    logit_scale: float | Tensor | None = None,
    temperature: float | Tensor | None = None,
    max_scale: float | None = None,
    backend: Backend = "auto",
    group: ProcessGroup | None = None,
    gradients: Gradients = "mean",
    exchange: Exchange = "auto",
) -> Tensor:
    """Average the symmetric CLIP loss over all pairs of an image view and a text view.

    Args:
        images: `[V, N, D]` embeddings of V views of N images, normalised internally.
        texts: `[U, N, D]` embeddings of U texts of each image.
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
        The mean over V x U pairs of views and N samples, in fp32 for fp16 and bf16 inputs.

    Raises:
        TypeError: an argument is not a floating-point tensor, or dtypes differ.
        ValueError: shapes, devices or options do not fit.
        RuntimeError: the requested backend cannot run here.

    Source: ITO: Images and Texts as One via Synergizing Multiple Alignment and Training-Time
    Fusion, 2026, multimodal multiple alignment.

    >>> import torch
    >>> images = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.8, 0.6], [0.0, 1.0]]])
    >>> texts = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]])
    >>> multi_view_alignment_loss(images, texts, logit_scale=2.0)
    tensor(0.4118)
    """
    agreement = spread(group, gradients, exchange)
    if agreement is not None:
        scales = logit_scale, temperature, max_scale
        return alignment_over_ranks(images, texts, scales, backend, agreement)
    images, texts = check_views(images=images, texts=texts)
    check_options("mean", backend)
    scale = scale_as_tensor(images, logit_scale, temperature, max_scale)
    v, c = (Embeddings(views, backend).unbind() for views in (images, texts))
    diagonal = Pairs(None, None, None)
    losses = [mean_cross_entropy(image, text, scale, diagonal) for image in v for text in c]
    return torch.stack(losses).mean()


class MultiViewAlignmentLoss(ScaledLoss):
    """Multiple alignment as a Module; `functional.multi_view_alignment_loss` has the formula.

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
    >>> MultiViewAlignmentLoss()(torch.eye(4).expand(2, 4, 4), torch.eye(4)[None]) < 1e-6
    tensor(True)
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
        images: Tensor,  # [V, N, D]
        texts: Tensor,  # [U, N, D]
        *,
        logit_scale: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch of views; a scale passed here replaces the Module's own."""
        return multi_view_alignment_loss(
            images, texts, logit_scale=self.scale(logit_scale), **self.options
        )

    if TYPE_CHECKING:
        __call__ = forward
