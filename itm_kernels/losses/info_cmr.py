"""InfoCMR: InfoNCE with synthetic hard negatives and noise."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from itm_kernels._options import (
    Backend,
    Clustering,
    Exchange,
    Gradients,
    Reduction,
    Unmatched,
    Weights,
    flag,
    integer,
    number,
    word,
)
from itm_kernels._public import public
from itm_kernels.losses._info_cmr_calls import info_cmr, info_cmr_from_scores
from itm_kernels.losses._logit_scale import MAX_SCALE, ScaledLoss
from itm_kernels.losses._module import SHARED


@public
def info_cmr_loss(
    image: Tensor,
    text: Tensor,
    *,
    temperature: float | Tensor | None = None,
    logit_scale: float | Tensor | None = None,
    max_scale: float | None = None,
    num_clusters: int = 8,
    sigma: float = 0.1,
    weights: Weights = "kam",
    clustering: Clustering = "shared",
    num_noise: int = 128,
    detach: bool = True,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    unmatched: Unmatched = "error",
    generator: torch.Generator | None = None,
    reduction: Reduction = "mean",
    backend: Backend = "auto",
    group: ProcessGroup | None = None,
    gradients: Gradients = "mean",
    exchange: Exchange = "auto",
) -> Tensor:
    r"""Contrast every pair with the batch, synthetic hard negatives and noise.

    .. math:: \ell_i = -s_+ / t + \log \Big( \sum_j e^{s_{ij} / t}
              + \sum_k e^{\cos(v_i, \bar c_i^k) / t} + \sum_z e^{\cos(v_i, g_z) / t} \Big)

    plus the same term with the roles of the modalities exchanged. All scores are cosines.
    Without synthesis and noise this is twice `info_nce_loss` at logit scale 1 / t.

    Args:
        image: `[N, D]` embeddings, normalised internally; a zero row stays zero and has no
            gradient.
        text: `[M, D]` embeddings; M = N without ids.
        temperature: t > 0: a number, or a differentiable tensor of one element; default
            .05.
        logit_scale: 1 / temperature; pass at most one of the two.
        max_scale: upper bound of 1 / t, beyond which it has no gradient; None: no bound.
        num_clusters: synthetic negatives per anchor (`synthesis.HardNegativeSynthesis`); 0: none.
        sigma: width of the synthesis kernel on unit vectors, > 0.
        weights: `"kam"` (for its memory, see `synthesis.HardNegativeSynthesis`) or `"attention"`.
        clustering: `"shared"` or `"per_anchor"`.
        num_noise: number of noise vectors :math:`g_z \sim N(0, I)`, drawn at every call, shared by
            the batch and both directions, without gradient; 0: none.
        detach: stop the gradient through the synthetic vectors.
        image_ids: `[N]` integers. Negatives that share the anchor's id are excluded from the sums.
        text_ids: `[M]` integers, each the id of exactly one image.
        unmatched: `"error"`, or `"negative"`: a text without an image (from another device, a queue
            or a distractor set) is a negative of every image and forms no pair. Its value is 0, and
            the mean is over the pairs that exist.
        generator: source of the k-means and noise draws, on the embeddings' device. With a group,
            all ranks draw from rank 0's state, and generators in that state advance with it.
        reduction: `"none"` (one value per pair, `[M]`), `"sum"` or `"mean"`.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.
        group: a process group over whose ranks the batch is spread: every rank passes its own rows
            and gets the loss of the global batch (`itm_kernels.distributed`). None: this process
            holds the batch.
        gradients: with a group, `"mean"` multiplies gradients by the number of ranks, for trainers
            that average them (DistributedDataParallel, FSDP); `"sum"` does not.
        exchange: with a group, `"gather"`, `"ring"` or `"auto"`; with synthesis, rows are gathered.

    Returns:
        The loss, in fp32 for fp16 and bf16 inputs. NaN in a row makes the loss NaN.

    Raises:
        TypeError: an argument is not a floating-point tensor, or ids are not integers.
        ValueError: shapes, devices, ids or options do not fit.
        RuntimeError: the requested backend cannot run here.

    Source: Wu et al., ITContrast: Contrastive Learning with Hard Negative Synthesis for Image-Text
    Matching, 2023, eqs 6-7. "1 + |C|", printed before the sum, is read as its upper limit: the
    denominator includes the positive.

    >>> import torch
    >>> text = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    >>> info_cmr_loss(torch.eye(2), text, temperature=0.5, num_clusters=0, num_noise=0)
    tensor(0.5975)
    """
    return info_cmr(
        image,
        text,
        (logit_scale, temperature, max_scale),
        True,
        num_clusters=num_clusters,
        sigma=sigma,
        weights=weights,
        clustering=clustering,
        num_noise=num_noise,
        detach=detach,
        image_ids=image_ids,
        text_ids=text_ids,
        unmatched=unmatched,
        generator=generator,
        reduction=reduction,
        backend=backend,
        group=group,
        gradients=gradients,
        exchange=exchange,
    )


class InfoCMRLoss(ScaledLoss):
    """InfoCMR as a Module, with a fixed or learnable temperature; `functional.info_cmr_loss`.

    Rows are normalised internally. Options are attributes: they may be changed between
    steps, and are checked when they are set.

    Args:
        temperature: t > 0; default .05.
        logit_scale: 1 / temperature; pass at most one of the two.
        learnable: learn the scale, as the parameter `logit_scale.log`. Pass `parameters()` to the
            optimiser, without weight decay.
        max_scale: upper bound of a learnt scale (CLIP's is 100): the parameter is clamped to it. A
            fixed scale is used as it is. None: no bound.
        num_clusters: synthetic negatives per anchor (`synthesis.HardNegativeSynthesis`); 0: none.
        sigma: width of the synthesis kernel on unit vectors, > 0.
        weights: `"kam"` (for its memory, see `synthesis.HardNegativeSynthesis`) or `"attention"`.
        clustering: `"shared"` or `"per_anchor"`.
        num_noise: number of noise vectors, drawn at every call; 0: none.
        detach: stop the gradient through the synthetic vectors.
        draws_in_eval: if False, nothing is drawn after `eval()`, so that a validation loss depends
            only on the embeddings: there is no noise, and k-means starts from rows far apart.
        unmatched: `"error"` raises ValueError for a text without an image; `"negative"` makes the
            text a negative of every image, without a pair of its own.
        reduction: `"mean"` over pairs, `"sum"`, or `"none"` (one value per text, `[M]`).
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.
        group: a process group over whose ranks the batch is spread (`itm_kernels.distributed`), or
            None.
        gradients: with a group, `"mean"` for trainers that average gradients over ranks, or
            `"sum"`.
        exchange: with a group, `"gather"`, `"ring"` or `"auto"`; with synthesis, rows are gathered.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range.

    >>> import torch
    >>> image = torch.eye(4, requires_grad=True)
    >>> InfoCMRLoss(num_clusters=2, num_noise=8)(image, torch.eye(4)).backward()
    """

    checks = {
        "num_clusters": integer(0),
        "sigma": number(above=0, power=2),
        "weights": word(Weights),
        "clustering": word(Clustering),
        "num_noise": integer(0),
        "detach": flag,
        "draws_in_eval": flag,
        **SHARED,
    }
    num_clusters: int
    sigma: float
    weights: Weights
    clustering: Clustering
    num_noise: int
    detach: bool
    draws_in_eval: bool
    unmatched: Unmatched = "error"
    reduction: Reduction

    def __init__(
        self,
        temperature: float | None = None,
        *,
        logit_scale: float | None = None,
        learnable: bool = False,
        max_scale: float | None = MAX_SCALE,
        num_clusters: int = 8,
        sigma: float = 0.1,
        weights: Weights = "kam",
        clustering: Clustering = "shared",
        num_noise: int = 128,
        detach: bool = True,
        draws_in_eval: bool = True,
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
            num_clusters=num_clusters,
            sigma=sigma,
            weights=weights,
            clustering=clustering,
            num_noise=num_noise,
            detach=detach,
            unmatched=unmatched,
            reduction=reduction,
            backend=backend,
            group=group,
            gradients=gradients,
            exchange=exchange,
        )
        self.draws_in_eval = draws_in_eval

    @public
    def forward(
        self,
        image: Tensor,  # [N, D]
        text: Tensor,  # [M, D]
        *,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the loss of a batch of embeddings."""
        return info_cmr(
            image,
            text,
            (self.logit_scale(), None, None),
            self.training or self.draws_in_eval,
            image_ids=image_ids,
            text_ids=text_ids,
            generator=generator,
            **self.options,
        )

    @public
    def from_scores(
        self,
        scores: Tensor,  # [N, M]
        *,
        image: Tensor | None = None,  # [N, D]
        text: Tensor | None = None,  # [M, D]
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the loss of a score matrix, whose scores take the place of the cosines.

        The synthetic negatives and the noise are vectors, so they need embeddings: `image` and
        `text` are one pooled vector per image and text. Their cosines with these negatives share
        the temperature of the scores. Without synthesis and noise the embeddings are not used.
        """
        return info_cmr_from_scores(
            scores,
            image,
            text,
            self.logit_scale(),
            self.training or self.draws_in_eval,
            image_ids=image_ids,
            text_ids=text_ids,
            generator=generator,
            **self.options,
        )

    def extra_repr(self) -> str:
        """Show the options."""
        return f"{super().extra_repr()}, draws_in_eval={self.draws_in_eval}"

    if TYPE_CHECKING:
        __call__ = forward
