"""Batches without violations and batches without negatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from interpreted import beyond_finite
from itm_kernels import losses, mining, ops
from oracles.comparing import tensor


def hinge_and_band_losses() -> list[object]:
    """Every loss whose value is 0 when nothing violates a margin or meets a band."""
    found: list[object] = [
        losses.SumOfHingesLoss(),
        losses.MaxOfHingesLoss(),
        losses.MaxOfHingesLoss(mining="semihard"),
    ]
    for metric in ("cosine", "l1", "l2", "sqeuclidean"):
        for mode in ("paper", "official", "repel"):
            # Orthonormal rows: distances 1, sqrt 2 and 2, similarities 0, all outside .05 .. .5.
            if mode != "official" or metric == "cosine":
                found.append(losses.IMCLoss(metric=metric, mode=mode))
    return found


@pytest.mark.native
@pytest.mark.parametrize("loss", hinge_and_band_losses(), ids=repr)
def test_a_loss_of_zero_stays_attached(loss) -> None:
    """Orthonormal pairs violate nothing; backward works and gives zeros."""
    image = torch.eye(4, dtype=torch.float64, requires_grad=True)
    text = torch.eye(4, dtype=torch.float64, requires_grad=True)
    result = loss(image, text)
    assert result.item() == 0.0
    result.backward()
    assert image.grad.abs().max() == 0
    assert text.grad.abs().max() == 0


def losses_of_negatives() -> list[object]:
    """Every loss that is 0 without a negative."""
    found = hinge_and_band_losses()
    for metric in ("l1", "l2", "sqeuclidean"):
        for thresholds in ("row0", "per_row"):
            found.append(losses.IMCLoss(metric=metric, thresholds=thresholds))
    found.append(losses.InfoNCELoss())
    found.append(losses.InfoCMRLoss(num_clusters=0, num_noise=0))
    for clustering in ("shared", "per_anchor"):
        found.append(losses.InfoCMRLoss(clustering=clustering, num_noise=0))
    return found


@pytest.mark.native
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("loss", losses_of_negatives(), ids=repr)
def test_no_negative_gives_zero(loss, size) -> None:
    """One pair, or pairs that all share one id: nothing to compare with, no NaN."""
    image = tensor([[0.8, 0.6], [0.1, -0.9], [0.4, 0.7]], requires_grad=True)
    text = tensor([[0.3, -0.6], [0.2, 0.9], [0.5, 0.5]], requires_grad=True)
    ids = None if size == 1 else torch.tensor([5, 5, 5])
    result = loss(image[:size], text[:size], image_ids=ids, text_ids=ids)
    assert abs(result.item()) <= 1e-12
    result.backward()
    assert image.grad.abs().max() <= 1e-12
    assert text.grad.abs().max() <= 1e-12


@pytest.mark.parametrize("size", [1, 3])
def test_no_negative_in_the_operators(size) -> None:
    """Index -1, score -inf, no log-sum-exp, no synthetic vector, no row to classify."""
    x = tensor([[0.8, 0.6], [0.1, -0.9], [0.4, 0.7]])[:size]
    ids = torch.full((size,), 5)
    hardest = ops.hardest_negatives(x, x, image_ids=ids, text_ids=ids)
    torch.testing.assert_close(hardest.positive, (x * x).sum(1))
    for score, index in (
        (hardest.text_score, hardest.text_index),
        (hardest.image_score, hardest.image_index),
    ):
        assert score.tolist() == [-math.inf] * size
        assert index.tolist() == [-1] * size
    for sums in ops.log_sum_exp(x, x, 2.0, x_ids=ids, y_ids=ids):
        assert sums.tolist() == [-math.inf] * size
    cluster = torch.zeros(size, dtype=torch.int64)
    result = ops.rbf_synthesis(x, x, cluster, 2, 0.5, anchor_ids=ids, member_ids=ids)
    assert not result.valid.any()
    assert torch.isfinite(result.vectors).all()
    for strategy in ("multinomial", "hardest", "uniform"):
        drawn = mining.HardNegativeSampler(strategy)(x, x, image_ids=ids, text_ids=ids)
        assert drawn.text_index.tolist() == [-1] * size
        assert drawn.image_index.tolist() == [-1] * size


@pytest.mark.parametrize("loss", [losses.SumOfHingesLoss(0.5), losses.MaxOfHingesLoss(0.5)])
def test_the_hinge_has_no_gradient_at_its_kink(loss) -> None:
    """Every violation is exactly 0 (halves are exact): VSE++'s clamp would pass a gradient."""
    scores = tensor([[1.0, 0.5], [0.5, 1.0]], requires_grad=True)
    result = loss.from_scores(scores)
    assert result.item() == 0.0
    result.backward()
    assert scores.grad.abs().max() == 0


