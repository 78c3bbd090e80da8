"""Softmax cross-entropy over a batch in both directions, shared by the contrastive losses."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from itm_kernels._positives import Pairs
from itm_kernels.losses._reduction import zero_absent
from itm_kernels.ops._cross_entropy import fused_cross_entropy
from itm_kernels.ops._log_sum_exp import RelativeSums, fused_log_sum_exp, normalises_rows
from itm_kernels.ops._log_sum_exp_from_scores import fused_log_sum_exp_from_scores
from itm_kernels.ops._pair_entropy import fused_pair_entropy
from itm_kernels.ops._unit_rows import fused_unit_rows


class Embeddings:
    """Raw embeddings, and their rows of norm 1, which are computed at first use.

    All views `[V, N, D]` are normalised in one pass. Scores are cosines, or dot products of the raw
    rows with cosine False.
    """

    def __init__(self, raw: Tensor, backend: str, cosine: bool = True) -> None:
        self.raw = raw
        self.backend, self.cosine = backend, cosine
        self._whole: Embeddings | None = None  # the tensor of views that this view belongs to
        self._index = 0
        self._unit: Tensor | None = None
        self._units: Sequence[Tensor] | None = None  # unit rows of every view

    @property
    def unit(self) -> Tensor:
        """The rows divided by their norm, in fp32 or better."""
        if self._unit is None:
            whole = self._whole
            self._unit = whole._unit_views()[self._index] if whole else self._scaled()
        return self._unit

    @property
    def is_view(self) -> bool:
        """Whether these rows are one of several views."""
        return self._whole is not None

    def unbind(self) -> list["Embeddings"]:
        """Return the views as separate objects.

        The tensor is unbound once: indexing it per view would give every view a gradient of the
        size of all views.
        """
        views = [Embeddings(view, self.backend) for view in self.raw.unbind()]
        for i, view in enumerate(views):
            view._whole, view._index = self, i
        return views

    def _unit_views(self) -> Sequence[Tensor]:
        if self._units is None:
            self._units = self._scaled().unbind()
        return self._units

    def _scaled(self) -> Tensor:
        return fused_unit_rows(self.raw, self.backend)


class LogSums(NamedTuple):
    """Logs of sums over negatives, each as two addends: their sum would round off the loss."""

    relative: Tensor  # [M] or [M, K]
    highest: Tensor  # of the same shape, without gradient


def log_sums_of_synthetic(scale: Tensor, cosine: Tensor, valid: Tensor) -> LogSums:  # [N, K]
    """Return the logit of every synthetic vector as the log-sum of one negative, or of none."""
    logits = torch.where(valid, scale * cosine, -torch.inf)
    return LogSums(logits, torch.zeros_like(logits))


def log_sums_of_noise(
    sides: Sequence[Embeddings],
    number: int,  # of noise vectors drawn from N(0, I)
    generator: torch.Generator | None,
    scale: Tensor,  # []
) -> list[LogSums]:
    """Return, for every row of each side, the log of its sum over the same noise vectors."""
    raw, backend = sides[0].raw, sides[0].backend
    wide = torch.promote_types(raw.dtype, torch.float32)
    noise = torch.empty(number, raw.shape[1], dtype=wide, device=raw.device)
    g = Embeddings(noise.normal_(generator=generator).to(raw.dtype), backend)
    found = [log_sums(side, g, scale, None, None) for side in sides]
    return [LogSums(each.row, each.row_highest) for each in found]


class Contrast(NamedTuple):
    """Per pair, the logit of the positive and the logs of both sums over negatives.

    The positive is read from the scores that are summed, so equal rows have equal logits.
    """

    positive: Tensor  # [M]
    from_image: LogSums  # [M], of the sum over texts with another id
    from_text: LogSums  # [M], of the sum over images with another id


def cross_entropy(
    positive: Tensor,  # [M]
    from_image: Sequence[LogSums],  # of sums over negatives of the image
    from_text: Sequence[LogSums],  # of sums over negatives of the text, of the same number
    weight: float,
    backend: str,
) -> Tensor:  # [M]
    """Return weight times -log softmax of the positive, summed over both directions."""
    negatives, highest = (
        torch.cat([one[None] if one.dim() == 1 else one.T for one in of_all]).unflatten(0, (2, -1))
        for of_all in zip(*from_image, *from_text, strict=True)
    )
    return fused_cross_entropy(positive, negatives, highest, weight, backend)


def ids_or_indices(pairs: Pairs, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ids of both sides; without ids, row indices serve as ids."""
    if pairs.image_ids is None or pairs.text_ids is None:
        own = torch.arange(image.shape[0], device=image.device)
        return own, own
    return pairs.image_ids, pairs.text_ids


