"""InfoNCE, the symmetric cross-entropy of CLIP."""

from typing import TYPE_CHECKING

from torch import Tensor
from torch.distributed import ProcessGroup

from itm_kernels import _checks, _positives
from itm_kernels._options import Backend, Exchange, Gradients, Reduction, Unmatched
from itm_kernels._public import public
from itm_kernels.losses._contrast import (
    Embeddings,
    contrast_from_scores,
    cross_entropy_of_contrast,
    mean_cross_entropy,
)
from itm_kernels.losses._logit_scale import MAX_SCALE, ScaledLoss, checked_scale
from itm_kernels.losses._module import SHARED, check_options, spread
from itm_kernels.losses._reduction import reduce
from itm_kernels.losses._score_matrix import pairs_of_scores
from itm_kernels.losses.over_ranks._info_nce import info_nce_over_ranks
from itm_kernels.ops._info_nce import fused_info_nce_total
from itm_kernels.ops._log_sum_exp import as_scalar


@public
def info_nce_loss(
    image: Tensor,
    text: Tensor,
    *,
    logit_scale: float | Tensor | None = None,
    temperature: float | Tensor | None = None,
    max_scale: float | None = None,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    unmatched: Unmatched = "error",
    reduction: Reduction = "mean",
    backend: Backend = "auto",
    group: ProcessGroup | None = None,
    gradients: Gradients = "mean",
    exchange: Exchange = "auto",
) -> Tensor:
    r"""Classify each image's text among all texts and each text's image among all images.

    .. math:: \ell_j = - \gamma s_{ij} + \frac{1}{2} \log \sum_t e^{\gamma s_{it}}
              + \frac{1}{2} \log \sum_k e^{\gamma s_{kj}}

    for every pair (i, j), with cosines s and logit scale :math:`\gamma`.

    Args:
        image: `[N, D]` embeddings, normalised internally; a zero row stays zero and has no
            gradient.
        text: `[M, D]` embeddings; M = N without ids.
        logit_scale: 1 / temperature, > 0: a number, or a differentiable tensor of one element;
            default 20.
        temperature: 1 / logit_scale; pass at most one of the two.
        max_scale: upper bound of the scale; a clamped scale has no gradient. None: no bound.
        image_ids: `[N]` integers. Negatives that share the anchor's id are excluded from the sums.
        text_ids: `[M]` integers, each the id of exactly one image.
        unmatched: `"error"`, or `"negative"`: a text without an image (from another device, a queue
            or a distractor set) is a negative of every image and forms no pair. Its value is 0, and
            the mean is over the pairs that exist.
        reduction: `"none"` (one value per pair, `[M]`), `"sum"` or `"mean"`.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.
        group: a process group over whose ranks the batch is spread: every rank passes its own rows
            and gets the loss of the global batch (`itm_kernels.distributed`). None: this process
            holds the batch.
        gradients: with a group, `"mean"` multiplies gradients by the number of ranks, for trainers
            that average them (DistributedDataParallel, FSDP); `"sum"` does not.
        exchange: with a group, `"gather"`, `"ring"` or `"auto"`: how rows travel.

    Returns:
        The loss, in fp32 for fp16 and bf16 inputs. NaN in a row makes the loss NaN.

    Raises:
        TypeError: an argument is not a floating-point tensor, or ids are not integers.
        ValueError: shapes, devices, ids or options do not fit.
        RuntimeError: the requested backend cannot run here.

    Source: Radford et al., CLIP, 2021.

    >>> import torch
    >>> text = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    >>> info_nce_loss(torch.eye(2), text, logit_scale=2.0)
    tensor(0.2987)
    """
    agreement = spread(group, gradients, exchange)
    if agreement is not None:
        scales = logit_scale, temperature, max_scale
        options = image_ids, text_ids, unmatched, reduction, backend
        return info_nce_over_ranks(image, text, scales, *options, agreement)
    image, text = _checks.embeddings(image=image, text=text)
    check_options(reduction, backend)
    pairs, absent, _ = _positives.match(image, text, image_ids, text_ids, unmatched)
    scale = checked_scale(image, logit_scale, temperature, max_scale)
    if absent is None and reduction != "none":
        total = fused_info_nce_total(image, text, scale, pairs, 0.5, reduction == "mean", backend)
        if total is not None:
            return total
    v, c = Embeddings(image, backend), Embeddings(text, backend)
    values = mean_cross_entropy(v, c, as_scalar(scale, image), pairs, absent)
    return reduce(values, reduction, absent)


class InfoNCELoss(ScaledLoss):
    """InfoNCE as a Module, with a fixed or learnable logit scale; `functional.info_nce_loss`.

    Rows are normalised internally. Options are attributes: they may be changed between
    steps, and are checked when they are set.

    Args:
        logit_scale: 1 / temperature, > 0; default 20.
        temperature: 1 / logit_scale; pass at most one of the two.
        learnable: learn the scale, as the parameter `logit_scale.log`. Pass `parameters()` to the
            optimiser, without weight decay.
        max_scale: upper bound of a learnt scale (CLIP's is 100): the parameter is clamped to it. A
            tensor passed to a call is clamped too, without gradient beyond the bound; a number is
            used as it is. None: no bound.
        unmatched: `"error"` raises ValueError for a text without an image; `"negative"` makes the
            text a negative of every image, without a pair of its own.
        reduction: `"mean"` over pairs, `"sum"`, or `"none"` (one value per text, `[M]`).
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
    >>> criterion = InfoNCELoss(temperature=0.07, learnable=True)
    >>> criterion(torch.eye(4), torch.eye(4)).backward()
    >>> criterion.logit_scale
    LogitScale(14.2857, learnable=True, max_scale=100.0)
    """

    checks = SHARED
    unmatched: Unmatched = "error"
    reduction: Reduction

    def __init__(
        self,
        logit_scale: float | None = None,
        *,
        temperature: float | None = None,
        learnable: bool = False,
        max_scale: float | None = MAX_SCALE,
        unmatched: Unmatched = "error",
        reduction: Reduction = "mean",
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
            unmatched=unmatched,
            reduction=reduction,
            backend=backend,
            group=group,
            gradients=gradients,
            exchange=exchange,
        )

    @public
    def forward(
        self,
        image: Tensor,  # [N, D]
        text: Tensor,  # [M, D]
        *,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        logit_scale: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch; a logit scale passed here replaces the Module's own."""
        return info_nce_loss(
            image,
            text,
            logit_scale=self.scale(logit_scale),
            image_ids=image_ids,
            text_ids=text_ids,
            **self.options,
        )

    @public
    def from_scores(
        self,
        scores: Tensor,  # [N, M]
        *,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        logit_scale: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a score matrix, for models that compute scores without embeddings.

        The scores take the place of the cosines: they are multiplied by the logit scale.
        """
        pairs, absent, _ = pairs_of_scores(scores, image_ids, text_ids, self.unmatched, self.group)
        scale = as_scalar(self.scale(logit_scale), scores)
        found = contrast_from_scores(scores, scale, pairs, absent, self.backend)
        values = cross_entropy_of_contrast(found, absent, 0.5, self.backend)
        return reduce(values, self.reduction, absent)

    if TYPE_CHECKING:
        __call__ = forward
