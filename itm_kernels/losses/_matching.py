"""Cross-entropy of match and mismatch for the image-text matching loss."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from itm_kernels.reference._precision import wide

_IGNORED = -100


def cross_entropy_of_labels(
    logits: Tensor,  # [P], [P, 1] or [P, 2]
    labels: Tensor,  # [P] int64, 0 or 1
    exists: Tensor,  # [P] bool
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    """Return the cross-entropy over the pairs that exist; an invalid label gives NaN."""
    logits = _two_columns(logits)
    # Masked before the softmax: 0 times the gradient of a NaN or Inf would be NaN.
    absent, known = ~exists, labels.clamp(0, 1)
    logits = logits.masked_fill(absent[:, None], 0)
    values = cross_entropy(logits, known, reduction="none", label_smoothing=label_smoothing)
    # A factor instead of masked_fill: the gradient must be NaN wherever the loss is.
    factor = torch.ones_like(values).masked_fill((known != labels) & exists, torch.nan)
    values = (values * factor).masked_fill(absent, 0)
    if reduction == "none":
        return values
    return values.sum() if reduction == "sum" else values.sum() / exists.sum().clamp_min(1)


def cross_entropy_of_pairs(
    logits: Tensor,  # [P], [P, 1] or [P, 2]; the first `matches` of them match
    found: Tensor,  # [P] bool, pairs that exist; the matching ones all do
    matches: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    """Return the same cross-entropy for valid labels, in half as many operations."""
    logits, absent = _two_columns(logits), ~found
    labels = torch.zeros(found.shape[0], dtype=torch.int64, device=found.device)
    labels[:matches] = 1
    labels = labels.masked_fill(absent, _IGNORED)
    # Masked before the softmax: 0 times the gradient of a NaN or Inf would be NaN.
    logits = logits.masked_fill(absent[:, None], 0)
    return cross_entropy(
        logits,
        labels,
        ignore_index=_IGNORED,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def _two_columns(logits: Tensor) -> Tensor:
    """Return logits of mismatch and match `[P, 2]`, in fp32 or better."""
    logits = wide(logits)
    if logits.dim() == 1:
        logits = logits[:, None]
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    return logits
