"""Worked examples, computed by hand, to the printed digits."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import oracles
from itm_kernels import functional, losses, mining, ops
from oracles import comparing
from oracles.comparing import tensor

SCORES = [[0.8, 0.7, 0.65], [0.3, 0.6, 0.55], [0.75, 0.2, 0.5]]
IDS = torch.tensor([0, 0, 1])
BAND = [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]
DIGITS = 1e-6

close = functools.partial(comparing.close, rtol=0.0, atol=DIGITS)


@pytest.mark.parametrize(
    ("loss", "value", "gradient"),
    [
        (losses.SumOfHingesLoss(), 1.80, [[-3, 2, 2], [0, -2, 2], [2, 0, -3]]),
        (losses.MaxOfHingesLoss(), 1.50, [[-2, 2, 1], [0, -2, 1], [2, 0, -2]]),
    ],
)
def test_a_values_and_gradients(loss, value, gradient) -> None:
    """The score matrix itself, and the same matrix as embeddings against the identity."""
    scores = tensor(SCORES, requires_grad=True)
    result = loss.from_scores(scores)
    close(result, value)
    result.backward()
    close(scores.grad, gradient)

    image, text = tensor(SCORES, requires_grad=True), torch.eye(3, dtype=torch.float64)
    text.requires_grad_()
    result = loss(image, text)
    close(result, value)
    result.backward()
    close(image.grad, gradient)
    close(text.grad, (tensor(gradient).T @ tensor(SCORES)).tolist())


def test_a_per_pair() -> None:
    """Max of hinges per pair, and the hardest negatives of both directions."""
    image, text = tensor(SCORES), torch.eye(3, dtype=torch.float64)
    close(functional.max_of_hinges_loss(image, text, reduction="none"), [0.25, 0.45, 0.80])
    close(functional.max_of_hinges_loss(image, text, reduction="mean"), 0.50)
    close(functional.sum_of_hinges_loss(image, text, reduction="mean"), 0.60)
    hardest = ops.hardest_negatives(image, text)
    assert hardest.text_index.tolist() == [1, 2, 0]
    assert hardest.image_index.tolist() == [2, 0, 0]
    close(hardest.positive, [0.8, 0.6, 0.5])
    close(0.2 + hardest.text_score - hardest.positive, [0.10, 0.15, 0.45])
    close(0.2 + hardest.image_score - hardest.positive, [0.15, 0.30, 0.35])


@pytest.mark.parametrize(
    ("loss", "value"), [(losses.SumOfHingesLoss(), 1.40), (losses.MaxOfHingesLoss(), 1.15)]
)
def test_a_with_ids(loss, value) -> None:
    """A same-id pair is never a negative."""
    close(loss.from_scores(tensor(SCORES), image_ids=IDS, text_ids=IDS), value)
    image, text = tensor(SCORES), torch.eye(3, dtype=torch.float64)
    close(loss(image, text, image_ids=IDS, text_ids=IDS), value)


def test_a_semihard() -> None:
    """Semihard mining takes the hardest negative strictly below the positive."""
    loss = losses.MaxOfHingesLoss(mining="semihard", reduction="none")
    scores = tensor(SCORES, requires_grad=True)
    result = loss.from_scores(scores)
    close(result, [0.25, 0.15, 0.0])
    result.sum().backward()
    close(scores.grad, [[-2, 1, 0], [0, -1, 1], [1, 0, 0]])


def test_b_five_equal_vectors() -> None:
    """Every negative ties: the lowest index wins and takes the whole gradient."""
    image = tensor([[0.6, 0.8]] * 5, requires_grad=True)
    text = tensor([[0.6, 0.8]] * 5, requires_grad=True)
    close(losses.MaxOfHingesLoss()(image, text), 2.0)
    close(losses.SumOfHingesLoss()(image, text), 8.0)
    hardest = ops.hardest_negatives(image, text)
    assert hardest.text_index.tolist() == [1, 0, 0, 0, 0]
    assert hardest.image_index.tolist() == [1, 0, 0, 0, 0]

    scores = torch.ones(5, 5, dtype=torch.float64, requires_grad=True)
    losses.MaxOfHingesLoss().from_scores(scores).backward()
    expected = -2 * torch.eye(5, dtype=torch.float64)
    expected[0, 1] += 1
    expected[1:, 0] += 1
    expected[1, 0] += 1
    expected[0, 1:] += 1
    close(scores.grad, expected.tolist())


@pytest.mark.parametrize(
    ("metric", "mode", "value"),
    [
        ("cosine", "official", 0.9333333),
        ("l1", "official", 1.0433766),
        ("l2", "official", 1.0605906),
        ("sqeuclidean", "official", 0.9458748),
        ("cosine", "paper", 1.2),
        ("sqeuclidean", "paper", 0.8),
        ("l1", "paper", 0.0),
        # By hand: cosine distances .2 and .4, both ways: 2 (.3 + .1) / 3.
        ("cosine", "repel", 0.2666667),
        # By hand: squared distances .4, .8 and 2, both ways: 2 (.1) / 3.
        ("sqeuclidean", "repel", 0.0666667),
    ],
)
def test_c_values(metric, mode, value) -> None:
    """Every mode and metric, and the same through L_IMC."""
    x = tensor(BAND)
    close(losses.IntraModalConstraint(metric, mode=mode)(x), value)
    close(functional.intra_modal_constraint(x, metric=metric, mode=mode, weight=3.0), 3 * value)
    # Without a margin the hinges of X against itself vanish: no score exceeds the positive's 1.
    close(losses.IMCLoss(0.0, metric=metric, mode=mode)(x, x), 2 * value)


def test_c_gradient() -> None:
    """Official cosine: minimising pushes the banded pairs apart."""
    x = tensor(BAND, requires_grad=True)
    losses.IntraModalConstraint("cosine")(x).backward()
    close(x.grad, [[0.53333, 0.4], [0.66667, 0.66667], [0.53333, 0.4]], atol=5e-6)


def test_c_duplicates_leave_the_band() -> None:
    """Two equal rows have a similarity of 1, which is not below 1 - lower."""
    x = tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)], [1.0, 0.0]], requires_grad=True)
    result = losses.IntraModalConstraint("cosine")(x)
    assert result.item() == 0.0
    result.backward()
    assert x.grad.abs().max() == 0


def test_c_operator() -> None:
    """Distances strictly inside the band, per row: .2 and .4 of the cosine."""
    close(ops.intra_modal_sum(tensor(BAND), 0.05, 0.5), [0.2, 0.6, 0.4])
    close(ops.intra_modal_sum(tensor(BAND), 0.2 + 1e-9, 0.5), [0.0, 0.4, 0.4])
    ids = torch.tensor([4, 4, 5])
    close(ops.intra_modal_sum(tensor(BAND), 0.05, 0.5, ids=ids), [0.0, 0.4, 0.4])


def test_e_info_cmr() -> None:
    """The plain contrastive part at two temperatures."""
    image, text = tensor([[1.0, 0.0], [0.0, 1.0]]), tensor([[1.0, 0.0], [0.6, 0.8]])
    for temperature, value in ((0.5, 0.5974723), (0.05, 0.0092427)):
        loss = losses.InfoCMRLoss(temperature, num_clusters=0, num_noise=0)
        close(loss(image, text), value)
        close(2 * losses.InfoNCELoss(1 / temperature)(image, text), value)


def test_e_with_one_synthetic_vector_each() -> None:
    """The package computes its synthetic vectors itself; the oracle is given them."""
    found = oracles.info_cmr(
        np.array([[1.0, 0.0], [0.0, 1.0]]),
        np.array([[1.0, 0.0], [0.6, 0.8]]),
        0.5,
        synthetic_text=np.array([[[0.8, 0.6]], [[0.6, 0.8]]]),
        synthetic_image=np.array([[[0.6, 0.8]], [[1.0, 0.0]]]),
    )
    assert found == pytest.approx(1.4256833, abs=DIGITS)


def synthesize(
    weights: str, sigma: float, members: list[list[float]], ridge: float
) -> ops.Synthesis:
    """Synthesises for q = (1, 0) over a single cluster."""
    return ops.rbf_synthesis(
        tensor([[1.0, 0.0]]),
        tensor(members),
        torch.zeros(len(members), dtype=torch.int64),
        1,
        sigma,
        weights=weights,
        ridge=ridge,
    )


@pytest.mark.parametrize(
    ("weights", "vector"),
    [("attention", [0.7686674, 0.6156663]), ("kam", [0.7947367, 0.4346500])],
)
def test_f_synthesis(weights, vector) -> None:
    """One cluster of two members, wide and narrow kernels."""
    members = [[0.8, 0.6], [0.0, 1.0]]
    result = synthesize(weights, 0.5, members, 0.0)
    close(result.vectors, [[vector]])
    assert result.valid.tolist() == [[True]]
    close(synthesize(weights, 0.1, members, 0.0).vectors, [[[0.8, 0.6]]])


def test_f_kernel_weights() -> None:
    """Only the first member has an x coordinate, .8: attention shows both kernel weights."""
    vector = synthesize("attention", 0.5, [[0.8, 0.6], [0.0, 1.0]], 0.0).vectors[0, 0]
    first = vector[0] / 0.8
    close(torch.stack([first, vector[1] - 0.6 * first]), [0.9608343, 0.0391657])


def test_f_cosine() -> None:
    """The logits form needs no vectors."""
    result = ops.rbf_synthesis_logits(
        tensor([[1.0, 0.0]]),
        tensor([[0.8, 0.6], [0.0, 1.0]]),
        torch.zeros(2, dtype=torch.int64),
        1,
        0.5,
        ridge=0.0,
    )
    close(result.cosine, [[0.8773579]])
    assert result.valid.tolist() == [[True]]


def test_f_duplicated_member_keeps_the_direction() -> None:
    """The copies share the weight of one member; attention would favour them."""
    once = [[0.8, 0.6], [0.0, 1.0]]
    twice = [[0.8, 0.6], *once]
    direction = [0.8773580, 0.4798364]
    for members in (once, twice):
        vector = synthesize("kam", 0.5, members, 1e-8).vectors[0, 0]
        close(torch.nn.functional.normalize(vector, dim=0), direction)
    leaning = (
        synthesize("attention", 0.5, twice, 0.0).vectors
        - synthesize("attention", 0.5, once, 0.0).vectors
    )
    assert leaning.abs().max() > 1e-3


def test_g_cross_entropy() -> None:
    """Equal logits, a constant prior of one third, and three rows by hand."""
    labels = torch.tensor([1, 0, 0])
    close(functional.itm_loss(torch.zeros(3, 2, dtype=torch.float64), labels), 0.6931472)
    prior = torch.full((3,), math.log(0.5), dtype=torch.float64)
    close(functional.itm_loss(prior, labels), 0.6365142)
    logits = tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0]])
    close(functional.itm_loss(logits, labels), 0.9178171)


def test_g_module() -> None:
    """N positives and 2N negatives with a constant prior of one third."""
    image = tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])

    def match(image_index: Tensor, text_index: Tensor) -> Tensor:
        assert image_index.shape == text_index.shape == (9,)
        return torch.full((9,), math.log(0.5), dtype=torch.float64)

    close(losses.ITMLoss()(image, image, match), 0.6365142)


def test_h_sampler() -> None:
    """The frequency of each index over many draws; ids leave one candidate in rows 0 and 1."""
    scores, identity = tensor([[2.0, 1, 0], [0, 3, 1], [1, 1, 1]]), torch.eye(3).double()
    sampler = mining.HardNegativeSampler(temperature=1.0)
    generator = torch.Generator().manual_seed(0)
    draws = 4000
    counts = torch.zeros(3, 3, dtype=torch.float64)
    for _ in range(draws):
        drawn = sampler(scores, identity, generator=generator).text_index
        counts[torch.arange(3), drawn] += 1
    expected = [[0, 0.7310586, 0.2689414], [0.2689414, 0, 0.7310586], [0.5, 0.5, 0]]
    # Three standard deviations of a frequency of one half are 0.024.
    close(counts / draws, expected, atol=0.024)
    assert counts.diagonal().sum() == 0
    for _ in range(20):
        drawn = sampler(scores, identity, image_ids=IDS, text_ids=IDS, generator=generator)
        assert drawn.text_index[:2].tolist() == [2, 2]
        assert drawn.image_index[:2].tolist() == [2, 2]


def test_i_multi_view() -> None:
    """Fusion, alignment and their sum."""
    first, second = torch.eye(2).double(), tensor([[0.8, 0.6], [0.6, 0.8]])
    fusion = losses.FusionContrastiveLoss(2.0)
    close(fusion(torch.stack([first, second])), 0.8707138)
    close(fusion(torch.stack([first, first])), 0.2395448)

    images = torch.stack([first, tensor([[0.8, 0.6], [0.0, 1.0]])])
    texts = tensor([[[1.0, 0.0], [0.6, 0.8]]])
    align = losses.MultiViewAlignmentLoss(2.0)
    close(align(images[:1], texts), 0.2987362)
    close(align(images[1:], texts), 0.5248968)
    close(align(images, texts), 0.4118165)
    total = losses.ITOLoss(2.0, fusion_weight=2.0, learnable=False)
    close(total(images, texts, torch.stack([first, second])), 2.1532440)
