"""Intra-modal constraint of one modality."""

from typing import TYPE_CHECKING

from torch import Tensor
from torch.distributed import ProcessGroup

from itm_kernels import _checks
from itm_kernels._options import (
    Backend,
    Exchange,
    Gradients,
    Metric,
    Mode,
    Reduction,
    Thresholds,
    word,
)
from itm_kernels._public import naming, public
from itm_kernels.losses._band import (
    BAND,
    EmptyBandWarning,
    check_constraint,
    default_reduction,
    warn_of_empty_band,
)
from itm_kernels.losses._module import DISTRIBUTED, SHARED, OptionsModule, check_options, spread
from itm_kernels.losses._reduction import reduce
from itm_kernels.losses.over_ranks._intra_modal import constraint_over_ranks
from itm_kernels.ops._intra_modal import fused_intra_modal

__all__ = ["EmptyBandWarning", "IntraModalConstraint", "intra_modal_constraint"]


@public
def intra_modal_constraint(
    embeddings: Tensor,
    *,
    metric: Metric = "cosine",
    lower: float = 0.05,
    upper: float = 0.5,
    weight: float = 1.0,
    mode: Mode = "official",
    thresholds: Thresholds = "row0",
    ids: Tensor | None = None,
    reduction: Reduction | None = None,
    backend: Backend = "auto",
    group: ProcessGroup | None = None,
    gradients: Gradients = "mean",
    exchange: Exchange = "auto",
) -> Tensor:
    r"""Sum the scores or distances of the pairs of one modality that lie inside a band.

    The paper's formula, its text and its code differ, hence three modes. Each sums over ordered
    pairs n != m with strict bounds:

    - `"official"`, the authors' code. Cosine: :math:`S = x x^T` of rows that the encoder has
      normalised; weight / N times the sum of S where upper < S < 1 - lower, which pushes the pairs
      apart; exact duplicates (S = 1) are outside. Distances: each row of D is divided by its
      Euclidean norm across the batch; the bounds are the values at ranks round(lower N) and
      round(upper N) of row 0, sorted ascending (a rank of N or more means no bound).
    - `"paper"`, eq. 4: weight times the sum of :math:`\delta` where lower < delta < upper.
      Minimising it pulls the banded pairs together. With unit vectors of D = 1024, l1 distances
      are near 36: the printed bounds select nothing.
    - `"repel"`, the paper's text: weight / N times the sum of :math:`[upper - \delta]_+`
      where :math:`\delta` > lower.

    Args:
        embeddings: `[N, D]`, one modality.
        metric: `"cosine"` (delta = 1 - cos), `"l1"` (sum, not mean), `"l2"`, or `"sqeuclidean"`
            (the paper's MSD).
        lower: lower bound: a distance, or for official distances a fraction of the batch. The
            official band of cosines is upper < cosine < 1 - lower, as in the authors' code.
        upper: upper bound, in the same unit; above lower in the modes "paper" and "repel".
        weight: factor of the constraint.
        mode: `"official"`, `"paper"` or `"repel"`.
        thresholds: official distances only: `"row0"`, which depends on the first sample of the
            batch, or `"per_row"`, each row's own ranks (our addition, independent of the order).
        ids: `[N]` integers; rows that share an id are not a pair (ranks and norms include them).
        reduction: `None` selects the mode's own, "sum" for "paper" and "mean" (1 / N) for the
            others; `"none"` returns one value per row, `[N]`.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.
        group: a process group over whose ranks the batch is spread: every rank passes its own rows
            and gets the loss of the global batch (`itm_kernels.distributed`). None: this process
            holds the batch.
        gradients: with a group, `"mean"` multiplies gradients by the number of ranks, for trainers
            that average them (DistributedDataParallel, FSDP); `"sum"` does not.
        exchange: with a group, `"gather"`, `"ring"` or `"auto"`: how rows travel. Rows of official
            distances are always gathered.

    Returns:
        The constraint, in fp32 for fp16 and bf16 inputs. The bounds carry no gradient. With a
        group, `"none"` returns the values of this rank's rows, and row 0 is that of the global
        batch. Rank 0 of the group warns of a band that is empty on all ranks.

    Raises:
        TypeError: embeddings is not a floating-point tensor, or ids are not integers.
        ValueError: shapes or options do not fit.
        RuntimeError: the requested backend cannot run here.

    Source: Chen et al., Intra-modal constraint loss, 2022, eqs 4-8, and its code. Eq. 8 prints
    the root inside the sum, which would be l1 again.

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    >>> intra_modal_constraint(x)
    tensor(0.9333)
    """
    agreement = spread(group, gradients, exchange)
    if agreement is not None:
        band = metric, lower, upper, weight, mode, thresholds
        return constraint_over_ranks(embeddings, ids, *band, reduction, backend, agreement)
    _checks.embeddings(embeddings=embeddings)
    check_constraint(metric, lower, upper, weight, mode, thresholds)
    reduction = default_reduction(mode) if reduction is None else reduction
    check_options(reduction, backend)
    if ids is not None:
        _checks.identifiers("ids", ids, embeddings.shape[0], embeddings)
    values = fused_intra_modal(
        embeddings, ids, metric, mode, lower, upper, thresholds == "per_row", backend
    )
    bounds = {"metric": metric, "mode": mode, "lower": lower, "upper": upper}
    warn_of_empty_band("intra_modal_constraint", "embeddings", values, weight, **bounds)
    return reduce(float(weight) * values, reduction)


