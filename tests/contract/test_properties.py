"""Properties of every batch: symmetries, invariances, propagation of NaN and Inf."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import oracles
from itm_kernels import losses
from oracles import comparing
from oracles.batches import batch

close = functools.partial(comparing.close, rtol=1e-8, atol=1e-10)

# Derandomised, so that a run on another day tries the same batches.
SOME = settings(max_examples=25, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)
ROWS = st.integers(1, 7)
METRICS = ["cosine", "l1", "l2", "sqeuclidean"]

HINGES = {
    "sum_of_hinges": losses.SumOfHingesLoss(0.3),
    "max_of_hinges": losses.MaxOfHingesLoss(0.3),
    "max_of_hinges_semihard": losses.MaxOfHingesLoss(0.3, mining="semihard"),
}
CONTRASTIVE = {
    "info_nce": losses.InfoNCELoss(5.0),
    "sigmoid": losses.SigmoidLoss(5.0, -3.0),
    "info_cmr_plain": losses.InfoCMRLoss(0.3, num_clusters=0, num_noise=0),
}
# One cluster: its members do not depend on where k-means starts.
SYNTHESIS = {
    f"info_cmr_{weights}_{clustering}": losses.InfoCMRLoss(
        0.3, num_clusters=1, sigma=0.5, weights=weights, clustering=clustering, num_noise=0
    )
    for weights in ("kam", "attention")
    for clustering in ("shared", "per_anchor")
}
# Bounds between which the distances of unit rows lie.
BANDS = {"cosine": (0.2, 0.9), "l1": (0.2, 1.5), "l2": (0.2, 1.2), "sqeuclidean": (0.2, 1.5)}
BAND_OF_ROWS = {
    f"imc_{metric}_{mode}": losses.IMCLoss(
        0.3, metric=metric, lower=BANDS[metric][0], upper=BANDS[metric][1], mode=mode
    )
    for metric, mode in itertools.product(METRICS, ["paper", "repel"])
}
RANKED = {
    f"imc_{metric}_{thresholds}": losses.IMCLoss(
        0.3,
        metric=metric,
        lower=0.1,
        upper=0.3 if metric == "cosine" else 0.8,
        thresholds=thresholds,
    )
    for metric, thresholds in itertools.product(METRICS, ["row0", "per_row"])
}
ORDER_FREE = {
    **HINGES,
    **CONTRASTIVE,
    **SYNTHESIS,
    **BAND_OF_ROWS,
    # Thresholds from row 0 depend on which sample comes first; the cosine band has none.
    **{n: loss for n, loss in RANKED.items() if not n.endswith("row0") or "cosine" in n},
}
EVERY_LOSS = {**ORDER_FREE, **RANKED}
CONSTRAINTS = {
    f"{metric}_{mode}": losses.IntraModalConstraint(metric, mode=mode)
    for metric, mode in itertools.product(METRICS, ["paper", "official", "repel"])
}


def unit_batch(seed: int, size: int, dim: int = 3) -> tuple[Tensor, Tensor]:
    """Draws unit rows: all cosines, distances and bands are met."""
    b = batch("diagonal", size, dim, seed)
    return torch.tensor(oracles.normalized(b.image)), torch.tensor(oracles.normalized(b.text))


def check_order(loss: Callable[..., Tensor], seed: int, size: int, ids: Tensor | None) -> None:
    """Reorders the pairs of a batch, then compares."""
    image, text = unit_batch(seed, size)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    before = loss(image, text, image_ids=ids, text_ids=ids)
    shuffled = None if ids is None else ids[order]
    after = loss(image[order], text[order], image_ids=shuffled, text_ids=shuffled)
    close(after, before, rtol=1e-7)


@pytest.mark.parametrize("name", ORDER_FREE)
@SOME
@given(seed=SEEDS, size=ROWS)
def test_the_order_of_the_pairs_does_not_matter(name, seed, size) -> None:
    check_order(ORDER_FREE[name], seed, size, None)
    ids = torch.tensor(np.random.default_rng(seed).integers(0, 4, size))
    check_order(ORDER_FREE[name], seed, size, ids)


@pytest.mark.parametrize("metric", ["l1", "l2", "sqeuclidean"])
def test_row0_thresholds_depend_on_the_first_sample(metric) -> None:
    """The published code's bounds are those of whichever sample comes first."""
    loss = losses.IntraModalConstraint(metric)
    x, _ = unit_batch(0, 9)
    rotations = [loss(x.roll(shift, 0)).item() for shift in range(9)]
    assert max(rotations) - min(rotations) > 1e-3
    tail = torch.tensor([0, 3, 1, 2, 8, 7, 6, 5, 4])
    close(loss(x[tail]), loss(x))


@pytest.mark.parametrize("name", {**HINGES, **CONTRASTIVE, **SYNTHESIS})
@SOME
@given(seed=SEEDS, size=ROWS)
def test_the_modalities_may_be_exchanged(name, seed, size) -> None:
    image, text = unit_batch(seed, size)
    loss = EVERY_LOSS[name]
    close(loss(text, image), loss(image, text))
    ids = torch.tensor(np.random.default_rng(seed).integers(0, 4, size))
    found = loss(text, image, image_ids=ids, text_ids=ids)
    close(found, loss(image, text, image_ids=ids, text_ids=ids))


@pytest.mark.parametrize("name", HINGES)
@SOME
@given(seed=SEEDS, size=ROWS, shift=st.floats(-50, 50), factor=st.floats(0.01, 100))
def test_scores_may_be_shifted_and_scaled(name, seed, size, shift, factor) -> None:
    """A constant on all scores cancels; scores and margin scale together."""
    image, text = unit_batch(seed, size)
    scores, loss = image @ text.T, HINGES[name]
    close(loss.from_scores(scores + shift), loss.from_scores(scores))
    options = {"mining": "semihard"} if name.endswith("semihard") else {}
    wider = type(loss)(0.3 * factor, **options)
    close(wider.from_scores(factor * scores), factor * loss.from_scores(scores))


