"""Values of losses of a score matrix that the model computes itself, as SCAN and SGRAF do."""

import numpy as np
import pytest
import torch
from torch import Tensor

import oracles
from itm_kernels import losses
from loss_cases import gradients
from oracles.batches import KINDS, batch, non_contiguous
from oracles.comparing import close, tensor
from score_cases import CASES, IDS, Scored, rows, scores_of, with_pooled

# One pair has no negative, two pairs have one each; 33 and 127 leave a remainder for every tile.
SIZES = [1, 2, 33, 127]
REDUCTIONS = ["none", "sum", "mean"]


@pytest.fixture(params=CASES)
def scored(request: pytest.FixtureRequest) -> Scored:
    return CASES[request.param]


@pytest.mark.parametrize("ids", [{}, IDS], ids=["diagonal", "ids"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_equals_the_loss_of_embeddings(
    scored: Scored, reduction: str, ids: dict[str, Tensor], backend: str
) -> None:
    image, text = rows(M=5) if ids else rows(5, 5)
    module = scored.build(reduction=reduction, unmatched="negative", backend=backend)
    drawn = {"generator": torch.Generator().manual_seed(3)} if scored.apply is with_pooled else {}
    expected = module(image, text, **ids, **drawn)
    found = scored.apply(module, scores_of(image, text, scored.normalises), image, text, **ids)
    torch.testing.assert_close(found, expected)
    inputs = image, text, *module.parameters()
    for grad, wanted in zip(
        gradients(found.sum(), *inputs), gradients(expected.sum(), *inputs), strict=True
    ):
        torch.testing.assert_close(grad, wanted)


def test_values_by_hand() -> None:
    """At scale 1 and without bias: e^s is [[2, 1], [4, 3]]."""
    scores = tensor([[2.0, 1.0], [4.0, 3.0]]).log()
    directions = [1.5 * 6 / 2, 7 / 3 * 4 / 3]  # 1 / (softmax over texts times that over images)
    cmr = losses.InfoCMRLoss(1.0, num_clusters=0, num_noise=0, reduction="none")
    close(cmr.from_scores(scores), np.log(directions))
    nce = losses.InfoNCELoss(1.0, reduction="none")
    close(nce.from_scores(scores), 0.5 * np.log(directions))
    sigmoid = losses.SigmoidLoss(1.0, 0.0, reduction="none")
    close(sigmoid.from_scores(scores), np.log([(1 + 1 / 2) * (1 + 4), (1 + 1) * (1 + 1 / 3)]))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "duplicates"])
def test_softmax_and_sigmoid_equal_loops(kind: str, size: int, backend: str) -> None:
    b = batch(kind, size, 3)
    scores = oracles.score_matrix(b.image, b.text, "cosine")
    given = non_contiguous(torch.tensor(scores))
    for reduction in REDUCTIONS:
        options = {"reduction": reduction, "backend": backend}
        how = b.oracle_ids | {"reduction": reduction}
        close(
            losses.InfoNCELoss(9.0, **options).from_scores(given, **b.ids),
            oracles.info_nce_from_scores(scores, 9.0, **how),
        )
        close(
            losses.SigmoidLoss(9.0, -2.0, **options).from_scores(given, **b.ids),
            oracles.sigmoid_from_scores(scores, 9.0, -2.0, **how),
        )
        cmr = losses.InfoCMRLoss(0.2, num_clusters=0, num_noise=0, **options)
        expected = oracles.info_cmr(b.image, b.text, 0.2, scores=scores, **how)
        close(cmr.from_scores(given, **b.ids), expected)


@pytest.mark.parametrize("kind", ["diagonal", "captions", "repeated"])
def test_noise_joins_scores_that_are_no_cosines(kind: str, backend: str) -> None:
    """Pooled embeddings meet the noise, and the scores are the model's own."""
    b = batch(kind, 5, 3)
    generator = torch.Generator().manual_seed(3)
    noise = torch.empty(4, 3, dtype=torch.float64).normal_(generator=generator).numpy()
    image, text = b.tensors
    scores = torch.tensor(oracles.score_matrix(b.image, b.text, "cosine")).tanh()
    module = losses.InfoCMRLoss(0.2, num_clusters=0, num_noise=4, backend=backend)
    expected = oracles.info_cmr(
        b.image, b.text, 0.2, scores=scores.numpy(), noise=noise, **b.oracle_ids
    )
    close(with_pooled(module, scores, image, text, **b.ids), expected)


def test_imc_adds_constraints_of_embeddings_to_hinges_of_scores(backend: str) -> None:
    image, text = rows(4, 4)
    scores = (image @ text.T).tanh().detach().requires_grad_()
    module = losses.IMCLoss(metric="l2", mode="paper", lower=0.5, upper=3.0, backend=backend)
    expected = losses.MaxOfHingesLoss().from_scores(scores)
    constraint = losses.IntraModalConstraint("l2", mode="paper", lower=0.5, upper=3.0)
    expected = expected + constraint(image) + constraint(text)
    found = module.from_scores(scores, image, text)
    torch.testing.assert_close(found, expected)
    inputs = scores, image, text
    for grad, wanted in zip(gradients(found, *inputs), gradients(expected, *inputs), strict=True):
        torch.testing.assert_close(grad, wanted)
