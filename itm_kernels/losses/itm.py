"""Image-text matching loss with mined hard negatives (ALBEF, BLIP)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from itm_kernels import _checks, _positives
from itm_kernels._options import Reduction, number
from itm_kernels._public import UnnamedTypeError, UnnamedValueError, public
from itm_kernels.losses._matching import cross_entropy_of_labels, cross_entropy_of_pairs
from itm_kernels.losses._module import SHARED, OptionsModule
from itm_kernels.mining import HardNegatives, HardNegativeSampler


@public
def itm_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    exists: Tensor | None = None,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Compute the cross-entropy of fused pairs as match or mismatch.

    Args:
        logits: `[P]` or `[P, 1]`, the logit of a match, or `[P, 2]`, of mismatch and match.
        labels: `[P]` integers or bool, 1 = match, 0 = mismatch. Other values raise ValueError for
            labels on the CPU, and give NaN where reading them would need a device synchronisation
            or break a graph.
        exists: `[P]` bool; rows marked False are ignored, whatever their logits and labels hold
            (value 0 in `"none"`).
        reduction: `"none"` (one value per row, `[P]`), `"sum"`, or `"mean"` over rows that exist;
            0 if none does.
        label_smoothing: share of the probability mass spread over both classes, in [0, 1).

    Returns:
        The cross-entropy, in fp32 for fp16 and bf16 logits.

    Raises:
        TypeError: logits is not a floating-point tensor, labels are not integers, or exists is
            not a tensor.
        ValueError: shapes, labels or options do not fit.

    Source: Li et al., ALBEF, 2021, eq. 4.

    >>> import torch
    >>> logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0]])
    >>> itm_loss(logits, torch.tensor([1, 0, 0]))
    tensor(0.9178)
    """
    _checks.floating("logits", logits)
    if not _fits(logits.shape):
        raise UnnamedValueError(f"logits must be {_SHAPES}, got {list(logits.shape)}")
    _check_options(reduction, label_smoothing)
    rows = logits.shape[0]
    if exists is not None:
        _check_exists(exists, logits)
    if _checks.is_tensor("labels", labels).dtype == torch.bool:
        labels = labels.long()
    _checks.identifiers("labels", labels, rows, logits, what="label")
    _refuse_labels(labels, exists)
    if exists is None:
        exists = torch.ones(rows, dtype=torch.bool, device=logits.device)
    labels = labels.to(logits.device, torch.int64)
    return cross_entropy_of_labels(
        logits, labels, exists.to(logits.device), reduction, label_smoothing
    )


_SHAPES = "[P], [P, 1] or [P, 2]"


def _fits(shape: torch.Size) -> bool:
    """Return whether a shape is one of `_SHAPES`."""
    return len(shape) in (1, 2) and shape[0] > 0 and (len(shape) == 1 or shape[1] in (1, 2))


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


def _check_options(reduction: object, label_smoothing: object) -> None:
    _checks.option("reduction", reduction, get_args(Reduction))
    _checks.number("label_smoothing", label_smoothing, least=0, below=1)


def _sampler(name: str, value: Any) -> Any:
    if not callable(value):
        raise UnnamedTypeError(
            f"{name} must be a function of image and text that returns HardNegatives, "
            f"got {_checks.describe(value)}; use mining.HardNegativeSampler()"
        )
    return value


def _checked_negatives(negatives: object, image: Tensor, text: Tensor) -> HardNegatives:
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


