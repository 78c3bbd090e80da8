"""Band sums over the pairs of one modality.

If the bounds are the same for all rows, the matrix is symmetric, and only tiles of the upper
triangle are computed (`_upper_triangle`). Euclidean and squared distances are stored in blocks of
rows, because those of close pairs are replaced (`_close_distances`). Official distances are divided
by the norm of their row and bounded by ranks, which need whole rows: these are also computed in
blocks of rows, as is the backward pass: it writes a weight per pair and multiplies the weights by
the rows (`_score_gradients`).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from itm_kernels.triton._distance_gradients import distance_gradient, empty_gradient
from itm_kernels.triton._launch import cdiv
from itm_kernels.triton._metrics import (
    EXPANDED,
    MetricOperands,
    metric_operands,
    weighted_differences,
    write_matrix,
)
from itm_kernels.triton._operand_gradients import gradient_of_rows
from itm_kernels.triton._operands import contiguous_rows, wide_dtype
from itm_kernels.triton._products import add_product, row_parts, weights_empty
from itm_kernels.triton._score_gradients import blocks, gradient_scale, write_score_gradients
from itm_kernels.triton._upper_triangle import (
    SIDE,
    band_sums_kernel,
    band_totals_kernel,
    stored_band_sums_kernel,
)


def intra_modal_forward(
    x: Tensor,  # [N, D]
    ids: Tensor | None,  # [N]
    metric: str,
    mode: str,
    lower: float,
    upper: float,
    per_row: bool,
    keep_mask: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the sums, bounds and norms of rows, and a bit mask of the pairs in the band.

    Words of the mask left of the diagonal are not written: their bits are those of row m. Without
    `keep_mask` the mask is empty.
    """
    N = x.shape[0]
    row, low, high, norm = (torch.empty(N, dtype=wide_dtype(x), device=x.device) for _ in range(4))
    words = (N, cdiv(N, 32)) if keep_mask else (0, 0)
    mask = torch.empty(words, dtype=torch.int32, device=x.device)
    x = contiguous_rows(x)
    if _relative(metric, mode):
        _by_rank(x, ids, metric, lower, upper, per_row, row, low, high, norm)
        return row, low, high, norm, mask
    if mode == "official":
        lower, upper = upper, 1 - lower
    bands = {
        **{"ids": x if ids is None else ids.contiguous(), "HAS_IDS": ids is not None, "N": N},
        **{"low_bound": lower, "high_bound": upper, "MODE": mode, "KEEP_MASK": keep_mask},
        **{"mask": mask, "words": words[1]},
    }
    sums = _stored_sums(x, metric, row, bands) if metric in EXPANDED else None
    if sums is None:
        found = metric_operands(x, x, _metric(metric, mode), (N, N), square=True)
        tiles = cdiv(N, found.tile.rows)
        sums = torch.empty((tiles, N), dtype=row.dtype, device=row.device)
        band_sums_kernel[(tiles * (tiles + 1) // 2,)](**found.arguments(), **bands, sums=sums)
    band_totals_kernel[(cdiv(N, 128),)](
        sums, row, low, high, norm, lower, upper, N=N, tiles=sums.shape[0], BLOCK=128
    )
    return row, low, high, norm, mask


def _stored_sums(x: Tensor, metric: str, like: Tensor, bands: dict[str, Any]) -> Tensor:
    """Return band sums of tiles from distances in memory, of which close pairs are replaced."""
    N, D = x.shape
    found = metric_operands(x, x, metric, (N, N))
    sums = torch.empty((cdiv(N, SIDE), N), dtype=like.dtype, device=like.device)
    # Half the rows that fit, so that less of the lower triangle is computed.
    for block in blocks(N, N, D, 8):
        R, M = block.stop - block.start, N - block.start
        distance = like.new_empty((R, M))
        write_matrix(found, distance, first_row=block.start, first_column=block.start)
        stored_band_sums_kernel[(cdiv(M, SIDE), cdiv(R, SIDE))](
            distance, **bands, sums=sums, first=block.start, R=R, SIDE=SIDE, num_warps=8
        )
        del distance
    return sums


def _relative(metric: str, mode: str) -> bool:
    return mode == "official" and metric != "cosine"


def _metric(metric: str, mode: str) -> str:
    # The official cosine is a dot product: it assumes unit vectors, which rows need not be.
    return "dot" if metric == "cosine" and mode == "official" else metric


def _blocks(N: int, D: int) -> Iterator[slice]:
    """Yield slices of rows whose distances to all rows take no more memory than the rows.

    Slices are aligned to tiles, so that a distance has the same bits whatever the block.
    """
    at_once = max(1, D // 128) * 128
    for first in range(0, N, at_once):
        yield slice(first, min(first + at_once, N))


def _same(ids: Tensor | None, block: slice, N: int, like: Tensor) -> Tensor:
    ids = torch.arange(N, device=like.device) if ids is None else ids
    return ids[block, None] == ids


def _by_rank(
    x: Tensor,
    ids: Tensor | None,
    metric: str,
    lower: float,
    upper: float,
    per_row: bool,
    row: Tensor,  # [N], written, as are the following
    low: Tensor,
    high: Tensor,
    norm: Tensor,
) -> None:
    """Write the band sums of D / |D_n| for bounds given as ranks, the bounds and the norms."""
    N, D = x.shape
    bounds = None
    found = metric_operands(x, x, metric, (N, N))
    for block in _blocks(N, D):
        distance = torch.empty((block.stop - block.start, N), dtype=row.dtype, device=x.device)
        write_matrix(found, distance, first_row=block.start)
        # Equal embeddings have distances of norm 0: the lower limit prevents 0 / 0.
        norm[block] = torch.linalg.vector_norm(distance, dim=1).clamp_min(1e-12)
        relative = distance.div_(norm[block, None])
        if per_row or bounds is None:
            ranked = (relative if per_row else relative[:1]).sort(1).values
            ranked = torch.nn.functional.pad(ranked, (0, 1), value=torch.inf)
            bounds = [ranked[:, min(round(bound * N), N)] for bound in (lower, upper)]
        low[block], high[block] = bounds
        inside = _inside(relative, low[block, None], high[block, None])
        inside &= ~_same(ids, block, N, x) | relative.isnan()
        row[block] = torch.where(inside, relative, 0).sum(1)


def _inside(key: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return ~((key <= low) | (key >= high))


def intra_modal_backward(
    grad: Tensor,  # [N]
    x: Tensor,
    ids: Tensor | None,
    row: Tensor,
    low: Tensor,
    high: Tensor,
    norm: Tensor,
    mask: Tensor,
    metric: str,
    mode: str,
) -> Tensor:
    """Return the gradient of x: a weight is the sum over both rows whose sums contain the pair."""
    N, kept, relative = x.shape[0], mask.shape[0] > 0, _relative(metric, mode)
    x = contiguous_rows(x)
    found = metric_operands(x, x, _metric(metric, mode), (N, N))
    known = {
        **{"SOURCE": "bits" if kept else "ranks" if relative else "bounds", "METRIC": metric},
        **{"MODE": mode, "mask": mask, "words": mask.shape[1], "low": low, "high": high},
        **{"norm": norm, "row": row, "grad": grad, "grad_stride": grad.stride(0)},
        **({} if ids is None else {"ids": ids.contiguous(), "HAS_IDS": True}),
    }
    if found.both is None:
        return _of_l1(x, found, norm, known)
    factor = found.both.x_factor
    assert factor is not None
    unit = gradient_scale(grad, norm, row if relative else None, factor, metric)
    if metric != "cosine":
        return distance_gradient(x, x, found, unit, known)
    known |= {"unit": unit, "x_factor": factor, "y_factor": factor, "FACTORS": len(factor) > 0}
    return _of_cosines(x, found, norm, known, unit, mode != "official")


def _of_cosines(
    x: Tensor,
    found: MetricOperands,
    norm: Tensor,
    known: dict[str, Any],
    unit: Tensor,
    cosine: bool,  # not a dot product
) -> Tensor:
    (N, D), kept = x.shape, known["SOURCE"] == "bits"
    assert found.both is not None
    products = norm.new_empty((N, D))
    rows, _ = row_parts(found.both, D)
    # Bytes per pair: two parts of weights, and distances.
    for block in blocks(N, N, D, 2 * x.element_size() if kept else 8):
        R = block.stop - block.start
        weights = weights_empty(R, N, x)
        if not kept:
            known["key"] = write_matrix(found, norm.new_empty((R, N)), first_row=block.start)
        write_score_gradients(weights, block.start, x, **known)
        add_product(None, weights, rows, out=products[block])
        known.pop("key", None)
        del weights
    return gradient_of_rows(x, products, unit, cosine)


def _of_l1(x: Tensor, found: MetricOperands, norm: Tensor, known: dict[str, Any]) -> Tensor:
    N, D = x.shape
    gradient = empty_gradient(x)
    known["unit"] = norm.new_ones(())
    for block in blocks(N, N, D, 8):
        weights = norm.new_empty((1, block.stop - block.start, N))
        if known["SOURCE"] != "bits":
            # In place: a program reads a distance before it writes the weight.
            known["key"] = write_matrix(found, weights[0], first_row=block.start)
        write_score_gradients(weights, block.start, x, **known)
        weighted_differences(x[block], x, weights, True, gradient[block])
        known.pop("key", None)
        del weights
    return gradient.to(x.dtype)
