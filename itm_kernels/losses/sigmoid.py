"""Sigmoid loss of SigLIP."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from itm_kernels import _checks, _positives
from itm_kernels._options import Backend, Exchange, Gradients, Reduction, Unmatched
from itm_kernels._public import naming, public
from itm_kernels.losses._logit_scale import MAX_SCALE, ScaledLoss, checked_scale, shown
from itm_kernels.losses._module import SHARED, check_options, spread
from itm_kernels.losses._reduction import mean_over_pairs, nan_where_mistaken, reduce
from itm_kernels.losses._score_matrix import pairs_of_scores
from itm_kernels.losses.over_ranks._sigmoid import sigmoid_over_ranks
from itm_kernels.ops._log_sum_exp import as_scalar
from itm_kernels.ops._sigmoid import fused_sigmoid, fused_sigmoid_total
from itm_kernels.ops._sigmoid_from_scores import fused_sigmoid_from_scores

LOGIT_SCALE = 10.0  # initial value in SigLIP


@public
def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    *,
    logit_scale: float | Tensor | None = None,
    logit_bias: float | Tensor = -10.0,
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
    r"""Classify every pair of the batch independently as match or mismatch.

    .. math:: \ell_j = \sum_i \log(1 + e^{-z_{ij} (\gamma s_{ij} + b)})

    for every text j, with cosines s and z = 1 for its positive image, -1 for the others.

    Args:
        image: `[N, D]` embeddings, normalised internally; a zero row stays zero and has no
            gradient.
        text: `[M, D]` embeddings; M = N without ids.
        logit_scale: :math:`\gamma` > 0: a number, or a differentiable tensor of one element;
            default 10.
        logit_bias: b, a number or a tensor of one element (differentiable).
        temperature: 1 / logit_scale; pass at most one of the two.
        max_scale: upper bound of the scale; a clamped scale has no gradient. None: no bound.
        image_ids: `[N]` integers. Pairs that share an id without being positive are excluded.
        text_ids: `[M]` integers, each the id of exactly one image.
        unmatched: `"error"`, or `"negative"`: a text without an image (from another device, a queue
            or a distractor set) is a negative of every image. Its value is its sum over all images,
            and the mean divides by the number of texts with an image.
        reduction: `"none"` (one value per text, `[M]`), `"sum"`, or `"mean"`: the sum over all
            pairs of a text and an image divided by the number of positives, as in SigLIP.
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

    Source: Zhai et al., Sigmoid loss for language image pre-training, 2023.

    >>> import torch
    >>> sigmoid_loss(torch.eye(2), torch.eye(2), logit_scale=1.0, logit_bias=0.0)
    tensor(1.0064)
    """
    agreement = spread(group, gradients, exchange)
    if agreement is not None:
        scales = logit_scale, temperature, max_scale, LOGIT_SCALE
        options = image_ids, text_ids, unmatched, reduction, backend
        return sigmoid_over_ranks(image, text, scales, logit_bias, *options, agreement)
    image, text = _checks.embeddings(image=image, text=text)
    _checks.scalar("logit_bias", logit_bias)
    check_options(reduction, backend)
    pairs, absent, mistaken = _positives.match(image, text, image_ids, text_ids, unmatched)
    pairs = _beyond_images(pairs, absent, image.shape[0])
    scale = checked_scale(image, logit_scale, temperature, max_scale, LOGIT_SCALE)
    bias = as_scalar(logit_bias, image) if isinstance(logit_bias, Tensor) else float(logit_bias)
    if reduction != "none":
        mean = reduction == "mean"
        # With unmatched texts, the number of pairs is counted on the device.
        at_once = mean and absent is None
        total = fused_sigmoid_total(image, text, scale, bias, pairs, at_once, backend, cosine=True)
        if total is not None:
            return mean_over_pairs(total, text.shape[0], absent) if mean and not at_once else total
    scale, bias = as_scalar(scale, image), as_scalar(bias, image)
    values = fused_sigmoid(image, text, scale, bias, pairs, backend, cosine=True)
    values = nan_where_mistaken(values, mistaken, image, text)
    return reduce(values, reduction, absent)


def _beyond_images(pairs: _positives.Pairs, absent: Tensor | None, images: int) -> _positives.Pairs:
    """Give texts without an image a positive out of range: their values sum over all images."""
    if absent is None or pairs.positive is None:
        return pairs
    return pairs._replace(positive=pairs.positive.masked_fill(absent, images))


class SigmoidLoss(ScaledLoss):
    """Sigmoid loss as a Module; `functional.sigmoid_loss` has the formula.

    Rows are normalised internally; scale and bias are fixed or learnt. Options are attributes: they
    may be changed between steps, and are checked when they are set.

    Args:
        logit_scale: 1 / temperature, > 0; default 10.
        logit_bias: added to the scaled cosine.
        temperature: 1 / logit_scale; pass at most one of the two.
        learnable: learn the scale, as the parameter `logit_scale.log`, and the bias, as
            `logit_bias`. Pass `parameters()` to the optimiser, without weight decay.
        max_scale: upper bound of a learnt scale (CLIP's is 100): the parameter is clamped to it. A
            tensor passed to a call is clamped too, without gradient beyond the bound; a number is
            used as it is. None: no bound.
        unmatched: `"error"` raises ValueError for a text without an image; `"negative"` makes the
            text a negative of every image, without a pair of its own.
        reduction: `"mean"`, the sum over all pairs of a text and an image divided by the number of
            positives; `"sum"`; or `"none"` (one value per text, `[M]`).
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
    >>> criterion = SigmoidLoss(learnable=True)
    >>> criterion(torch.eye(4), torch.eye(4)).backward()
    """

    checks = SHARED
    unmatched: Unmatched = "error"
    reduction: Reduction
    logit_bias: float | nn.Parameter

    def __init__(
        self,
        logit_scale: float | None = None,
        logit_bias: float = -10.0,
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
        with naming("SigmoidLoss"):
            _checks.number("logit_bias", logit_bias)
        super().__init__(
            logit_scale,
            temperature,
            learnable,
            max_scale,
            LOGIT_SCALE,
            unmatched=unmatched,
            reduction=reduction,
            backend=backend,
            group=group,
            gradients=gradients,
            exchange=exchange,
        )
        bias = float(logit_bias)
        self.logit_bias = nn.Parameter(torch.tensor(bias)) if learnable else bias

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a number assigned to a learnt logit_bias fills the parameter."""
        if name == "logit_bias" and not isinstance(value, nn.Parameter):
            with naming("SigmoidLoss"):
                _checks.number(name, value)
            value = float(value)
            if self.learnable and name in self._parameters:
                with torch.no_grad():
                    self._parameters[name].fill_(value)  # type: ignore[union-attr]
                return
        super().__setattr__(name, value)

    @public
    def forward(
        self,
        image: Tensor,  # [N, D]
        text: Tensor,  # [M, D]
        *,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        logit_scale: float | Tensor | None = None,
        logit_bias: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch; a scale or bias passed here replaces the Module's own."""
        return sigmoid_loss(
            image,
            text,
            logit_scale=self.scale(logit_scale),
            logit_bias=self.logit_bias if logit_bias is None else logit_bias,
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
        logit_bias: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a score matrix, for models that compute scores without embeddings.

        The scores take the place of the cosines: scale and bias apply to them.
        """
        pairs, absent, mistaken = pairs_of_scores(
            scores, image_ids, text_ids, self.unmatched, self.group
        )
        pairs = _beyond_images(pairs, absent, scores.shape[0])
        bias = self.logit_bias if logit_bias is None else logit_bias
        _checks.scalar("logit_bias", bias)
        scale, bias = as_scalar(self.scale(logit_scale), scores), as_scalar(bias, scores)
        values = fused_sigmoid_from_scores(scores, scale, bias, pairs, self.backend)
        values = nan_where_mistaken(values, mistaken, scores)
        return reduce(values, self.reduction, absent)

    def extra_repr(self) -> str:
        """Show the options and the bias in use."""
        return f"logit_bias={shown(self.logit_bias)}, {super().extra_repr()}"

    if TYPE_CHECKING:
        __call__ = forward