def gather_image(logs: LogSums, pairs: Pairs) -> LogSums:
    """Gather the values `[N, ...]` of every pair's image into `[M, ...]`."""
    if pairs.positive is None:
        return logs
    rows = pairs.positive.clamp_min(0)
    return LogSums(*(values[rows] for values in logs))


def log_sums(
    x: Embeddings,  # [N, D]
    y: Embeddings,  # [M, D]
    scale: Tensor,  # []
    x_ids: Tensor | None,
    y_ids: Tensor | None,
    positive: Tensor | None = None,  # [M]
) -> RelativeSums:
    """Compute `log_sum_exp`, from raw rows where the backend computes cosines of raw rows."""
    options = scale, x_ids, y_ids, x.backend, positive
    if not x.cosine or normalises_rows(x.raw, y.raw, x.backend):
        return fused_log_sum_exp(x.raw, y.raw, *options, x.cosine)
    return fused_log_sum_exp(x.unit, y.unit, *options)


def contrast(
    image: Embeddings,  # [N, D]
    text: Embeddings,  # [M, D]
    scale: Tensor,  # []
    pairs: Pairs,
    absent: Tensor | None = None,  # [M] bool: texts that are only negatives
) -> Contrast:
    """Compute the logit of every positive and the logs of both sums over negatives."""
    ids = ids_or_indices(pairs, image.raw)
    own = ids[1] if pairs.positive is None else pairs.positive  # row indices on a diagonal
    return _of_sums(log_sums(image, text, scale, *ids, own), pairs, absent)


def contrast_from_scores(
    scores: Tensor,  # [N, M], in the place of cosines
    scale: Tensor,  # []
    pairs: Pairs,
    absent: Tensor | None,  # [M] bool: texts that are only negatives
    backend: str,
) -> Contrast:
    """Do the same for a given score matrix."""
    ids = ids_or_indices(pairs, scores)
    own = ids[1] if pairs.positive is None else pairs.positive
    found = fused_log_sum_exp_from_scores(scores, scale, *ids, own, backend)
    return _of_sums(found, pairs, absent)


def _of_sums(found: RelativeSums, pairs: Pairs, absent: Tensor | None) -> Contrast:
    # The value of a text without an image is NaN; 0 instead keeps NaN out of the gradients.
    positive = zero_absent(found.positive, absent)
    from_image = gather_image(LogSums(found.row, found.row_highest), pairs)
    return Contrast(positive, from_image, LogSums(found.column, found.column_highest))


def mean_cross_entropy(
    image: Embeddings,  # [N, D]
    text: Embeddings,  # [M, D]
    scale: Tensor,  # []
    pairs: Pairs,
    absent: Tensor | None = None,  # [M] bool: texts that are only negatives
    weight: float = 0.5,
) -> Tensor:  # [M]
    """Return weight times the sum of both directions' cross-entropies, one value per pair."""
    backend = image.backend
    if pairs.positive is None and image.cosine:
        views = image.is_view or text.is_view
        # Views use the unit rows of all views together, unless the backend computes from raw rows.
        unit = views and not normalises_rows(image.raw, text.raw, backend)
        rows = (image.unit, text.unit) if unit else (image.raw, text.raw)
        values = fused_pair_entropy(*rows, scale, weight, backend, unit)
        if values is not None:
            return values
    found = contrast(image, text, scale, pairs, absent)
    return cross_entropy_of_contrast(found, absent, weight, backend)


def cross_entropy_of_contrast(
    found: Contrast,
    absent: Tensor | None,  # [M] bool: texts that are only negatives
    weight: float,
    backend: str,
) -> Tensor:  # [M]
    """Return weight times the cross-entropies of every pair, and 0 for texts without one."""
    positive, from_image, from_text = found
    values = cross_entropy(positive, [from_image], [from_text], weight, backend)
    return zero_absent(values, absent)
