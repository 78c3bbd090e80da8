"""Intra-modal constraint over the ranks of a process group.

Every rank gathers the rows of all ranks and sums over the pairs of its own rows: N^2 / W scores,
in blocks of rows that the backward pass computes again. The memory of a rank is O(N D) and a block.
Rows are gathered with either `exchange`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from itm_kernels import _checks, reference
from itm_kernels._autocast import outside_autocast
from itm_kernels._options import Metric, Mode, Reduction, Thresholds
from itm_kernels.distributed._agreement import Agreement
from itm_kernels.distributed._collectives import attached, gather_rows
from itm_kernels.distributed._side import Side
from itm_kernels.losses._band import check_constraint, default_reduction, warn_of_empty_band
from itm_kernels.losses._module import check_options
from itm_kernels.losses.over_ranks._batch import reduce_over_ranks
from itm_kernels.ops._similarity import fused_similarity
from itm_kernels.reference._precision import wide

_SCORES_AT_ONCE = 1 << 20  # more, if the inputs take more memory


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
    everyone = gather_rows(embeddings, side)
    all_ids = all_ids_of(ids, side, embeddings.device)
    options = metric, mode, float(lower), float(upper), thresholds == "per_row", backend
    values = constraint_values(everyone, all_ids, side, *options)
    bounds = {"metric": metric, "mode": mode, "lower": lower, "upper": upper}
    function = "intra_modal_constraint"
    warn_of_empty_bands(function, {"embeddings": (values, side)}, weight, **bounds)
    return reduce_over_ranks(float(weight) * values, reduction, side, side.total)


def all_ids_of(ids: Tensor | None, side: Side, device: torch.device) -> Tensor:  # [N]
    """Return the ids of all ranks; without ids, the indices of the global batch."""
    if ids is None:
        return torch.arange(side.total, device=device)
    return side.gather(ids.to(device, torch.int64))


def constraint_values(
    x: Tensor,  # [N, D], the rows of all ranks
    ids: Tensor,  # [N]
    side: Side,
    metric: str,
    mode: str,
    lower: float,
    upper: float,
    per_row: bool,
    backend: str,
) -> Tensor:  # [n]
    """Return the sums of this rank's rows over their pairs in the global batch."""
    if not side.counts[side.rank]:
        return attached(wide(x.new_empty(0)), x)

    def score(rows: Tensor, columns: Tensor, metric: str) -> Tensor:
        return fused_similarity(wide(rows), wide(columns), metric, backend)

    @outside_autocast
    def sums(x: Tensor, block: slice) -> Tensor:
        return reference.intra_modal(x, ids, metric, mode, lower, upper, per_row, block, score)

    return _InBlocks.apply(x, sums, tuple(_blocks(side.own, *x.shape)))


class _InBlocks(torch.autograd.Function):
    """Concatenates a function of blocks of rows; the backward pass computes it again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, function: Callable[[Tensor, slice], Tensor], blocks: tuple[slice, ...]
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.options = function, blocks
        return torch.cat([function(x, block) for block in blocks])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        function, blocks = ctx.options
        x = ctx.saved_tensors[0].detach().requires_grad_()
        grad_x = torch.zeros_like(x)
        for block, upstream in zip(
            blocks, grad.split([b.stop - b.start for b in blocks]), strict=True
        ):
            with torch.enable_grad():
                values = function(x, block)
            grad_x += torch.autograd.grad(values, x, upstream)[0]
        return grad_x, None, None


def _blocks(own: slice, N: int, D: int) -> Iterator[slice]:
    """Split rows into blocks whose scores take no more memory than the inputs, or 2^20 numbers."""
    at_once = max(D, _SCORES_AT_ONCE // N)
    for first in range(own.start, own.stop, at_once):
        yield slice(first, min(first + at_once, own.stop))


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
