"""IMC loss: max of hinges plus the intra-modal constraint of both modalities."""

from typing import TYPE_CHECKING

from torch import Tensor
from torch.distributed import ProcessGroup

from itm_kernels import _checks, _positives
from itm_kernels._options import (
    Backend,
    Exchange,
    Gradients,
    Metric,
    Mode,
    Thresholds,
    Unmatched,
    number,
)
from itm_kernels._public import naming, public
from itm_kernels.losses._band import BAND, check_constraint, default_reduction, warn_of_empty_band
from itm_kernels.losses._module import DISTRIBUTED, SHARED, OptionsModule, check_options, spread
from itm_kernels.losses._reduction import nan_where_mistaken, reduce, zero_absent
from itm_kernels.losses._score_matrix import embeddings_of_scores, pairs_of_scores
from itm_kernels.losses.over_ranks._imc import imc_over_ranks
from itm_kernels.ops._imc import Band, fused_imc, fused_imc_total
from itm_kernels.ops._intra_modal import fused_intra_modal
from itm_kernels.ops._max_of_hinges import fused_max_of_hinges
from itm_kernels.ops._max_of_hinges_from_scores import fused_max_of_hinges_from_scores


@public
def imc_loss(
    image: Tensor,
    text: Tensor,
    *,
    margin: float = 0.2,
    metric: Metric = "cosine",
    lower: float = 0.05,
    upper: float = 0.5,
    weight: float = 1.0,
    mode: Mode = "official",
    thresholds: Thresholds = "row0",
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    unmatched: Unmatched = "error",
    backend: Backend = "auto",
    group: ProcessGroup | None = None,
    gradients: Gradients = "mean",
    exchange: Exchange = "auto",
) -> Tensor:
    r"""Compute the max of hinges plus the intra-modal constraints of images and of texts.

    .. math:: L = L_{MH}(image, text) + IMC(image) + IMC(text)

    Args:
        image: `[N, D]` embeddings; the official cosine expects rows normalised by the encoder.
        text: `[M, D]` embeddings; M = N without ids.
        margin: margin of the hinges, in units of the score.
        metric: as in `intra_modal_constraint`, like all options down to thresholds.
        lower: lower bound of the band; the official band of cosines is upper < cosine < 1 - lower.
        upper: upper bound of the band.
        weight: factor of both constraints.
        mode: `"official"`, `"paper"` or `"repel"`.
        thresholds: `"row0"` or `"per_row"`.
        image_ids: `[N]` integers. Rows that share an id are never negatives, in any term.
        text_ids: `[M]` integers, each the id of exactly one image.
        unmatched: `"error"`, or `"negative"`: a text without an image is a negative of every image
            in the hinges and forms no pair; the constraint of texts includes it like any other.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.
        group: a process group over whose ranks the batch is spread: every rank passes its own rows
            and gets the loss of the global batch (`itm_kernels.distributed`). None: this process
            holds the batch.
        gradients: with a group, `"mean"` multiplies gradients by the number of ranks, for trainers
            that average them (DistributedDataParallel, FSDP); `"sum"` does not.
        exchange: with a group, `"gather"`, `"ring"` or `"auto"`: how rows travel. Rows of official
            distances are always gathered.

    Returns:
        The loss: the sum of hinges over pairs plus both constraints.

    Raises:
        TypeError: an argument is not a floating-point tensor, or ids are not integers.
        ValueError: shapes, devices, ids or options do not fit.
        RuntimeError: the requested backend cannot run here.

    Source: Chen et al., Intra-modal constraint loss, 2022, eq. 3.

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    >>> imc_loss(x, x)
    tensor(1.8667)
    """
    agreement = spread(group, gradients, exchange)
    if agreement is not None:
        bounded = metric, lower, upper, weight, mode, thresholds
        matched = image_ids, text_ids, unmatched
        return imc_over_ranks(image, text, margin, *bounded, *matched, backend, agreement)
    image, text = _checks.embeddings(image=image, text=text)
    _checks.number("margin", margin)
    check_constraint(metric, lower, upper, weight, mode, thresholds)
    check_options("sum", backend)
    pairs, absent, mistaken = _positives.match(image, text, image_ids, text_ids, unmatched)
    if absent is None and (metric, mode) == ("cosine", "official"):
        options = float(margin), float(lower), float(upper), float(weight)
        total = fused_imc_total(image, text, pairs, *options, backend)
        if total is not None:
            return total
    bounded = metric, lower, upper, weight, mode, thresholds
    if absent is None and mistaken is None:
        mean, per_row = default_reduction(mode) == "mean", thresholds == "per_row"
        band = Band(metric, mode, float(lower), float(upper), per_row, float(weight), mean)
        found = fused_imc(image, text, pairs, float(margin), band, backend)
        if found is not None:
            bounds = {"metric": metric, "mode": mode, "lower": lower, "upper": upper}
            for side, values in zip(("image", "text"), found[1:], strict=True):
                warn_of_empty_band("imc_loss", side, values, weight, **bounds)
            return found[0]
    hinges = fused_max_of_hinges(image, text, pairs, float(margin), False, backend)
    hinges = nan_where_mistaken(zero_absent(hinges, absent), mistaken, image, text)
    return _with_constraints(hinges.sum(), image, text, pairs, *bounded, backend)


