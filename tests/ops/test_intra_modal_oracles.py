"""The intra-modal constraint against its oracle: every mode, metric and threshold, in fp64."""

from __future__ import annotations

import itertools

import pytest
import torch

import oracles
from itm_kernels import losses, ops
from oracles.batches import KINDS, batch, non_contiguous
from oracles.comparing import close
from oracles.intra_modal import delta
from oracles.pairing import Array

METRICS = ["cosine", "l1", "l2", "sqeuclidean"]
SHAPES = [(1, 3), (2, 1), (2, 3), (5, 1), (5, 3), (5, 96), (33, 3), (33, 96)]


def band(x: Array, metric: str) -> tuple[float, float]:
    """Chooses bounds between two observed distances, so that rounding decides nothing."""
    values = sorted(delta(a, b, metric) for a, b in itertools.combinations(x, 2))
    distinct = [b for a, b in itertools.pairwise([-1.0, *values]) if b - a > 1e-6]
    if len(distinct) < 3:
        return 0.05, 0.5
    low, high = len(distinct) // 4, 3 * len(distinct) // 4
    return (
        (distinct[low] + distinct[low + 1]) / 2,
        (distinct[high - 1] + distinct[high]) / 2 if high > low + 1 else distinct[high] + 1.0,
    )


@pytest.mark.parametrize(("size", "dim"), SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mode", ["paper", "repel"])
def test_absolute_bounds(mode, metric, kind, size, dim) -> None:
    b = batch(kind, size, dim)
    x, ids = b.tensors[0], b.ids["image_ids"]
    lower, upper = band(b.image, metric)
    options = {"lower": lower, "upper": upper, "weight": 1.5, "mode": mode}
    expected = oracles.intra_modal(b.image, metric, ids=b.image_ids, **options)
    for given in (x, non_contiguous(x)):
        close(losses.IntraModalConstraint(metric, **options)(given, ids=ids), expected)
    for reduction in ("none", "sum", "mean"):
        loss = losses.IntraModalConstraint(metric, **options, reduction=reduction)
        close(
            loss(x, ids=ids),
            oracles.intra_modal(b.image, metric, ids=b.image_ids, **options, reduction=reduction),
        )
    close(
        ops.intra_modal_sum(x, lower, upper, metric, ids=ids),
        oracles.intra_modal_sum(b.image, lower, upper, metric, b.image_ids),
    )


@pytest.mark.parametrize(("size", "dim"), SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_official_cosine(kind, size, dim) -> None:
    """Dot products of the rows as given: unit rows, and rows of any norm."""
    b = batch(kind, size, dim)
    for rows in (b.image, oracles.normalized(b.image)):
        lower, upper = band(rows, "cosine")
        # The band of the similarity 1 - delta; with raw rows it merely selects other pairs.
        options = {"lower": lower, "upper": 1.0 - upper, "weight": 0.7, "mode": "official"}
        loss = losses.IntraModalConstraint("cosine", **options)
        expected = oracles.intra_modal(rows, "cosine", ids=b.image_ids, **options)
        close(loss(torch.tensor(rows), ids=b.ids["image_ids"]), expected)
        close(loss(non_contiguous(torch.tensor(rows)), ids=b.ids["image_ids"]), expected)


@pytest.mark.parametrize(("size", "dim"), SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", ["l1", "l2", "sqeuclidean"])
@pytest.mark.parametrize("thresholds", ["row0", "per_row"])
def test_official_distances(thresholds, metric, kind, size, dim) -> None:
    if metric == "l2" and kind == "integers":
        # Norms of roots are inexact: whether two rows' quotients tie is decided by rounding.
        kind = "diagonal"
    b = batch(kind, size, dim)
    x, ids = b.tensors[0], b.ids["image_ids"]
    # The defaults, other ranks, and a band without an upper end.
    for lower, upper in ((0.05, 0.5), (0.2, 0.8), (0.1, 1.0)):
        options = {"lower": lower, "upper": upper, "weight": 0.7, "thresholds": thresholds}
        for reduction in (None, "none", "sum", "mean"):
            expected = oracles.intra_modal(
                b.image, metric, ids=b.image_ids, **options, reduction=reduction
            )
            chosen = {} if reduction is None else {"reduction": reduction}
            loss = losses.IntraModalConstraint(metric, **options, **chosen)
            close(loss(x, ids=ids), expected)
            close(loss(non_contiguous(x), ids=ids), expected)


@pytest.mark.parametrize("kind", ["diagonal", "captions", "repeated"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mode", ["paper", "official", "repel"])
def test_imc_loss(mode, metric, kind) -> None:
    """Hinges plus both constraints, each with its own ids."""
    b = batch(kind, 5, 3)
    image, text = oracles.normalized(b.image), oracles.normalized(b.text)
    options = {"metric": metric, "lower": 0.1, "upper": 0.6, "weight": 0.5, "mode": mode}
    expected = oracles.imc(image, text, 0.3, **options, **b.oracle_ids)
    loss = losses.IMCLoss(0.3, **options)
    close(loss(torch.tensor(image), torch.tensor(text), **b.ids), expected)
    if mode == "official":
        expected = oracles.imc(image, text, 0.3, **options, thresholds="per_row", **b.oracle_ids)
        loss = losses.IMCLoss(0.3, **options, thresholds="per_row")
        close(loss(torch.tensor(image), torch.tensor(text), **b.ids), expected)
