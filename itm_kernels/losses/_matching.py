"""Cross-entropy of match and mismatch for the image-text matching loss."""

from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from itm_kernels import _checks
from itm_kernels._options import Reduction
from itm_kernels._public import UnnamedTypeError, UnnamedValueError
from itm_kernels.mining import HardNegatives
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


# -- arguments -------------------------------------------------------------------------------------

_SHAPES = "[P], [P, 1] or [P, 2]"


def _fits(shape: torch.Size, least: int) -> bool:
    """Return whether a shape is one of `_SHAPES`, of at least so many rows."""
    columns = len(shape) == 1 or (len(shape) == 2 and shape[1] in (1, 2))
    return columns and shape[0] >= least


def check_matching_options(reduction: object, label_smoothing: object) -> None:
    """Check the options of the cross-entropy."""
    _checks.option("reduction", reduction, get_args(Reduction))
    _checks.number("label_smoothing", label_smoothing, least=0, below=1)


def checked_labels(
    logits: Tensor, labels: Tensor, exists: Tensor | None, least: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Check the tensors of `itm_loss`; return logits, int64 labels and the mask of rows."""
    _checks.floating("logits", logits)
    if not _fits(logits.shape, least):
        raise UnnamedValueError(f"logits must be {_SHAPES}, got {list(logits.shape)}")
    rows = logits.shape[0]
    if exists is not None:
        _check_exists(exists, logits)
    if _checks.is_tensor("labels", labels).dtype == torch.bool:
        labels = labels.long()
    _checks.identifiers("labels", labels, rows, logits, what="label")
    _refuse_labels(labels, exists)
    if exists is None:
        exists = torch.ones(rows, dtype=torch.bool, device=logits.device)
    return logits, labels.to(logits.device, torch.int64), exists.to(logits.device)


def _check_exists(exists: object, logits: Tensor) -> None:
    mask = _checks.is_tensor("exists", exists)
    if mask.dtype != torch.bool or mask.shape != logits.shape[:1]:
        raise UnnamedValueError(
            f"exists must be bool [{logits.shape[0]}], got {_checks.describe(mask)}"
        )
    if mask.device != logits.device and mask.device.type != "cpu":
        raise UnnamedValueError(
            f"exists is on {mask.device}, the logits on {logits.device}; "
            f"move it with .to({str(logits.device)!r})"
        )


def _refuse_labels(labels: Tensor, exists: Tensor | None) -> None:
    """Raise ValueError for labels other than 0 and 1, where their values can be read."""
    if not _checks.can_read(labels) or not (exists is None or _checks.can_read(exists)):
        return
    bad = _neither(labels) if exists is None else _neither(labels) & exists
    if bad.any():
        j = int(bad.nonzero()[0, 0])
        raise UnnamedValueError(
            f"labels[{j}] = {int(labels[j])} is neither 0 nor 1 "
            f"({int(bad.sum())} of {labels.shape[0]} are not); leave rows out with exists="
        )


def _neither(labels: Tensor) -> Tensor:
    """Mark the labels that are neither 0 nor 1."""
    return (labels != 0) & (labels != 1)


def check_match(match: object) -> None:
    """Check that the logits of pairs come from a function."""
    if not callable(match):
        raise UnnamedTypeError(
            f"match must be a function of image_index and text_index, "
            f"got {_checks.describe(match)}; for ids or labels use image_ids= and text_ids="
        )


def checked_negatives(negatives: object, image: Tensor, text: Tensor) -> HardNegatives:
    """Check one negative per row of both sides; return them on the device of the rows."""
    if not isinstance(negatives, HardNegatives):
        raise UnnamedTypeError(
            f"negatives must be a mining.HardNegatives, got "
            f"{_checks.describe(negatives)}; use what a HardNegativeSampler returns"
        )
    sides = negatives._asdict().items(), (image, text)
    for (name, index), side in zip(*sides, strict=True):
        what = f"negatives.{name}"
        _checks.identifiers(what, index, side.shape[0], image, what="index")
    text_index, image_index = (index.to(image.device, torch.int64) for index in negatives)
    return HardNegatives(text_index, image_index)


# -- pairs -----------------------------------------------------------------------------------------


def match_pairs(
    match: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,  # [N] indices of images
    texts: Tensor,  # [M]
    matched: Tensor,  # [M] image of every text, -1 without exactly one
    negatives: HardNegatives | None,  # None: no pair of other images and texts exists
    least: int = 1,  # pairs
) -> tuple[Tensor, Tensor]:
    """Return the logits of all pairs, positives first, and a mask of the pairs that exist."""
    image_index, text_index = [matched], [texts]
    if negatives is not None:
        image_index += [images, negatives.image_index]
        text_index += [negatives.text_index, texts]
    image_row, text_row = torch.cat(image_index), torch.cat(text_index)
    found = torch.minimum(image_row, text_row) >= 0
    logits = match(image_row.clamp_min(0), text_row.clamp_min(0))
    _checks.floating("the result of match", logits)
    if not _fits(logits.shape, least) or logits.shape[:1] != found.shape:
        raise UnnamedValueError(
            f"match returned {list(logits.shape)} for {found.shape[0]} pairs; "
            f"it must return logits {_SHAPES}"
        )
    if logits.device != images.device:
        raise UnnamedValueError(
            f"match returned logits on {logits.device}, the embeddings are on "
            f"{images.device}; move them with .to({str(images.device)!r})"
        )
    return logits, found


def labels_of_pairs(
    logits: Tensor,
    found: Tensor,  # [P] bool
    matches: int,  # the first so many pairs match
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the arguments of `cross_entropy_of_labels`."""
    positive = torch.arange(found.shape[0], device=found.device) < matches
    # A text without exactly one image is a mistake; here only NaN can report it.
    labels = positive.long().masked_fill(positive & ~found, -1)
    return logits, labels, found | positive
