"""InfoCMR: InfoNCE with synthetic hard negatives and noise (paper 1 eqs 6-7)."""

import torch
from torch import Tensor

from itm_kernels import _checks, _pairs
from itm_kernels.losses._common import OptionsModule, check_options, of_pairs, reduce
from itm_kernels.losses._contrast import contrast, cross_entropy, ids_of, of_image
from itm_kernels.ops.log_sum_exp import as_scalar
from itm_kernels.ops.log_sum_exp import run as log_sum_exp
from itm_kernels.ops.rbf_synthesis import check_options as check_synthesis
from itm_kernels.ops.unit_rows import run as unit_rows
from itm_kernels.synthesis import CLUSTERINGS, HardNegativeSynthesis


def _check(
    function: str,
    temperature: object,
    num_clusters: object,
    sigma: object,
    weights: object,
    clustering: object,
    num_noise: object,
) -> None:
    _checks.number(function, "temperature", temperature, above=0)
    check_synthesis(function, num_clusters, sigma, weights, ridge=0, least=0)
    _checks.option(function, "clustering", clustering, CLUSTERINGS)
    _checks.integer(function, "num_noise", num_noise, least=0)


def info_cmr_loss(
    image: Tensor,
    text: Tensor,
    *,
    temperature: float = 0.05,
    num_clusters: int = 8,
    sigma: float = 0.1,
    weights: str = "kam",
    clustering: str = "shared",
    num_noise: int = 128,
    detach: bool = True,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    unmatched: str = "error",
    generator: torch.Generator | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    r"""Contrast every pair with the batch, synthetic hard negatives and noise.

    .. math:: \ell_i = -s_+ / t + \log \Big( \sum_j e^{s_{ij} / t}
              + \sum_k e^{\cos(v_i, \bar c_i^k) / t} + \sum_z e^{\cos(v_i, g_z) / t} \Big)

    plus the same with the roles exchanged; the two directions are added. All scores are cosines.
    Without synthesis and noise this is twice `info_nce_loss` at logit scale 1 / t.

    Args:
        image: `[N, D]` embeddings, normalised inside.
        text: `[M, D]` embeddings; M = N without ids.
        temperature: t > 0.
        num_clusters: synthetic negatives per anchor (`synthesis.HardNegativeSynthesis`); 0: none.
        sigma: width of the synthesis kernel on unit vectors, > 0.
        weights: `"kam"` or `"attention"`.
        clustering: `"shared"` or `"per_anchor"`.
        num_noise: noise vectors :math:`g_z \sim N(0, I)`, drawn afresh at every call, shared by
            the batch and both directions, without gradient; 0: none.
        detach: stop gradients into the synthetic vectors.
        image_ids: `[N]` integers. Pairs that share an id without being positive leave the sums.
        text_ids: `[M]` integers, each the id of exactly one image.
        unmatched: `"error"`, or `"negative"`: a text without an image (another device's, a queue's,
            a distractor) is a negative of every image and forms no pair: it counts 0, and the mean
            is over the pairs that exist.
        generator: source of the k-means and noise draws, on the embeddings' device.
        reduction: `"none"` (one value per pair, `[M]`), `"sum"` or `"mean"`.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.

    Returns:
        The loss, in fp32 for fp16 and bf16 inputs. NaN in a row shows in the loss.

    Raises:
        TypeError: an argument is no floating-point tensor, or ids are no integers.
        ValueError: shapes, devices, ids or options do not fit.
        RuntimeError: the backend asked for cannot run here.

    Source: ITContrast, eqs 6-7. "1 + |C|" printed before the sum is read as its upper limit: the
    positive is in the denominator.

    >>> import torch
    >>> text = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    >>> info_cmr_loss(torch.eye(2), text, temperature=0.5, num_clusters=0, num_noise=0)
    tensor(0.5975)
    """
    name = "info_cmr_loss"
    image, text = _checks.embeddings(name, image=image, text=text)
    _check(name, temperature, num_clusters, sigma, weights, clustering, num_noise)
    check_options(name, reduction, backend)
    pairs, absent = _pairs.match(name, image, text, image_ids, text_ids, unmatched)
    v_ids, c_ids = ids_of(pairs, image)
    pairs = pairs._replace(image_ids=v_ids, text_ids=c_ids)
    v, c = unit_rows(image, name, backend), unit_rows(text, name, backend)
    scale = as_scalar(1 / temperature, v)
    positive, *others = contrast(v, c, scale, pairs, name, backend, absent)
    from_image, from_text = ([negatives] for negatives in others)
    if num_clusters:
        synthesis = HardNegativeSynthesis(
            num_clusters,
            sigma=sigma,
            weights=weights,
            clustering=clustering,
            detach=detach,
            backend=backend,
        )
        found = synthesis.logits_of_unit_rows(v, v_ids, c, c_ids, generator)
        from_image.append(of_image(_log_of_each(scale, *found), pairs))
        found = synthesis.logits_of_unit_rows(c, c_ids, v, v_ids, generator)
        from_text.append(_log_of_each(scale, *found))
    if num_noise:
        noise = torch.empty(num_noise, v.shape[1], dtype=v.dtype, device=v.device)
        g = unit_rows(noise.normal_(generator=generator), name, backend)
        noisy = log_sum_exp(v, g, scale, None, None, name, backend).row
        from_image.append(of_image(noisy, pairs))
        from_text.append(log_sum_exp(c, g, scale, None, None, name, backend).row)
    values = cross_entropy(positive, from_image, from_text, 1.0, name, backend)
    return reduce(of_pairs(values, absent), reduction, absent)


def _log_of_each(scale: Tensor, cosine: Tensor, valid: Tensor) -> Tensor:  # [N, K]
    """Return the logit of every synthetic vector: sums of one negative each, or of none."""
    return torch.where(valid, scale * cosine, -torch.inf)


class InfoCMRLoss(OptionsModule):
    """InfoCMR as a Module; see `info_cmr_loss`.

    >>> import torch
    >>> image = torch.eye(4, requires_grad=True)
    >>> InfoCMRLoss(num_clusters=2, num_noise=8)(image, torch.eye(4)).backward()
    """

    def __init__(
        self,
        temperature: float = 0.05,
        *,
        num_clusters: int = 8,
        sigma: float = 0.1,
        weights: str = "kam",
        clustering: str = "shared",
        num_noise: int = 128,
        detach: bool = True,
        unmatched: str = "error",
        reduction: str = "mean",
        backend: str = "auto",
    ) -> None:
        name = "InfoCMRLoss"
        _check(name, temperature, num_clusters, sigma, weights, clustering, num_noise)
        check_options(name, reduction, backend)
        _checks.option(name, "unmatched", unmatched, _pairs.UNMATCHED)
        super().__init__(
            temperature=temperature,
            num_clusters=num_clusters,
            sigma=sigma,
            weights=weights,
            clustering=clustering,
            num_noise=num_noise,
            detach=detach,
            unmatched=unmatched,
            reduction=reduction,
            backend=backend,
        )

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
        return info_cmr_loss(
            image, text, image_ids=image_ids, text_ids=text_ids, generator=generator, **self.options
        )