# In one dimension a score is one product: nothing is lost before it overflows.
HUGE = torch.tensor([[1e30], [1.0], [1.0]]), torch.tensor([[1.0], [-1e30], [-1e30]])


@beyond_finite
def test_a_score_that_overflows_is_an_ordinary_negative(backend: str) -> None:
    """All negatives of row 0 score -inf: the first is the hardest, and never the positive."""
    image, text = HUGE
    found = ops.hardest_negatives(image, text, backend=backend)
    assert found.text_score.tolist() == [-math.inf, 1.0, 1.0]
    assert found.text_index.tolist() == [1, 0, 0]
    turned = ops.hardest_negatives(text, image, backend=backend)
    assert turned.image_score.tolist() == [-math.inf, 1.0, 1.0]
    assert turned.image_index.tolist() == [1, 0, 0]
    ids = torch.tensor([0, 1, 0])
    found = ops.hardest_negatives(image, text, image_ids=ids, text_ids=ids, backend=backend)
    assert found.text_index.tolist() == [1, 0, 1]
    loss = losses.MaxOfHingesLoss(reduction="none", backend=backend)
    assert loss(image, text)[0] == 0


@beyond_finite
@pytest.mark.parametrize("strategy", ["multinomial", "hardest", "uniform"])
@pytest.mark.parametrize("temperature", [1e-37, 1.2e-38, 0.07, 8e37])
def test_no_temperature_draws_a_positive(backend: str, strategy: str, temperature: float) -> None:
    sampler = mining.HardNegativeSampler(strategy, temperature=temperature, backend=backend)
    rows = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    for image, text in (HUGE, rows, (-100 * rows[0].abs(), rows[1].abs())):
        for index in sampler(image, text):
            assert index.min() >= 0
            assert (index != torch.arange(len(image))).all()
    # Far below the scores' distances the draw is the hardest.
    if temperature < 1e-30 and strategy == "multinomial":
        hardest = mining.HardNegativeSampler("hardest", backend=backend)
        assert all(map(torch.equal, sampler(*rows), hardest(*rows)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_zero_row_has_no_cosine_and_no_gradient(backend: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64).to(dtype)
    x[1] = y[2] = 0
    x, y = x.requires_grad_(), y.requires_grad_()
    scores = ops.similarity(x, y, "cosine", backend=backend)
    assert scores[1].count_nonzero() == scores[:, 2].count_nonzero() == 0
    cosine = ops.rbf_synthesis_logits(
        x, y, torch.tensor([0, 0, 1, 0]), 2, 0.5, weights="attention", backend=backend
    ).cosine
    assert cosine[1].count_nonzero() == cosine[:, 1].count_nonzero() == 0
    (scores.sum() + cosine.float().sum()).backward()
    for rows, zero in ((x, 1), (y, 2)):
        assert rows.grad.isfinite().all()
        assert rows.grad.count_nonzero() > 0
        assert rows is y or rows.grad[zero].count_nonzero() == 0


def of_rows(operation: str, x: Tensor, y: Tensor, backend: str) -> Tensor:
    """Apply an operation that does not divide rows by their norms."""
    if operation == "sum of hinges":
        return losses.SumOfHingesLoss(backend=backend)(x, y)
    if operation == "log-sum-exp":
        return torch.stack(ops.log_sum_exp(x, y, 3.0, backend=backend))
    if operation == "synthesis":
        clusters = torch.arange(len(y)) % 3
        return ops.rbf_synthesis(x, y, clusters, 3, 0.8, backend=backend).vectors
    if operation == "distances":
        return ops.intra_modal_sum(x, 0.1, 1.2, "l2", backend=backend) + y.sum(1)
    return ops.similarity(x, y, operation, backend=backend)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [0.0, 1e-14])
@pytest.mark.parametrize(
    "operation",
    [
        *("dot", "l2", "sqeuclidean", "distances", "sum of hinges", "log-sum-exp"),
        "synthesis",
    ],
)
def test_tiny_rows_have_their_gradients(
    operation: str, size: float, dtype: torch.dtype, backend: str
) -> None:
    """A power of two that scales such a row for fp16 must not scale its weights out of range."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 33, 40, generator=generator, dtype=torch.float64) + 0.5
    rows /= rows.norm(dim=2, keepdim=True)
    rows[0, 3] *= size
    rows[1, 5:7] *= size
    inputs = [side.to(dtype).requires_grad_() for side in rows]
    upstream: Tensor | None = None

    def graded(sides: list[Tensor], backend: str) -> list[Tensor]:
        nonlocal upstream
        found = of_rows(operation, *sides, backend)
        if upstream is None:
            upstream = torch.randn(found.shape, generator=generator, dtype=torch.float64)
        return [found.detach(), *torch.autograd.grad(found, sides, upstream.to(found.dtype))]

    exact = graded([side.detach().double().requires_grad_() for side in inputs], "reference")
    for true, theirs, ours in zip(
        exact, graded(inputs, "reference"), graded(inputs, backend), strict=True
    ):
        error, allowed = ((t.double() - true).abs().max() for t in (ours, theirs))
        assert error <= 2 * allowed + 64 * torch.finfo(torch.float32).eps * true.abs().max()


# Multiples of the blocks that a product is cut into, and sizes between them.
@pytest.mark.parametrize("N", [5, 33, 100])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_equal_scores_go_to_the_lowest_index(backend: str, dtype: torch.dtype, N: int) -> None:
    """Small integers: products are exact, so that every pair of copies ties."""
    generator = torch.Generator().manual_seed(N)
    rows = torch.randint(-2, 3, (2, N, 3), generator=generator).to(dtype)
    found = ops.hardest_negatives(*rows, backend=backend)
    scores = (rows[0].double() @ rows[1].double().T).fill_diagonal_(-math.inf)
    for index, of_anchor in ((found.text_index, scores), (found.image_index, scores.T)):
        best = of_anchor == of_anchor.max(1, keepdim=True).values
        assert torch.equal(index, best.int().argmax(1))
        assert N == 5 or (best.sum(1) > 1).any()


def test_any_copy_of_the_hardest_row_may_be_found(backend: str) -> None:
    """Not always the first: products round the last columns of a matrix differently, in fp64."""
    generator = torch.Generator().manual_seed(0)
    image, once = torch.randn(2, 60, 32, generator=generator, dtype=torch.float64)
    text = torch.cat([once, once, once])
    ids = {"image_ids": torch.arange(60), "text_ids": torch.arange(60).repeat(3)}
    found = ops.hardest_negatives(image, text, backend=backend, **ids)
    single = ops.hardest_negatives(image, once, backend=backend)
    assert torch.equal(found.text_index % 60, single.text_index)
    assert torch.equal(found.image_index, single.image_index.repeat(3))


@beyond_finite
def test_an_infinite_row_shows_in_its_gradient_without_a_mask(backend: str) -> None:
    """It lies outside every band, and 70 rows of two numbers keep no bits of the pairs inside."""
    x = torch.randn(70, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for value in (math.inf, 1e200):
        x[69, 0] = value
        rows = x.clone().requires_grad_()
        loss = losses.IntraModalConstraint("cosine", lower=0.1, upper=0.9, backend=backend)(rows)
        assert loss.isnan()
        loss.backward()
        assert rows.grad[69].isnan().any()
