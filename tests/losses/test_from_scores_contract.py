"""The contract of losses of a score matrix: ids, ties, NaN, precision, gradients, graphs."""

import pytest
import torch
from torch import Tensor, nn

from graphs import of_each_graph
from itm_kernels import losses
from loss_cases import gradients
from oracles.comparing import tensor
from score_cases import CASES, IDS, Scored, info_cmr_of_scores, rows, scores_of, with_pooled

SCORES = [[0.8, 0.7, 0.65], [0.3, 0.6, 0.55], [0.75, 0.2, 0.5]]


@pytest.fixture(params=CASES)
def scored(request: pytest.FixtureRequest) -> Scored:
    return CASES[request.param]


def test_pairs_of_one_id_are_never_negatives(scored: Scored, backend: str) -> None:
    """Scores of a same-id pair that is no positive change neither value nor gradient."""
    image, text = (t.detach() for t in rows(3, 3))
    ids = dict.fromkeys(("image_ids", "text_ids"), torch.tensor([4, 4, 1]))
    module = scored.build(backend=backend)
    scores = scores_of(image, text, True)
    other = scores.clone()
    other[0, 1], other[1, 0] = 9.0, -9.0
    found = []
    for given in (scores.requires_grad_(), other.requires_grad_()):
        value = scored.apply(module, given, image, text, **ids)
        (grad,) = gradients(value, given)
        assert grad[0, 1] == 0 and grad[1, 0] == 0
        found.append((value, grad))
    torch.testing.assert_close(*found)


def test_ties_and_one_pair_are_finite(scored: Scored, backend: str) -> None:
    for size in (1, 4):
        image, text = rows(size, size)
        scores = torch.ones(size, size, dtype=torch.float64, requires_grad=True)
        loss = scored.apply(scored.build(backend=backend), scores, image, text)
        (grad,) = gradients(loss, scores)
        assert loss.isfinite() and grad.isfinite().all()


def test_nan_reaches_loss_and_gradient(scored: Scored, backend: str) -> None:
    image, text = rows(3, 3)
    for at in ((0, 0), (0, 2)):
        scores = scores_of(image, text, True).detach()
        scores[at] = torch.nan
        loss = scored.apply(scored.build(backend=backend), scores.requires_grad_(), image, text)
        (grad,) = gradients(loss, scores)
        assert loss.isnan() and grad.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_fp32(
    scored: Scored, dtype: torch.dtype, backend: str
) -> None:
    image, text = rows(9, 9, torch.float32)
    scores = scores_of(image, text, True).detach().to(dtype).requires_grad_()
    module = scored.build(backend=backend)
    loss = scored.apply(module, scores, image, text)
    wide = scores.detach().float().requires_grad_()
    expected = scored.apply(module, wide, image, text)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    (grad,), (wanted,) = gradients(loss, scores), gradients(expected, wide)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad, wanted.to(dtype))


def test_scores_and_embeddings_may_differ_in_dtype(backend: str) -> None:
    image, text = rows(9, 9)
    scores = scores_of(image, text, True).detach()
    for name in ("imc", "info_cmr"):
        scored = CASES[name]
        module = scored.build(backend=backend)
        expected = scored.apply(module, scores, image, text)
        halves = [scores.float(), image.detach().bfloat16(), text.detach().bfloat16()]
        found = scored.apply(module, *halves)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected.float(), rtol=0.05, atol=0.05)
        mixed = scored.apply(module, scores.float(), image, text)
        assert mixed.dtype == torch.float64
        torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)


def test_autocast_changes_nothing(scored: Scored, backend: str) -> None:
    image, text = rows(9, 9, torch.float32)
    scores = scores_of(image, text, True).detach().requires_grad_()
    module = scored.build(backend=backend)
    expected = scored.apply(module, scores, image, text)
    with torch.autocast("cpu", torch.bfloat16):
        found = scored.apply(module, scores, image, text)
    assert torch.equal(found, expected)
    assert torch.equal(gradients(found, scores)[0], gradients(expected, scores)[0])