def _with_constraints(
    loss: Tensor,  # []
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    pairs: _positives.Pairs,
    metric: Metric,
    lower: float,
    upper: float,
    weight: float,
    mode: Mode,
    thresholds: Thresholds,
    backend: Backend,
) -> Tensor:  # []
    """Add the constraints of both modalities to a loss."""
    band = metric, mode, lower, upper, thresholds == "per_row", backend
    bounds = {"metric": metric, "mode": mode, "lower": lower, "upper": upper}
    sides = ("image", image, pairs.image_ids), ("text", text, pairs.text_ids)
    for side, rows, ids in sides:
        values = fused_intra_modal(rows, ids, *band)
        warn_of_empty_band("imc_loss", side, values, weight, **bounds)
        loss = loss + float(weight) * reduce(values, default_reduction(mode))
    return loss


class IMCLoss(OptionsModule):
    """Max of hinges plus intra-modal constraints; `functional.imc_loss` has the formula.

    Rows are not normalised; the result is the sum over pairs plus both constraints. The default
    bounds are the authors'. They select cosines between .5 and .95. Unrelated rows of hundreds of
    dimensions have no such cosines, so the constraint is 0 until the embeddings become similar (a
    warning is issued once; `itm_kernels.diagnostics` returns the share of pairs in the band).
    Options are attributes: they may be changed between steps, and are checked when they are set.
    Bounds that contradict each other raise ValueError at the next call.

    Args:
        margin: margin of the hinges, in units of the score.
        metric: `"cosine"`, `"l1"`, `"l2"` or `"sqeuclidean"`.
        lower: lower bound of the band: a distance (1 - cosine; the official band of cosines is
            upper < cosine < 1 - lower), or for official distances a fraction of the batch.
        upper: upper bound of the band, in the same unit.
        weight: factor of both constraints.
        mode: `"official"`, `"paper"` or `"repel"`.
        thresholds: `"row0"` or `"per_row"`, for official distances.
        unmatched: `"error"` raises ValueError for a text without an image; `"negative"` makes the
            text a negative of every image, without a pair of its own.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.
        group: a process group over whose ranks the batch is spread (`itm_kernels.distributed`), or
            None.
        gradients: with a group, `"mean"` for trainers that average gradients over ranks, or
            `"sum"`.
        exchange: with a group, `"gather"`, `"ring"` or `"auto"`: how rows travel.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range.

    >>> import torch
    >>> image = torch.eye(4, requires_grad=True)
    >>> loss = IMCLoss(metric="l2", thresholds="per_row")(image, torch.eye(4))
    >>> loss.backward()
    """

    checks = {
        "margin": number(),
        **BAND,
        "unmatched": SHARED["unmatched"],
        "backend": SHARED["backend"],
        **DISTRIBUTED,
    }
    margin: float
    metric: Metric
    lower: float
    upper: float
    weight: float
    mode: Mode
    thresholds: Thresholds
    unmatched: Unmatched = "error"
    backend: Backend

    def __init__(
        self,
        margin: float = 0.2,
        *,
        metric: Metric = "cosine",
        lower: float = 0.05,
        upper: float = 0.5,
        weight: float = 1.0,
        mode: Mode = "official",
        thresholds: Thresholds = "row0",
        unmatched: Unmatched = "error",
        backend: Backend = "auto",
        group: ProcessGroup | None = None,
        gradients: Gradients = "mean",
        exchange: Exchange = "auto",
    ) -> None:
        with naming("IMCLoss"):
            check_constraint(metric, lower, upper, weight, mode, thresholds)
        super().__init__(
            margin=margin,
            metric=metric,
            lower=lower,
            upper=upper,
            weight=weight,
            mode=mode,
            thresholds=thresholds,
            unmatched=unmatched,
            backend=backend,
            group=group,
            gradients=gradients,
            exchange=exchange,
        )

    @public
    def forward(
        self,
        image: Tensor,  # [N, D]
        text: Tensor,  # [M, D]
        *,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch of embeddings."""
        return imc_loss(image, text, image_ids=image_ids, text_ids=text_ids, **self.options)

    @public
    def from_scores(
        self,
        scores: Tensor,  # [N, M]
        image: Tensor,  # [N, D]
        text: Tensor,  # [M, D]
        *,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the hinges of a score matrix plus the constraints of pooled embeddings."""
        pairs, absent, mistaken = pairs_of_scores(
            scores, image_ids, text_ids, self.unmatched, self.group
        )
        bounded = self.metric, self.lower, self.upper, self.weight, self.mode, self.thresholds
        check_constraint(*bounded)
        image, text = embeddings_of_scores(scores, image, text)
        hinges = scores, pairs, float(self.margin), False, self.backend
        values = fused_max_of_hinges_from_scores(*hinges)
        values = nan_where_mistaken(zero_absent(values, absent), mistaken, scores)
        return _with_constraints(values.sum(), image, text, pairs, *bounded, self.backend)

    if TYPE_CHECKING:
        __call__ = forward
