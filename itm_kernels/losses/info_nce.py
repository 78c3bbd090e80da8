"""InfoNCE: the symmetric cross-entropy of CLIP."""

from torch import Tensor, nn

from itm_kernels import _checks, _pairs
from itm_kernels.losses._common import LogitScale, check_options, reduce
from itm_kernels.losses._contrast import mean_cross_entropy
from itm_kernels.ops.log_sum_exp import as_scalar
from itm_kernels.ops.unit_rows import run as unit_rows


def info_nce_loss(
    image: Tensor,
    text: Tensor,
    *,
    logit_scale: float | Tensor = 20.0,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    unmatched: str = "error",
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    r"""Classify each image's text among all texts and each text's image among all images.

    .. math:: \ell_j = - \gamma s_{ij} + \frac{1}{2} \log \sum_t e^{\gamma s_{it}}
              + \frac{1}{2} \log \sum_k e^{\gamma s_{kj}}

    for every pair (i, j), with cosines s and logit scale :math:`\gamma`.

    Args:
        image: `[N, D]` embeddings, normalised inside.
        text: `[M, D]` embeddings; M = N without ids.
        logit_scale: 1 / temperature, > 0: a number, or a tensor of one element (differentiable).
        image_ids: `[N]` integers. Pairs that share an id without being positive leave the sums.
        text_ids: `[M]` integers, each the id of exactly one image.
        unmatched: `"error"`, or `"negative"`: a text without an image (another device's, a queue's,
            a distractor) is a negative of every image and forms no pair: it counts 0, and the mean
            is over the pairs that exist.
        reduction: `"none"` (one value per pair, `[M]`), `"sum"` or `"mean"`.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.

    Returns:
        The loss, in fp32 for fp16 and bf16 inputs. NaN in a row shows in the loss.

    Raises:
        TypeError: an argument is no floating-point tensor, or ids are no integers.
        ValueError: shapes, devices, ids or options do not fit.
        RuntimeError: the backend asked for cannot run here.

    Source: Radford et al., CLIP, 2021.

    >>> import torch
    >>> text = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    >>> info_nce_loss(torch.eye(2), text, logit_scale=2.0)
    tensor(0.2987)
    """
    name = "info_nce_loss"
    image, text = _checks.embeddings(name, image=image, text=text)
    _checks.scalar(name, "logit_scale", logit_scale, above=0)
    check_options(name, reduction, backend)
    pairs, absent = _pairs.match(name, image, text, image_ids, text_ids, unmatched)
    scale = as_scalar(logit_scale, image)
    v, c = unit_rows(image, name, backend), unit_rows(text, name, backend)
    values = mean_cross_entropy(v, c, scale, pairs, name, backend, absent)
    return reduce(values, reduction, absent)


class InfoNCELoss(nn.Module):
    """InfoNCE as a Module, with a fixed or learnable logit scale; see `info_nce_loss`.

    A learnable scale is the parameter `logit_scale.log`.

    >>> import torch
    >>> criterion = InfoNCELoss(14.3, learnable=True)
    >>> criterion(torch.eye(4), torch.eye(4)).backward()
    """

    def __init__(
        self,
        logit_scale: float = 20.0,
        *,
        learnable: bool = False,
        unmatched: str = "error",
        reduction: str = "mean",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_options("InfoNCELoss", reduction, backend)
        _checks.option("InfoNCELoss", "unmatched", unmatched, _pairs.UNMATCHED)
        self.logit_scale = LogitScale("InfoNCELoss", logit_scale, learnable)
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
    ) -> Tensor:
        """Return the loss of a batch; a logit scale given here replaces the Module's own."""
        return info_nce_loss(
            image,
            text,
            logit_scale=self.logit_scale() if logit_scale is None else logit_scale,
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
