"""Gradients in fp64: every differentiable loss and operator against finite differences.

The random points lie far from kinks (a tie has probability zero); ties and kinks are in the hand
checks.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor

import oracles
from itm_kernels import losses, ops
from oracles import comparing
from oracles.batches import Batch, batch, numeric_gradient

KINDS = ["diagonal", "captions", "repeated", "permuted"]
METRICS = ["cosine", "l1", "l2", "sqeuclidean"]

# The error of central differences.
close = functools.partial(comparing.close, rtol=1e-5, atol=1e-7)

PAIR_LOSSES = {
    "sum_of_hinges": losses.SumOfHingesLoss(0.3),
    "max_of_hinges": losses.MaxOfHingesLoss(0.3),
    "max_of_hinges_semihard": losses.MaxOfHingesLoss(0.3, mining="semihard"),
    "info_nce": losses.InfoNCELoss(3.0),
    "sigmoid": losses.SigmoidLoss(3.0, -1.0),
    "info_cmr_plain": losses.InfoCMRLoss(0.5, num_clusters=0, num_noise=0),
    "info_cmr_noise": losses.InfoCMRLoss(0.5, num_clusters=0, num_noise=4),
    "info_cmr_kam": losses.InfoCMRLoss(0.5, num_clusters=2, sigma=0.5, num_noise=4, detach=False),
    "info_cmr_attention": losses.InfoCMRLoss(
        0.5, num_clusters=2, sigma=0.5, weights="attention", num_noise=0, detach=False
    ),
    "info_cmr_per_anchor": losses.InfoCMRLoss(
        0.5, num_clusters=2, sigma=0.5, clustering="per_anchor", num_noise=0, detach=False
    ),
}


def leaves(b: Batch) -> tuple[Tensor, Tensor]:
    """Embeddings that require a gradient."""
    image, text = b.tensors
    return image.requires_grad_(), text.requires_grad_()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_pair_losses(name, kind) -> None:
    b = batch(kind, 4, 3)

    def value(image: Tensor, text: Tensor) -> Tensor:
        generator = {}
        if name.startswith("info_cmr"):
            generator = {"generator": torch.Generator().manual_seed(5)}
        return PAIR_LOSSES[name](image, text, **b.ids, **generator)

    assert torch.autograd.gradcheck(value, leaves(b))


@pytest.mark.parametrize("kind", KINDS)
def test_hinges_from_scores(kind) -> None:
    b = batch(kind, 4, 3)
    scores = torch.tensor(oracles.score_matrix(b.image, b.text), requires_grad=True)
    for loss in (
        losses.SumOfHingesLoss(0.3, reduction="none"),
        losses.MaxOfHingesLoss(0.3, reduction="none"),
        losses.MaxOfHingesLoss(0.3, mining="semihard", reduction="none"),
    ):
        assert torch.autograd.gradcheck(lambda s, loss=loss: loss.from_scores(s, **b.ids), scores)


@pytest.mark.parametrize("kind", ["diagonal", "repeated"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mode", ["paper", "official", "per_row", "repel"])
def test_intra_modal(mode, metric, kind) -> None:
    b = batch(kind, 6, 3)
    x, _ = leaves(b)
    if mode in ("paper", "repel"):
        distances = oracles.score_matrix(b.image, b.image, metric)
        values = np.sort((1 - distances if metric == "cosine" else distances).ravel())
        lower, upper = values[10] + 1e-3, values[30] + 1e-3
        options = {"lower": lower, "upper": upper, "mode": mode}
    else:
        options = {"lower": 0.1, "upper": 0.9 if metric != "cosine" else -0.5}
        options["thresholds"] = "per_row" if mode == "per_row" else "row0"
    loss = losses.IntraModalConstraint(metric, **options, reduction="none")
    assert loss(x).count_nonzero() > 0
    ids = b.ids["image_ids"]
    assert torch.autograd.gradcheck(lambda x: loss(x, ids=ids), x)


@pytest.mark.parametrize("kind", KINDS)
def test_operators(kind) -> None:
    b = batch(kind, 4, 3)
    image, text = leaves(b)
    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    ids = {"x_ids": b.ids["image_ids"], "y_ids": b.ids["text_ids"]}

    def finite(values: Tensor) -> Tensor:
        # Without a negative the value is the constant -inf, which has no difference quotient.
        return values[values > -torch.inf]

    def sums(x: Tensor, y: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        row, column = ops.log_sum_exp(x, y, scale, **ids)
        return finite(row), finite(column)

    def hardest(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        found = ops.hardest_negatives(x, y, **b.ids)
        return found.positive, finite(found.text_score), finite(found.image_score)

    assert torch.autograd.gradcheck(sums, (image, text, scale))
    assert torch.autograd.gradcheck(hardest, (image, text))
    for metric in ["dot", *METRICS]:
        assert torch.autograd.gradcheck(
            lambda x, y, metric=metric: ops.similarity(x, y, metric), (image, text)
        )
    for metric in METRICS:
        assert torch.autograd.gradcheck(
            lambda x, metric=metric: ops.intra_modal_sum(x, 0.3, 2.5, metric), image
        )


@pytest.mark.parametrize("metric", ["l1", "l2", "sqeuclidean"])
def test_equal_rows_have_distance_gradient_zero(metric) -> None:
    """The difference of equal rows is 0: sign(0) = 0, and the root's gradient there is 0."""
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 2.0]], dtype=torch.float64)
    x.requires_grad_()
    ops.similarity(x, x.detach()[:2], metric)[:2].sum().backward()
    assert x.grad.abs().max() == 0
    x.grad = None
    losses.IntraModalConstraint(metric, lower=0.0, upper=1.0)(x).backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("weights", ["attention", "kam"])