@pytest.mark.parametrize("ids", [{}, IDS], ids=["diagonal", "ids"])
@pytest.mark.usefixtures("two_steps")  # clusters do not depend on the scores
def test_gradients_are_derivatives(scored: Scored, ids: dict[str, Tensor], backend: str) -> None:
    image, text = (t.detach() for t in rows(M=5 if ids else 3))
    scores = scores_of(image, text, True)
    module = scored.build(unmatched="negative", backend=backend).double()
    names = [name for name, _ in module.named_parameters()]

    def value(scores: Tensor, *parameters: Tensor) -> Tensor:
        replaced = dict(zip(names, parameters, strict=True))

        class Applied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.module = module

            def forward(self) -> Tensor:
                return scored.apply(self.module, scores, image, text, **ids)

        state = {f"module.{name}": given for name, given in replaced.items()}
        return torch.func.functional_call(Applied(), state)

    inputs = scores.requires_grad_(), *(p.detach().requires_grad_() for p in module.parameters())
    module.train(False)  # a training step clamps the parameter itself
    assert torch.autograd.gradcheck(value, inputs)


@pytest.mark.compiles
@of_each_graph
def test_compiles_into_one_graph(scored: Scored, backend: str) -> None:
    image, text = rows(6, 6, torch.float32)
    scores = scores_of(image, text, True).detach().requires_grad_()
    ids = dict.fromkeys(("image_ids", "text_ids"), torch.tensor([3, 1, 1, 0, 2, 2]))
    module = scored.build(backend=backend)
    if isinstance(module, losses.InfoCMRLoss):
        module.num_clusters = 0  # k-means unrolls into a graph of half a minute

    def value(scores: Tensor, image: Tensor, text: Tensor, **ids: Tensor) -> Tensor:
        if scored.apply is not with_pooled:
            return scored.apply(module, scores, image, text, **ids)
        return module.from_scores(scores, image=image, text=text, **ids)  # no generator in graphs

    for given in ({}, ids):
        torch.manual_seed(0)
        expected = value(scores, image, text, **given)
        (wanted,) = gradients(expected, scores)
        torch._dynamo.reset()
        compiled = torch.compile(value, fullgraph=True, backend="aot_eager")
        torch.manual_seed(0)
        loss = compiled(scores, image, text, **given)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradients(loss, scores)[0], wanted)


def test_meta_tensors_flow_through(scored: Scored) -> None:
    image, text = (t.to("meta").detach().requires_grad_() for t in rows())
    scores = torch.empty(3, 5, device="meta", requires_grad=True)
    module = scored.build(unmatched="negative")
    if scored.apply is with_pooled:
        loss = module.from_scores(scores, image=image, text=text, **IDS)
    else:
        loss = scored.apply(module, scores, image, text, **IDS)
    assert loss.is_meta and gradients(loss, scores)[0].shape == (3, 5)


def test_a_scale_of_a_call_replaces_that_of_the_module() -> None:
    scores = tensor(SCORES)
    for build in (losses.InfoNCELoss, losses.SigmoidLoss):
        scale = torch.tensor(3.0, requires_grad=True)
        found = build(7.0).from_scores(scores, logit_scale=scale)
        torch.testing.assert_close(found, build(3.0).from_scores(scores))
        assert scale.grad is None and gradients(found, scale)[0] != 0
    found = losses.SigmoidLoss().from_scores(scores, logit_bias=-1.0)
    torch.testing.assert_close(found, losses.SigmoidLoss(logit_bias=-1.0).from_scores(scores))


def test_eval_without_draws_needs_no_embeddings_for_noise() -> None:
    module = losses.InfoCMRLoss(num_clusters=0, num_noise=8, draws_in_eval=False).eval()
    expected = info_cmr_of_scores().from_scores(tensor(SCORES))
    assert torch.equal(module.from_scores(tensor(SCORES)), expected)