@pytest.mark.parametrize("name", {**CONTRASTIVE, **SYNTHESIS})
@SOME
@given(seed=SEEDS, size=ROWS)
def test_cosine_losses_ignore_norms(name, seed, size) -> None:
    image, text = unit_batch(seed, size)
    lengths = torch.tensor(np.random.default_rng(seed).uniform(0.01, 100, (2, size, 1)))
    loss = EVERY_LOSS[name]
    close(loss(lengths[0] * image, lengths[1] * text), loss(image, text), rtol=1e-7)


@pytest.mark.parametrize("thresholds", ["row0", "per_row"])
@pytest.mark.parametrize("metric", ["l1", "l2", "sqeuclidean"])
@SOME
@given(seed=SEEDS, size=ROWS, exponent=st.integers(-6, 6))
def test_ranked_distances_ignore_the_common_scale(metric, thresholds, seed, size, exponent) -> None:
    """Rows are divided by their own norm; a power of two scales without rounding."""
    x, _ = unit_batch(seed, size)
    loss = losses.IntraModalConstraint(metric, lower=0.1, upper=0.8, thresholds=thresholds)
    close(loss(x * 2.0**exponent), loss(x))


@pytest.mark.parametrize("metric", METRICS)
@SOME
@given(seed=SEEDS, size=ROWS, weight=st.floats(0.01, 100), exponent=st.integers(-6, 6))
def test_absolute_bands_scale_with_their_bounds(metric, seed, size, weight, exponent) -> None:
    x, _ = unit_batch(seed, size)
    lower, upper = BANDS[metric]
    factor = {"cosine": 1.0, "sqeuclidean": 4.0**exponent}.get(metric, 2.0**exponent)
    for mode in ("paper", "repel"):
        loss = losses.IntraModalConstraint(metric, lower=lower, upper=upper, mode=mode)
        scaled = losses.IntraModalConstraint(
            metric, lower=lower * factor, upper=upper * factor, mode=mode, weight=weight
        )
        close(scaled(x * 2.0**exponent), weight * factor * loss(x))


@pytest.mark.parametrize("name", ["sum_of_hinges", "max_of_hinges", "info_nce", "sigmoid"])
@SOME
@given(seed=SEEDS, size=ROWS, data=st.data())
def test_any_ids_agree_with_brute_force(name, seed, size, data) -> None:
    """Square batches with any repetition, and any number of texts per image."""
    generator = np.random.default_rng(seed)
    repeated = np.array(data.draw(st.lists(st.integers(-3, 3), min_size=size, max_size=size)))
    distinct = generator.permutation(size) * 4 - 5
    captions = data.draw(st.lists(st.sampled_from(distinct.tolist()), min_size=1, max_size=9))
    for image_ids, text_ids in ((repeated, repeated), (distinct, np.array(captions))):
        image = generator.standard_normal((size, 3))
        text = generator.standard_normal((len(text_ids), 3))
        found = EVERY_LOSS[name](
            torch.tensor(image),
            torch.tensor(text),
            image_ids=torch.tensor(image_ids),
            text_ids=torch.tensor(text_ids),
        )
        options = {
            "info_nce": {"logit_scale": 5.0},
            "sigmoid": {"logit_scale": 5.0, "logit_bias": -3.0},
        }.get(name, {"margin": 0.3})
        expected = getattr(oracles, name)(
            image, text, **options, image_ids=image_ids, text_ids=text_ids
        )
        close(found, torch.as_tensor(expected))


@pytest.mark.parametrize("name", EVERY_LOSS)
@SOME
@given(seed=SEEDS, size=ROWS)
def test_losses_are_not_negative(name, seed, size) -> None:
    """All but official cosine, whose band of similarities may be chosen below zero."""
    image, text = unit_batch(seed, size)
    assert EVERY_LOSS[name](image, text).item() >= 0


def spoiled(seed: int, size: int, value: float, data: st.DataObject) -> tuple[Tensor, ...]:
    """Replaces one element of one row of one modality."""
    pair = unit_batch(seed, size)
    side = data.draw(st.integers(0, 1))
    row, column = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 2))
    pair[side][row, column] = value
    return pair


@pytest.mark.parametrize("name", EVERY_LOSS)
@SOME
@given(seed=SEEDS, size=ROWS, data=st.data())
def test_nan_in_any_row_makes_the_loss_nan(name, seed, size, data) -> None:
    """No maximum, mask or band hides it, even where no negative exists."""
    pair = spoiled(seed, size, np.nan, data)
    assert EVERY_LOSS[name](*pair).isnan()
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)))
    assert EVERY_LOSS[name](*pair, image_ids=ids, text_ids=ids).isnan()


@pytest.mark.parametrize("name", EVERY_LOSS)
@SOME
@given(seed=SEEDS, size=ROWS, data=st.data(), sign=st.sampled_from([-1, 1]))
def test_inf_never_gives_a_finite_number(name, seed, size, data, sign) -> None:
    pair = spoiled(seed, size, sign * np.inf, data)
    assert not EVERY_LOSS[name](*pair).isfinite()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", CONSTRAINTS)
@SOME
@given(seed=SEEDS, size=ROWS, data=st.data())
def test_no_band_hides_nan_or_inf(name, value, seed, size, data) -> None:
    x, _ = unit_batch(seed, size)
    x[data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 2))] = value
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)))
    for chosen in (None, ids):
        found = CONSTRAINTS[name](x, ids=chosen)
        assert found.isnan() if np.isnan(value) else not found.isfinite()