class IntraModalConstraint(OptionsModule):
    """Intra-modal constraint as a Module; `functional.intra_modal_constraint` has the formulas.

    Rows are not normalised, but the modes "paper" and "repel" compute true cosines of any rows.
    Options are attributes: they may be changed between steps, and are checked when they are set.
    Bounds that contradict each other raise ValueError at the next call.

    Args:
        metric: `"cosine"`, `"l1"`, `"l2"` or `"sqeuclidean"`.
        lower: lower bound of the band: a distance (1 - cosine; the official band of cosines is
            upper < cosine < 1 - lower), or for official distances a fraction of the batch.
        upper: upper bound of the band, in the same unit.
        weight: factor of the constraint.
        mode: `"official"`, `"paper"` or `"repel"`.
        thresholds: `"row0"` or `"per_row"`, for official distances.
        reduction: None selects the mode's own, "sum" for "paper" and "mean" for the others;
            `"none"` returns one value per row, `[N]`.
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
    >>> IntraModalConstraint("l1", mode="paper", upper=5.0)(torch.eye(4))
    tensor(24.)
    """

    checks = {
        **BAND,
        "reduction": word(Reduction, optional=True),
        "backend": SHARED["backend"],
        **DISTRIBUTED,
    }
    metric: Metric
    lower: float
    upper: float
    weight: float
    mode: Mode
    thresholds: Thresholds
    reduction: Reduction | None
    backend: Backend

    def __init__(
        self,
        metric: Metric = "cosine",
        *,
        lower: float = 0.05,
        upper: float = 0.5,
        weight: float = 1.0,
        mode: Mode = "official",
        thresholds: Thresholds = "row0",
        reduction: Reduction | None = None,
        backend: Backend = "auto",
        group: ProcessGroup | None = None,
        gradients: Gradients = "mean",
        exchange: Exchange = "auto",
    ) -> None:
        with naming("IntraModalConstraint"):
            check_constraint(metric, lower, upper, weight, mode, thresholds)
        super().__init__(
            metric=metric,
            lower=lower,
            upper=upper,
            weight=weight,
            mode=mode,
            thresholds=thresholds,
            reduction=reduction,
            backend=backend,
            group=group,
            gradients=gradients,
            exchange=exchange,
        )

    @public
    def forward(
        self,
        embeddings: Tensor,  # [N, D]
        *,
        ids: Tensor | None = None,
    ) -> Tensor:
        """Return the constraint of one modality."""
        return intra_modal_constraint(embeddings, ids=ids, **self.options)

    if TYPE_CHECKING:
        __call__ = forward
