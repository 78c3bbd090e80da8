"""Image-text matching with mined hard negatives (ALBEF, BLIP)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from itm_kernels import _checks, _pairs
from itm_kernels.losses._common import REDUCTIONS
from itm_kernels.mining import HardNegativeSampler
from itm_kernels.reference._rows import wide


def itm_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    exists: Tensor | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Classify fused pairs as match or mismatch.

    Args:
        logits: `[P]`, the logit of a match, or `[P, 2]`, of mismatch and match.
        labels: `[P]` integers, 1 = match, 0 = mismatch.
        exists: `[P]` bool; rows marked False take no part (zero in `"none"`).
        reduction: `"none"` (one value per row, `[P]`), `"sum"`, or `"mean"` over rows that exist.
        label_smoothing: share of the label's weight that is spread evenly, in [0, 1).

    Returns:
        The cross-entropy, in fp32 for fp16 and bf16 logits.

    Raises:
        TypeError: logits are no floating-point tensor, or labels no integers.
        ValueError: shapes or options do not fit.

    Source: Li et al., ALBEF, 2021, eq. 4.

    >>> import torch
    >>> logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0]])
    >>> itm_loss(logits, torch.tensor([1, 0, 0]))
    tensor(0.9178)
    """
    name = "itm_loss"
    _checks.is_tensor(name, "logits", logits)
    _checks.floating(name, "logits", logits, "[P]" if logits.dim() == 1 else "[P, 2]")
    if logits.dim() == 2 and logits.shape[1] != 2:
        raise ValueError(f"{name}: logits must be [P] or [P, 2], got {list(logits.shape)}")
    _checks.identifiers(name, "labels", labels, logits.shape[0], logits)
    _check_options(name, reduction, label_smoothing)
    if exists is not None and (exists.dtype != torch.bool or exists.shape != logits.shape[:1]):
        raise ValueError(
            f"{name}: exists must be bool [{logits.shape[0]}], got {_checks.describe(exists)}"
        )
    logits = wide(logits)
    if logits.dim() == 1:
        logits = torch.stack([torch.zeros_like(logits), logits], 1)
    values = cross_entropy(
        logits,
        labels.to(logits.device, torch.int64),
        reduction="none",
        label_smoothing=label_smoothing,
    )
    if exists is None:
        exists = torch.ones_like(values, dtype=torch.bool)
    values = values.masked_fill(~exists, 0)
    if reduction == "none":
        return values
    return values.sum() if reduction == "sum" else values.sum() / exists.sum()


def _check_options(function: str, reduction: object, label_smoothing: object) -> None:
    _checks.option(function, "reduction", reduction, REDUCTIONS)
    _checks.number(function, "label_smoothing", label_smoothing, least=0, below=1)


class ITMLoss(nn.Module):
    """Image-text matching: mines negatives, has the caller fuse the pairs, classifies them.

    Args:
        sampler: draws one negative per anchor; default `mining.HardNegativeSampler()`.
        reduction: see `itm_loss`.
        label_smoothing: see `itm_loss`.

    Source: Li et al., ALBEF, 2021; Li et al., BLIP, 2022.

    >>> import torch
    >>> image, text = torch.eye(4), torch.eye(4)
    >>> ITMLoss()(image, text, lambda i, t: 4 * (image[i] * text[t]).sum(1) - 2)
    tensor(0.1269)
    """

    def __init__(
        self,
        *,
        sampler: HardNegativeSampler | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        _check_options("ITMLoss", reduction, label_smoothing)
        self.sampler = HardNegativeSampler() if sampler is None else sampler
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(
        self,
        image: Tensor,  # [N, D], what the sampler scores
        text: Tensor,  # [M, D]
        match: Callable[[Tensor, Tensor], Tensor],
        *,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the loss of M positives, a negative text per image and a negative image per text.

        Args:
            image: `[N, D]` embeddings, scored by dot product to mine negatives, without gradient.
            text: `[M, D]` embeddings; M = N without ids.
            match: called once as `match(image_index, text_index)` with `[P]` row numbers; returns
                the logits of the fused pairs, `[P]` or `[P, 2]`, through which gradients flow.
            image_ids: `[N]` integers. Pairs that share an id are never negatives.
            text_ids: `[M]` integers, each the id of exactly one image.
            generator: source of the sampler's draws.

        An anchor without a negative adds no row to the loss. A batch of one pair has no negatives;
        with ids, whose values a graph may not depend on, the slot of a missing negative holds a
        pair of index 0 that the loss leaves out.
        """
        name = "ITMLoss"
        image, text = _checks.embeddings(name, image=image, text=text)
        pairs = _pairs.resolve(name, image, text, image_ids, text_ids)
        negatives = self.sampler(
            image, text, image_ids=image_ids, text_ids=text_ids, generator=generator
        )
        images = torch.arange(image.shape[0], device=image.device)
        texts = torch.arange(text.shape[0], device=image.device)
        matched = texts if pairs.positive is None else pairs.positive
        image_index = [matched]
        text_index = [texts]
        if image.shape[0] > 1 or text.shape[0] > 1:
            image_index += [images, negatives.image_index]
            text_index += [negatives.text_index, texts]
        image_row, text_row = torch.cat(image_index), torch.cat(text_index)
        found = (image_row >= 0) & (text_row >= 0)
        logits = match(image_row.clamp_min(0), text_row.clamp_min(0))
        _checks.is_tensor(name, "the result of match", logits)
        if logits.shape[:1] != found.shape:
            raise ValueError(
                f"{name}: match returned {list(logits.shape)} for {found.shape[0]} pairs; "
                "it must return logits [P] or [P, 2]"
            )
        positive = torch.arange(found.shape[0], device=image.device) < text.shape[0]
        # A text without exactly one image is a mistake that only NaN can show at this point.
        mistake = positive & ~found
        logits = logits.masked_fill(mistake if logits.dim() == 1 else mistake[:, None], torch.nan)
        return itm_loss(
            logits,
            positive.long(),
            exists=found | positive,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )

    def extra_repr(self) -> str:
        """Show the options."""
        return (
            f"sampler={self.sampler}, reduction={self.reduction!r}, "
            f"label_smoothing={self.label_smoothing}"
        )
