"""Every loss and operator equals its brute-force oracle, in fp64.

Sizes: one row has no negative, two rows have one each, five is the smallest batch with ties of
different kinds, 33 leaves a remainder for every tile. Dimensions: 1 collapses cosines to their
sign, 3 is odd, 96 is longer than one vector register.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import oracles
from itm_kernels import functional, losses, mining, ops, retrieval
from oracles.batches import KINDS, Batch, batch, embeddings, non_contiguous
from oracles.comparing import close
from oracles.hinges import hardest_negatives_from_scores

SIZES = [1, 2, 5, 33]
DIMS = [1, 3, 96]
REDUCTIONS = ["none", "sum", "mean"]

# One line per loss over pairs: how to build it, and what it must equal.
PAIR_LOSSES = {
    "sum_of_hinges": (
        lambda reduction: losses.SumOfHingesLoss(0.3, reduction=reduction),
        lambda b, reduction: oracles.sum_of_hinges(
            b.image, b.text, 0.3, **b.oracle_ids, reduction=reduction
        ),
    ),
    "max_of_hinges": (
        lambda reduction: losses.MaxOfHingesLoss(0.3, reduction=reduction),
        lambda b, reduction: oracles.max_of_hinges(
            b.image, b.text, 0.3, **b.oracle_ids, reduction=reduction
        ),
    ),
    "max_of_hinges_semihard": (
        lambda reduction: losses.MaxOfHingesLoss(0.3, mining="semihard", reduction=reduction),
        lambda b, reduction: oracles.max_of_hinges(
            b.image, b.text, 0.3, "semihard", **b.oracle_ids, reduction=reduction
        ),
    ),
    "info_nce": (
        lambda reduction: losses.InfoNCELoss(7.0, reduction=reduction),
        lambda b, reduction: oracles.info_nce(
            b.image, b.text, 7.0, **b.oracle_ids, reduction=reduction
        ),
    ),
    "sigmoid": (
        lambda reduction: losses.SigmoidLoss(6.0, -2.0, reduction=reduction),
        lambda b, reduction: oracles.sigmoid(
            b.image, b.text, 6.0, -2.0, **b.oracle_ids, reduction=reduction
        ),
    ),
    "info_cmr": (
        lambda reduction: losses.InfoCMRLoss(0.2, num_clusters=0, num_noise=0, reduction=reduction),
        lambda b, reduction: oracles.info_cmr(
            b.image, b.text, 0.2, **b.oracle_ids, reduction=reduction
        ),
    ),
}


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_pair_losses(name, kind, size, dim) -> None:
    if name == "max_of_hinges_semihard" and kind == "duplicates":
        # Whether a copy of the positive scores below it is decided by rounding: use exact ties.
        kind = "integers"
    build, oracle = PAIR_LOSSES[name]
    b = batch(kind, size, dim)
    image, text = b.tensors
    for reduction in REDUCTIONS:
        loss, expected = build(reduction), oracle(b, reduction)
        close(loss(image, text, **b.ids), expected)
        close(loss(non_contiguous(image), non_contiguous(text), **b.ids), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_hinges_from_scores(kind, size) -> None:
    b = batch(kind, size, 3)
    scores = oracles.score_matrix(b.image, b.text)
    given = non_contiguous(torch.tensor(scores))
    for reduction in REDUCTIONS:
        close(
            losses.SumOfHingesLoss(0.3, reduction=reduction).from_scores(given, **b.ids),
            oracles.sum_of_hinges_from_scores(scores, 0.3, **b.oracle_ids, reduction=reduction),
        )
        for mining_mode in ("hardest", "semihard"):
            loss = losses.MaxOfHingesLoss(0.3, mining=mining_mode, reduction=reduction)
            expected = oracles.max_of_hinges_from_scores(
                scores, 0.3, mining_mode, **b.oracle_ids, reduction=reduction
            )
            close(loss.from_scores(given, **b.ids), expected)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_hardest_negatives(kind, size, dim) -> None:
    b = batch(kind, size, dim)
    found = ops.hardest_negatives(*b.tensors, **b.ids)
    expected = oracles.hardest_negatives(b.image, b.text, **b.oracle_ids)
    for name in ("positive", "text_score", "image_score"):
        close(getattr(found, name), getattr(expected, name))
    if kind != "duplicates":
        # Copies of a row of real numbers tie up to rounding; integers tie exactly.
        assert found.text_index.tolist() == expected.text_index.tolist()
        assert found.image_index.tolist() == expected.image_index.tolist()


@pytest.mark.parametrize("metric", ["dot", "cosine", "l1", "l2", "sqeuclidean"])
@pytest.mark.parametrize("dim", DIMS)
def test_similarity(metric, dim) -> None:
    generator = np.random.default_rng(dim)
    x, y = embeddings(generator, 5, dim), embeddings(generator, 7, dim)
    expected = oracles.score_matrix(x, y, metric)
    x_tensor, y_tensor = torch.tensor(x), torch.tensor(y)
    close(ops.similarity(x_tensor, y_tensor, metric), expected)
    close(ops.similarity(non_contiguous(x_tensor), non_contiguous(y_tensor), metric), expected)
    batched = ops.similarity(x_tensor.expand(2, 3, 5, dim), y_tensor.expand(2, 3, 7, dim), metric)
    close(batched, np.broadcast_to(expected, (2, 3, 5, 7)).copy())
    own = ops.similarity(x_tensor, x_tensor, metric)
    if metric in ("l1", "l2", "sqeuclidean"):
        assert own.diagonal().abs().max() == 0


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_log_sum_exp(kind, size, dim) -> None:
    b = batch(kind, size, dim)
    ids = {"x_ids": b.ids["image_ids"], "y_ids": b.ids["text_ids"]}
    found = ops.log_sum_exp(*b.tensors, 0.7, **ids)
    for actual, expected in zip(
        found, oracles.log_sum_exp(b.image, b.text, 0.7, b.image_ids, b.text_ids), strict=True
    ):
        close(actual, expected)


def multi_view(views: int, size: int, dim: int) -> np.ndarray:
    """Draws views of one batch."""
    generator = np.random.default_rng([views, size, dim])
    return np.stack([embeddings(generator, size, dim) for _ in range(views)])


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("views", [2, 3])
def test_multi_view_losses(views, size, dim) -> None:
    images, fused = multi_view(views, size, dim), multi_view(views, size, dim)[::-1].copy()
    images_tensor, fused_tensor = torch.tensor(images), torch.tensor(fused)
    for text_views in (1, 2):
        texts = multi_view(text_views + 3, size, dim)[3:]
        texts_tensor = torch.tensor(texts)
        alignment = losses.MultiViewAlignmentLoss(6.0)(images_tensor, texts_tensor)
        close(alignment, oracles.multi_view_alignment(images, texts, 6.0))
        total = losses.ITOLoss(6.0, fusion_weight=1.5, learnable=False)(
            images_tensor, texts_tensor, fused_tensor
        )
        close(total, oracles.ito(images, texts, fused, 6.0, 1.5))
    fusion = losses.FusionContrastiveLoss(6.0)(fused_tensor)
    close(fusion, oracles.fusion_contrastive(fused, 6.0))


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 5, 33])
@pytest.mark.parametrize("kind", ["diagonal", "captions", "repeated"])
def test_matching(kind, size, columns) -> None:
    """The rows are every pair, then the mined negatives that exist, labelled 1 and 0."""
    b = batch(kind, size, 3)
    num_texts = len(b.text)
    generator = np.random.default_rng(size)
    table = generator.standard_normal((size, num_texts, columns))
    logits_table = torch.tensor(table if columns == 2 else table[..., 0])
    expected_negatives = oracles.hardest_negatives(b.image, b.text, **b.oracle_ids)
    rows, labels = [], []
    for j, i in enumerate(positives_of(b)):
        rows.append((i, j))
        labels.append(1)
    for i, j in enumerate(expected_negatives.text_index):
        rows.append((i, j))
        labels.append(0)
    for j, i in enumerate(expected_negatives.image_index):
        rows.append((i, j))
        labels.append(0)
    exist = [position for position, row in enumerate(rows) if min(row) >= 0]
    wanted = np.array([table[rows[position]] for position in exist])
    wanted = wanted if columns == 2 else wanted[:, 0]
    wanted_labels = [labels[position] for position in exist]

    def match(image_index: Tensor, text_index: Tensor) -> Tensor:
        return logits_table[image_index, text_index]

    sampler = mining.HardNegativeSampler("hardest")
    for smoothing in (0.0, 0.1):
        loss = losses.ITMLoss(sampler=sampler, label_smoothing=smoothing)
        close(loss(*b.tensors, match, **b.ids), oracles.itm(wanted, wanted_labels, smoothing))


def positives_of(b: Batch) -> list[int]:
    """The image of every text."""
    return oracles.positives(len(b.image), len(b.text), b.image_ids, b.text_ids)


@pytest.mark.parametrize("strategy", ["multinomial", "uniform", "hardest"])
@pytest.mark.parametrize("kind", ["diagonal", "captions", "repeated"])
def test_sampled_negatives_are_negatives(kind, strategy) -> None:
    b = batch(kind, 5, 3)
    scores = oracles.score_matrix(b.image, b.text)
    allowed = oracles.sampler_probabilities(scores, 1.0, **b.oracle_ids) > 0
    sampler = mining.HardNegativeSampler(strategy)
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        drawn = sampler(*b.tensors, **b.ids, generator=generator)
        for i, j in enumerate(drawn.text_index.tolist()):
            assert allowed[i, j] if allowed[i].any() else j == -1
        for j, i in enumerate(drawn.image_index.tolist()):
            assert allowed[i, j] if allowed[:, j].any() else i == -1
    if strategy == "hardest":
        expected = hardest_negatives_from_scores(scores, **b.oracle_ids)
        assert drawn.text_index.tolist() == expected.text_index.tolist()
        assert drawn.image_index.tolist() == expected.image_index.tolist()


@pytest.mark.parametrize("size", [1, 5, 33])
def test_retrieval_with_five_captions(size) -> None:
    b = batch("captions", size, 6)
    image, text = oracles.normalized(b.image), oracles.normalized(b.text)
    # Captions are near their image, so that the recalls are neither 0 nor 100.
    text = oracles.normalized(text + 0.7 * image[positives_of(b)])
    ks = (1, 5, 10) if size == 33 else (1,)
    expected = oracles.recall_report(oracles.score_matrix(image, text), **b.oracle_ids, ks=ks)
    report = retrieval.evaluate(torch.tensor(image), torch.tensor(text), **b.ids, ks=ks)
    for name, value in expected.items():
        assert getattr(report, name) == pytest.approx(value), name
    # Without ids the captions of an image follow one another.
    order = np.argsort(positives_of(b), kind="stable")
    assert retrieval.evaluate(torch.tensor(image), torch.tensor(text[order]), ks=ks) == report


def test_functions_equal_their_modules() -> None:
    """Functions and modules pass every option on; modules are compared with the oracles above."""
    b = batch("captions", 5, 3)
    image, text = b.tensors
    pairs = {
        (functional.sum_of_hinges_loss, losses.SumOfHingesLoss): {"margin": 0.4},
        (functional.max_of_hinges_loss, losses.MaxOfHingesLoss): {
            "margin": 0.4,
            "mining": "semihard",
        },
        (functional.info_nce_loss, losses.InfoNCELoss): {"logit_scale": 3.0},
        (functional.sigmoid_loss, losses.SigmoidLoss): {"logit_scale": 3.0, "logit_bias": -1.0},
        (functional.info_cmr_loss, losses.InfoCMRLoss): {
            "temperature": 0.3,
            "num_clusters": 2,
            "sigma": 0.4,
            "weights": "attention",
            "clustering": "per_anchor",
            "num_noise": 3,
            "detach": False,
        },
    }
    for (function, module), options in pairs.items():
        for reduction in REDUCTIONS:
            seeds = [{}, {}]
            if module is losses.InfoCMRLoss:
                seeds = [{"generator": torch.Generator().manual_seed(2)} for _ in range(2)]
            found = function(image, text, **options, **b.ids, reduction=reduction, **seeds[0])
            expected = module(**options, reduction=reduction)(image, text, **b.ids, **seeds[1])
            assert torch.equal(found, expected)
    options = {"metric": "l1", "lower": 0.2, "upper": 0.7, "weight": 0.3, "thresholds": "per_row"}
    assert torch.equal(
        functional.imc_loss(image, text, margin=0.4, **options, **b.ids),
        losses.IMCLoss(0.4, **options)(image, text, **b.ids),
    )
    assert torch.equal(
        functional.intra_modal_constraint(text, **options, ids=b.ids["text_ids"]),
        losses.IntraModalConstraint(**options)(text, ids=b.ids["text_ids"]),
    )
    views = torch.stack([image, image.flip(1)])
    assert torch.equal(
        functional.multi_view_alignment_loss(views, views[:1], logit_scale=3.0),
        losses.MultiViewAlignmentLoss(3.0)(views, views[:1]),
    )
    assert torch.equal(
        functional.fusion_contrastive_loss(views, logit_scale=3.0),
        losses.FusionContrastiveLoss(3.0)(views),
    )