class ITMLoss(OptionsModule):
    """Image-text matching loss: mine negatives, let the caller fuse the pairs, classify them.

    The sampler scores rows without normalising them; `functional.itm_loss` has the formula. Options
    are attributes: they may be changed between steps, and are checked when they are set.

    Args:
        sampler: draws one negative per anchor; default `mining.HardNegativeSampler()`.
        reduction: `"mean"` over rows that exist, `"sum"`, or `"none"` (one value per row).
        label_smoothing: share of the probability mass spread over both classes, in [0, 1).

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range.

    Source: Li et al., ALBEF, 2021; Li et al., BLIP, 2022.

    >>> import torch
    >>> image, text = torch.eye(4), torch.eye(4)
    >>> ITMLoss()(image, text, lambda i, t: 4 * (image[i] * text[t]).sum(1) - 2)
    tensor(0.1269)
    """

    checks = {
        "sampler": _sampler,
        "reduction": SHARED["reduction"],
        "label_smoothing": number(least=0, below=1),
    }
    sampler: HardNegativeSampler
    reduction: Reduction
    label_smoothing: float

    def __init__(
        self,
        *,
        sampler: HardNegativeSampler | None = None,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            sampler=HardNegativeSampler() if sampler is None else sampler,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )

    @public
    def forward(
        self,
        image: Tensor,  # [N, D], scored by the sampler
        text: Tensor,  # [M, D]
        match: Callable[[Tensor, Tensor], Tensor],
        *,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        negatives: HardNegatives | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the loss of M positives, a negative text per image and a negative image per text.

        Args:
            image: `[N, D]` embeddings, scored by dot product to mine negatives, without gradient.
            text: `[M, D]` embeddings; M = N without ids.
            match: called once as `match(image_index, text_index)` with `[P]` row indices; returns
                the differentiable logits of the fused pairs, `[P]`, `[P, 1]` or `[P, 2]`.
            image_ids: `[N]` integers. Pairs that share an id are never negatives.
            text_ids: `[M]` integers, each the id of exactly one image.
            negatives: negatives drawn beforehand, used instead of the sampler: for example by
                `HardNegativeSampler.from_scores` from a momentum encoder's scores, as in ALBEF, or
                with a learnt temperature. Only the shapes of image and text are then used.
            generator: source of the sampler's draws.

        An anchor without a negative adds no row to the loss. A batch of one pair has no negatives.
        With ids, shapes must not depend on their values, so a missing negative is replaced by a
        pair of index 0, which the loss ignores.
        """
        if not callable(match):
            raise UnnamedTypeError(
                f"match must be a function of image_index and text_index, "
                f"got {_checks.describe(match)}; for ids or labels use image_ids= and text_ids="
            )
        image, text = _checks.embeddings(image=image, text=text)
        pairs = _positives.resolve(image, text, image_ids, text_ids)
        if negatives is None:
            negatives = self.sampler(
                image, text, image_ids=image_ids, text_ids=text_ids, generator=generator
            )
        else:
            negatives = _checked_negatives(negatives, image, text)
        images = torch.arange(image.shape[0], device=image.device)
        texts = images
        if image.shape[0] != text.shape[0]:
            texts = torch.arange(text.shape[0], device=image.device)
        matched = texts if pairs.positive is None else pairs.positive
        image_index = [matched]
        text_index = [texts]
        if image.shape[0] > 1 or text.shape[0] > 1:
            image_index += [images, negatives.image_index]
            text_index += [negatives.text_index, texts]
        image_row, text_row = torch.cat(image_index), torch.cat(text_index)
        found = torch.minimum(image_row, text_row) >= 0
        logits = match(image_row.clamp_min(0), text_row.clamp_min(0))
        _checks.floating("the result of match", logits)
        if not _fits(logits.shape) or logits.shape[:1] != found.shape:
            raise UnnamedValueError(
                f"match returned {list(logits.shape)} for {found.shape[0]} pairs; "
                f"it must return logits {_SHAPES}"
            )
        if logits.device != image.device:
            raise UnnamedValueError(
                f"match returned logits on {logits.device}, the embeddings are on "
                f"{image.device}; move them with .to({str(image.device)!r})"
            )
        if pairs.positive is None:
            return cross_entropy_of_pairs(
                logits, found, text.shape[0], self.reduction, self.label_smoothing
            )
        positive = torch.arange(found.shape[0], device=image.device) < text.shape[0]
        # A text without exactly one image is a mistake; here only NaN can report it.
        labels = positive.long().masked_fill(positive & ~found, -1)
        return cross_entropy_of_labels(
            logits, labels, found | positive, self.reduction, self.label_smoothing
        )

    if TYPE_CHECKING:
        __call__ = forward
