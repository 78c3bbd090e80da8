"""Intra-modal constraint over the ranks of a process group.

Every rank sums over the pairs of its own rows with all rows: N^2 / W scores, in blocks of rows that
the backward pass computes again. Rows are gathered, or travel around a ring. Official distances are
always gathered: their bounds are ranks among all distances of a row.
"""

import torch
from torch import Tensor

from itm_kernels import _checks, reference
from itm_kernels._options import Metric, Mode, Reduction, Thresholds
from itm_kernels._policies import goes_round
from itm_kernels.distributed._agreement import Agreement
from itm_kernels.distributed._collectives import attached, gather_rows
from itm_kernels.distributed._side import Side
from itm_kernels.losses._band import check_constraint, default_reduction, warn_of_empty_band
from itm_kernels.losses._module import check_options
from itm_kernels.losses.over_ranks._batch import reduce_over_ranks
from itm_kernels.losses.over_ranks._in_blocks import blocks_of, in_blocks, scores_of
from itm_kernels.losses.over_ranks._intra_modal_around import constraint_values_around
from itm_kernels.reference._precision import wide


def constraint_over_ranks(
    embeddings: Tensor,  # [n, D]
    ids: Tensor | None,  # [n]
    metric: Metric,
    lower: float,
    upper: float,
    weight: float,
    mode: Mode,
    thresholds: Thresholds,
    reduction: Reduction | None,
    backend: str,
    agreement: Agreement,
) -> Tensor:
    """Compute `intra_modal_constraint` of the global batch."""
    with agreement:
        (embeddings,) = _checks.rows_of_a_rank(embeddings=embeddings)
        check_constraint(metric, lower, upper, weight, mode, thresholds)
        reduction = default_reduction(mode) if reduction is None else reduction
        check_options(reduction, backend)
        if ids is not None:
            _checks.identifiers("ids", ids, embeddings.shape[0], embeddings)
        agreement.describe(
            "intra_modal_constraint",
            {"embeddings": embeddings},
            {"ids": ids},
            metric=metric,
            mode=mode,
            lower=float(lower),
            upper=float(upper),
            weight=float(weight),
            thresholds=thresholds,
            reduction=reduction,
        )
    side = agreement.sides["embeddings"]
    (embeddings,) = agreement.entering(embeddings)
    ring = goes_round(agreement.exchange, side.total, embeddings)
    rows = gather_rows(embeddings, side) if gathers(metric, mode, ring) else embeddings
    all_ids = all_ids_of(ids, side, embeddings.device)
    options = metric, mode, float(lower), float(upper), thresholds == "per_row", backend, ring
    values = constraint_values(rows, all_ids, side, *options)
    bounds = {"metric": metric, "mode": mode, "lower": lower, "upper": upper}
    function = "intra_modal_constraint"
    warn_of_empty_bands(function, {"embeddings": (values, side)}, weight, **bounds)
    return reduce_over_ranks(float(weight) * values, reduction, side, side.total)


def all_ids_of(ids: Tensor | None, side: Side, device: torch.device) -> Tensor:  # [N]
    """Return the ids of all ranks; without ids, the indices of the global batch."""
    if ids is None:
        return torch.arange(side.total, device=device)
    return side.gather(ids.to(device, torch.int64))


def gathers(metric: str, mode: str, ring: bool) -> bool:
    """Return whether a rank needs the rows of all ranks."""
    return not ring or (mode == "official" and metric != "cosine")


def constraint_values(
    x: Tensor,  # [N, D], the rows of all ranks; or [n, D], of this rank, for the ring
    ids: Tensor,  # [N]
    side: Side,
    metric: str,
    mode: str,
    lower: float,
    upper: float,
    per_row: bool,
    backend: str,
    ring: bool,
) -> Tensor:  # [n]
    """Return the sums of this rank's rows over their pairs in the global batch."""
    if not gathers(metric, mode, ring):
        return constraint_values_around(x, ids, side, metric, mode, lower, upper, backend)
    if not side.counts[side.rank]:
        return attached(wide(x.new_empty(0)), x)
    score = scores_of(backend)

    def sums(block: slice, x: Tensor) -> Tensor:
        return reference.intra_modal(x, ids, metric, mode, lower, upper, per_row, block, score)

    return in_blocks(sums, blocks_of(side.own, *x.shape), x)


def warn_of_empty_bands(
    function: str,
    sides: dict[str, tuple[Tensor, Side]],  # name -> values of this rank, and their side
    weight: float,
    **bounds: object,
) -> None:
    """Warn on rank 0 of constraints whose band is empty on all ranks."""
    found = torch.stack([values.detach().any() for values, _ in sides.values()])
    if not _checks.can_read(found):
        return
    some_side = next(iter(sides.values()))[1]
    found = some_side.every(found.byte()).any(0)
    if some_side.rank == 0:
        for (name, (_, side)), some in zip(sides.items(), found, strict=True):
            warn_of_empty_band(function, name, some.expand(side.total), weight, **bounds)