@pytest.mark.parametrize("layout", ["shared", "per_anchor"])
def test_rbf_synthesis(layout, weights) -> None:
    b = batch("captions", 2, 3)
    anchors, members = (torch.tensor(oracles.normalized(x)) for x in (b.image, b.text))
    assignment = torch.tensor([0, 1, 0, 1, 0, 1, 1, 0, 1, 0])
    if layout == "per_anchor":
        assignment = torch.stack([assignment, 1 - assignment])
    arguments = (assignment, 3, 0.5)
    options = {
        "weights": weights,
        "anchor_ids": b.ids["image_ids"],
        "member_ids": b.ids["text_ids"],
    }
    inputs = anchors.requires_grad_(), members.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda q, x: ops.rbf_synthesis(q, x, *arguments, **options).vectors, inputs
    )

    def cosines(q: Tensor, x: Tensor) -> Tensor:
        found = ops.rbf_synthesis_logits(q, x, *arguments, **options)
        return found.cosine[found.valid]

    assert torch.autograd.gradcheck(cosines, inputs)


def test_multi_view_losses_and_learned_scales() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts, fused = (
        torch.randn(2, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(3)
    )
    scale = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-1.5, dtype=torch.float64, requires_grad=True)
    align, fusion = losses.MultiViewAlignmentLoss(), losses.FusionContrastiveLoss()
    assert torch.autograd.gradcheck(
        lambda i, t, s: align(i, t, logit_scale=s), (images, texts, scale)
    )
    assert torch.autograd.gradcheck(lambda f, s: fusion(f, logit_scale=s), (fused, scale))
    total = losses.ITOLoss(3.0).double()
    assert torch.autograd.gradcheck(total, (images, texts, fused))
    pair = images[0].detach().requires_grad_(), texts[0].detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda i, t, s: losses.InfoNCELoss()(i, t, logit_scale=s), (*pair, scale)
    )
    assert torch.autograd.gradcheck(
        lambda i, t, s, b: losses.SigmoidLoss()(i, t, logit_scale=s, logit_bias=b),
        (*pair, scale, bias),
    )


def gradients(loss: Tensor, b: tuple[Tensor, ...]) -> list[Tensor]:
    """Gradients of a loss in its inputs."""
    return list(torch.autograd.grad(loss, b))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("thresholds", ["row0", "per_row"])
def test_official_constraint_against_the_oracle(thresholds, metric) -> None:
    """The gradient flows through the row norms, and not through the thresholds."""
    b = batch("diagonal", 6, 3)
    rows = oracles.normalized(b.image)
    options = {"lower": 0.1, "upper": 0.9 if metric != "cosine" else 0.2, "thresholds": thresholds}
    x = torch.tensor(rows, requires_grad=True)
    (found,) = gradients(losses.IntraModalConstraint(metric, **options)(x), (x,))
    close(found, numeric_gradient(lambda y: oracles.intra_modal(y, metric, **options), rows))
    assert found.abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["max_of_hinges", "sum_of_hinges", "info_nce", "sigmoid"])
def test_pair_losses_against_the_oracle(name, kind) -> None:
    b = batch(kind, 4, 3)
    options = {
        "max_of_hinges": {"margin": 0.3},
        "sum_of_hinges": {"margin": 0.3},
        "info_nce": {"logit_scale": 3.0},
        "sigmoid": {"logit_scale": 3.0, "logit_bias": -1.0},
    }[name]
    oracle = getattr(oracles, name)
    inputs = leaves(b)
    found = gradients(PAIR_LOSSES[name](*inputs, **b.ids), inputs)
    close(
        found[0],
        numeric_gradient(lambda x: oracle(x, b.text, **options, **b.oracle_ids), b.image),
    )
    close(
        found[1],
        numeric_gradient(lambda x: oracle(b.image, x, **options, **b.oracle_ids), b.text),
    )


@pytest.mark.parametrize("weights", ["attention", "kam"])
def test_detached_synthesis_is_a_constant(weights) -> None:
    """With detach the gradient is that of the loss with the synthetic vectors held fixed."""
    b = batch("permuted", 4, 3)
    inputs = leaves(b)
    image, text = oracles.normalized(b.image), oracles.normalized(b.text)
    cluster = np.zeros(4, dtype=np.int64)
    fixed = {}
    for role, q, x, ids in (
        ("synthetic_text", image, text, (b.image_ids, b.text_ids)),
        ("synthetic_image", text, image, (b.text_ids, b.image_ids)),
    ):
        fixed[role], _ = oracles.rbf_synthesis(q, x, cluster, 1, 0.5, weights, 1e-4, *ids)
    for detach in (True, False):
        loss = losses.InfoCMRLoss(
            0.5, num_clusters=1, sigma=0.5, weights=weights, num_noise=0, detach=detach
        )
        found = gradients(loss(*inputs, **b.ids), inputs)
        expected = numeric_gradient(
            lambda x: oracles.info_cmr(x, b.text, 0.5, **b.oracle_ids, **fixed), b.image
        )
        if detach:
            close(found[0], expected)
        else:
            assert (found[0] - torch.tensor(expected)).abs().max() > 1e-3
