"""Image-text matching loss with mined hard negatives (ALBEF, BLIP)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from itm_kernels import _checks, _positives
from itm_kernels._options import Exchange, Gradients, Reduction, number
from itm_kernels._public import UnnamedTypeError, public
from itm_kernels.losses._matching import (
    check_match,
    check_matching_options,
    checked_labels,
    checked_negatives,
    cross_entropy_of_labels,
    cross_entropy_of_pairs,
    labels_of_pairs,
    match_pairs,
)
from itm_kernels.losses._module import DISTRIBUTED, SHARED, OptionsModule, spread
from itm_kernels.losses.over_ranks._itm import itm_over_ranks, labels_over_ranks
from itm_kernels.mining import HardNegatives, HardNegativeSampler


@public
def itm_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    exists: Tensor | None = None,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    group: ProcessGroup | None = None,
    gradients: Gradients = "mean",
    exchange: Exchange = "auto",
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
        group: a process group over whose ranks the pairs are spread: every rank passes its own
            pairs and gets the loss of all (`itm_kernels.distributed`). None: this process holds
            all pairs.
        gradients: with a group, `"mean"` multiplies gradients by the number of ranks, for trainers
            that average them (DistributedDataParallel, FSDP); `"sum"` does not.
        exchange: as for other losses; no pairs are sent here.

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
    agreement = spread(group, gradients, exchange)
    if agreement is not None:
        given = logits, labels, exists, reduction, label_smoothing
        return labels_over_ranks(*given, agreement)
    check_matching_options(reduction, label_smoothing)
    inputs = checked_labels(logits, labels, exists)
    return cross_entropy_of_labels(*inputs, reduction, label_smoothing)


def _sampler(name: str, value: Any) -> Any:
    if not callable(value):
        raise UnnamedTypeError(
            f"{name} must be a function of image and text that returns HardNegatives, "
            f"got {_checks.describe(value)}; use mining.HardNegativeSampler()"
        )
    return value


class ITMLoss(OptionsModule):
    """Image-text matching loss: mine negatives, let the caller fuse the pairs, classify them.

    The sampler scores rows without normalising them; `functional.itm_loss` has the formula. Options
    are attributes: they may be changed between steps, and are checked when they are set.

    Args:
        sampler: draws one negative per anchor; default `mining.HardNegativeSampler()`.
        reduction: `"mean"` over rows that exist, `"sum"`, or `"none"` (one value per row).
        label_smoothing: share of the probability mass spread over both classes, in [0, 1).
        group: a process group over whose ranks the batch is spread (`itm_kernels.distributed`), or
            None.
        gradients: with a group, `"mean"` for trainers that average gradients over ranks, or
            `"sum"`.
        exchange: with a group, `"gather"`, `"ring"` or `"auto"`; embeddings are gathered to mine,
            without gradient.

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
        **DISTRIBUTED,
    }
    sampler: HardNegativeSampler
    reduction: Reduction
    label_smoothing: float
    gradients: Gradients
    exchange: Exchange

    def __init__(
        self,
        *,
        sampler: HardNegativeSampler | None = None,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        group: ProcessGroup | None = None,
        gradients: Gradients = "mean",
        exchange: Exchange = "auto",
    ) -> None:
        super().__init__(
            sampler=HardNegativeSampler() if sampler is None else sampler,
            reduction=reduction,
            label_smoothing=label_smoothing,
            group=group,
            gradients=gradients,
            exchange=exchange,
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
        Models that compute scores themselves, without embeddings to mine from, pass
        `negatives=HardNegativeSampler().from_scores(scores)`, and as image and text any tensors of
        one row per image and text.

        With ids, shapes must not depend on their values, so a missing negative is replaced by a
        pair of index 0, which the loss ignores.

        With a group, indices are those of the global batch, in `match` too: it is called with this
        rank's texts and their images, its images and their negatives, and its texts and theirs, on
        every rank, even without rows. `itm_kernels.distributed.fetch` fetches rows of other ranks.
        """
        agreement = spread(self.group, self.gradients, self.exchange)
        if agreement is not None:
            given = image_ids, text_ids, negatives, generator
            how = self.sampler, self.reduction, self.label_smoothing
            return itm_over_ranks(image, text, match, *given, *how, agreement)
        check_match(match)
        image, text = _checks.embeddings(image=image, text=text)
        pairs = _positives.resolve(image, text, image_ids, text_ids)
        if negatives is None:
            negatives = self.sampler(
                image, text, image_ids=image_ids, text_ids=text_ids, generator=generator
            )
        else:
            negatives = checked_negatives(negatives, image, text)
        images = torch.arange(image.shape[0], device=image.device)
        texts = images
        if image.shape[0] != text.shape[0]:
            texts = torch.arange(text.shape[0], device=image.device)
        matched = texts if pairs.positive is None else pairs.positive
        mined = negatives if image.shape[0] > 1 or text.shape[0] > 1 else None
        logits, found = match_pairs(match, images, texts, matched, mined)
        if pairs.positive is None:
            return cross_entropy_of_pairs(
                logits, found, text.shape[0], self.reduction, self.label_smoothing
            )
        inputs = labels_of_pairs(logits, found, text.shape[0])
        return cross_entropy_of_labels(*inputs, self.reduction, self.label_smoothing)

    if TYPE_CHECKING:
        __call__ = forward
