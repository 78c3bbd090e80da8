"""The softmax over a batch that the contrastive losses share, in both directions."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from itm_kernels._positives import Pairs
from itm_kernels.losses._reduction import zero_absent
from itm_kernels.ops._cross_entropy import fused_cross_entropy
from itm_kernels.ops._log_sum_exp import RelativeSums, fused_log_sum_exp, normalises_rows
from itm_kernels.ops._pair_entropy import fused_pair_entropy
from itm_kernels.ops._unit_rows import fused_unit_rows


class Rows:
    """Embeddings as they came, and scaled to length 1 once something asks for that.

    Views `[V, N, D]` are scaled in one pass over all of them. Scores are cosines, or with cosine
    False dot products of the rows as they are.
    """

    def __init__(self, raw: Tensor, function: str, backend: str, cosine: bool = True) -> None:
        self.raw = raw
        self.function, self.backend, self.cosine = function, backend, cosine
        self._whole: Rows | None = None  # whose view this is
        self._index = 0
        self._unit: Tensor | None = None
        self._units: Sequence[Tensor] | None = None  # of views

    @property
    def unit(self) -> Tensor:
        """Rows of length 1, in fp32 or better."""
        if self._unit is None:
            whole = self._whole
            self._unit = whole._unit_views()[self._index] if whole else self._scaled()
        return self._unit

    @property
    def is_view(self) -> bool:
        """Whether these rows are one of several views."""
        return self._whole is not None

    def unbind(self) -> list["Rows"]:
        """Return views one by one.

        They are taken apart once: every view picked by its index would have a gradient of all
        views' size.
        """
        views = [Rows(view, self.function, self.backend) for view in self.raw.unbind()]
        for i, view in enumerate(views):
            view._whole, view._index = self, i
        return views

    def _unit_views(self) -> Sequence[Tensor]:
        if self._units is None:
            self._units = self._scaled().unbind()
        return self._units

    def _scaled(self) -> Tensor:
        return fused_unit_rows(self.raw, self.function, self.backend)


class Logs(NamedTuple):
    """Logs of sums over negatives, in two numbers: their sum has lost the digits of a loss."""

    relative: Tensor  # [M] or [M, K]
    highest: Tensor  # of the same shape, without gradient


def logs_of_each(scale: Tensor, cosine: Tensor, valid: Tensor) -> Logs:  # [N, K]
    """Return the logit of every synthetic vector: sums of one negative each, or of none."""
    logits = torch.where(valid, scale * cosine, -torch.inf)
    return Logs(logits, torch.zeros_like(logits))


def logs_of_noise(
    sides: Sequence[Rows],
    number: int,  # of vectors N(0, I)
    generator: torch.Generator | None,
    scale: Tensor,  # []
) -> list[Logs]:
    """Return the log of the sum over the same noise vectors for every row of each side."""
    raw, function, backend = sides[0].raw, sides[0].function, sides[0].backend
    wide = torch.promote_types(raw.dtype, torch.float32)
    noise = torch.empty(number, raw.shape[1], dtype=wide, device=raw.device)
    g = Rows(noise.normal_(generator=generator).to(raw.dtype), function, backend)
    found = [sums(side, g, scale, None, None) for side in sides]
    return [Logs(each.row, each.row_highest) for each in found]


class Contrast(NamedTuple):
    """Per pair: the logit of the positive, and the log of the negatives' sum on both sides.

    The positive is an entry of the scores that were summed: equal rows have equal logits.
    """

    positive: Tensor  # [M]
    from_image: Logs  # [M] of the sum over texts with another id
    from_text: Logs  # [M] of the sum over images with another id


def cross_entropy(
    positive: Tensor,  # [M]
    from_image: Sequence[Logs],  # of sums over negatives of the image
    from_text: Sequence[Logs],  # as many of the text
    weight: float,
    function: str,
    backend: str,
) -> Tensor:  # [M]
    """Return -log softmax of the positive, the two directions added, times a weight."""
    negatives, highest = (
        torch.cat([one[None] if one.dim() == 1 else one.T for one in of_all]).unflatten(0, (2, -1))
        for of_all in zip(*from_image, *from_text, strict=True)
    )
    return fused_cross_entropy(positive, negatives, highest, weight, function, backend)


def ids_of(pairs: Pairs, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ids of both sides; the pairs of a diagonal are numbered."""
    if pairs.image_ids is None or pairs.text_ids is None:
        own = torch.arange(image.shape[0], device=image.device)
        return own, own
    return pairs.image_ids, pairs.text_ids


def of_image(logs: Logs, pairs: Pairs) -> Logs:
    """Take, for every pair `[M, ...]`, what belongs to its image from `[N, ...]`."""
    if pairs.positive is None:
        return logs
    rows = pairs.positive.clamp_min(0)
    return Logs(*(values[rows] for values in logs))


def sums(
    x: Rows,  # [N, D]
    y: Rows,  # [M, D]
    scale: Tensor,  # []
    x_ids: Tensor | None,
    y_ids: Tensor | None,
    positive: Tensor | None = None,  # [M]
) -> RelativeSums:
    """Compute `log_sum_exp` of rows, whose cosines are formed of raw rows where a backend can."""
    options = scale, x_ids, y_ids, x.function, x.backend, positive
    if not x.cosine or normalises_rows(x.raw, y.raw, x.function, x.backend):
        return fused_log_sum_exp(x.raw, y.raw, *options, x.cosine)
    return fused_log_sum_exp(x.unit, y.unit, *options)


def contrast(
    image: Rows,  # [N, D]
    text: Rows,  # [M, D]
    scale: Tensor,  # []
    pairs: Pairs,
    absent: Tensor | None = None,  # [M] bool: texts that are negatives only
) -> Contrast:
    """Compute the logit of every positive and both sums over negatives."""
    ids = ids_of(pairs, image.raw)
    own = ids[1] if pairs.positive is None else pairs.positive  # a diagonal's numbers are its rows
    found = sums(image, text, scale, *ids, own)
    # A text without an image has NaN here: 0 in its place keeps NaN out of every gradient.
    positive = zero_absent(found.positive, absent)
    from_image = of_image(Logs(found.row, found.row_highest), pairs)
    return Contrast(positive, from_image, Logs(found.column, found.column_highest))


def mean_cross_entropy(
    image: Rows,  # [N, D]
    text: Rows,  # [M, D]
    scale: Tensor,  # []
    pairs: Pairs,
    absent: Tensor | None = None,  # [M] bool: texts that are negatives only
    weight: float = 0.5,
) -> Tensor:  # [M]
    """Return the cross-entropies of both directions, added, times a weight: one value per pair."""
    function, backend = image.function, image.backend
    views = image.is_view or text.is_view
    # Views are scaled all together: of them the unit rows, unless a backend asks for none.
    raw = views and normalises_rows(image.raw, text.raw, function, backend)
    if pairs.positive is None and image.cosine and not raw:
        rows = (image.unit, text.unit) if views else (image.raw, text.raw)
        values = fused_pair_entropy(*rows, scale, weight, function, backend, unit=views)
        if values is not None:
            return values
    positive, *negatives = contrast(image, text, scale, pairs, absent)
    from_image, from_text = ([logs] for logs in negatives)
    values = cross_entropy(positive, from_image, from_text, weight, function, backend)
    return zero_absent(values, absent)
