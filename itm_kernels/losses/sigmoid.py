"""Sigmoid loss (SigLIP)."""

import torch
from torch import Tensor, nn

from itm_kernels import _checks, _pairs
from itm_kernels.losses._common import LogitScale, check_options, reduce
from itm_kernels.ops import sigmoid as operator
from itm_kernels.ops.log_sum_exp import as_scalar
from itm_kernels.ops.unit_rows import run as unit_rows


def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    *,
    logit_scale: float | Tensor = 10.0,
    logit_bias: float | Tensor = -10.0,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    unmatched: str = "error",
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    r"""Classify every pair of the batch as match or mismatch, each on its own.

    .. math:: \ell_j = \sum_i \log(1 + e^{-z_{ij} (\gamma s_{ij} + b)})

    for every text j, with cosines s and z = 1 for its positive image, -1 for the others.

    Args:
        image: `[N, D]` embeddings, normalised inside.
        text: `[M, D]` embeddings; M = N without ids.
        logit_scale: :math:`\gamma` > 0: a number, or a tensor of one element (differentiable).
        logit_bias: b, a number or a tensor of one element (differentiable).
        image_ids: `[N]` integers. Pairs that share an id without being positive take no part.
        text_ids: `[M]` integers, each the id of exactly one image.
        unmatched: `"error"`, or `"negative"`: a text without an image (another device's, a queue's,
            a distractor) is a negative of every image and no image's positive: its value is its sum
            over all images, and the mean divides by the number of texts with an image.
        reduction: `"none"` (one value per text, `[M]`), `"sum"`, or `"mean"`: the sum over all
            pairs of a text and an image divided by the number of positives, as SigLIP.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.

    Returns:
        The loss, in fp32 for fp16 and bf16 inputs. NaN in a row shows in the loss.

    Raises:
        TypeError: an argument is no floating-point tensor, or ids are no integers.
        ValueError: shapes, devices, ids or options do not fit.
        RuntimeError: the backend asked for cannot run here.

    Source: Zhai et al., Sigmoid loss for language image pre-training, 2023.

    >>> import torch
    >>> sigmoid_loss(torch.eye(2), torch.eye(2), logit_scale=1.0, logit_bias=0.0)
    tensor(1.0064)
    """
    name = "sigmoid_loss"
    image, text = _checks.embeddings(name, image=image, text=text)
    _checks.scalar(name, "logit_scale", logit_scale, above=0)
    _checks.scalar(name, "logit_bias", logit_bias)
    check_options(name, reduction, backend)
    pairs, absent = _pairs.match(name, image, text, image_ids, text_ids, unmatched)
    if absent is not None and pairs.positive is not None:
        # N, no image's index, is nobody's positive: the operator sums over all images.
        pairs = pairs._replace(positive=pairs.positive.masked_fill(absent, image.shape[0]))
    scale, bias = as_scalar(logit_scale, image), as_scalar(logit_bias, image)
    v, c = unit_rows(image, name, backend), unit_rows(text, name, backend)
    return reduce(operator.run(v, c, scale, bias, pairs, name, backend), reduction, absent)


class SigmoidLoss(nn.Module):
    """Sigmoid loss as a Module, with fixed or learnable scale and bias; see `sigmoid_loss`.

    Learnable, they are the parameters `logit_scale.log` and `logit_bias`.

    >>> import torch
    >>> criterion = SigmoidLoss(learnable=True)
    >>> criterion(torch.eye(4), torch.eye(4)).backward()
    """

    def __init__(
        self,
        logit_scale: float = 10.0,
        logit_bias: float = -10.0,
        *,
        learnable: bool = False,
        unmatched: str = "error",
        reduction: str = "mean",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        _checks.number("SigmoidLoss", "logit_bias", logit_bias)
        check_options("SigmoidLoss", reduction, backend)
        _checks.option("SigmoidLoss", "unmatched", unmatched, _pairs.UNMATCHED)
        self.logit_scale = LogitScale("SigmoidLoss", logit_scale, learnable)
        self.logit_bias: float | nn.Parameter = float(logit_bias)
        if learnable:
            self.logit_bias = nn.Parameter(torch.tensor(self.logit_bias))
        self.unmatched = unmatched
        self.reduction = reduction
        self.backend = backend

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
        """Return the loss of a batch; a scale or bias given here replaces the Module's own."""
        return sigmoid_loss(
            image,
            text,
            logit_scale=self.logit_scale() if logit_scale is None else logit_scale,
            logit_bias=self.logit_bias if logit_bias is None else logit_bias,
            image_ids=image_ids,
            text_ids=text_ids,
            unmatched=self.unmatched,
            reduction=self.reduction,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Show the options."""
        return (
            f"unmatched={self.unmatched!r}, reduction={self.reduction!r}, backend={self.backend!r}"
        )
