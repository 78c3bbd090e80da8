"""Learnt logit scales: bounds, display, optimisers, temperatures."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from itm_kernels import functional as F
from itm_kernels import losses
from loss_cases import batch, gradients

Call = Callable[..., Tensor]


def one(loss: Call, **given: Any) -> Tensor:
    return loss(*batch(), **given)


def views(loss: Call, **given: Any) -> Tensor:
    image, text = batch()
    return loss(torch.stack([image, image + text]), text[None], **given)


def fused(loss: Call, **given: Any) -> Tensor:
    return loss(torch.stack(batch()), **given)


def ito(loss: Call) -> Tensor:
    image, text = batch()
    return loss(image[None], text[None], torch.stack([image, text]))


def build(kind: Any, **options: Any) -> Any:
    if kind is losses.InfoCMRLoss:  # what draws would differ from call to call
        options = {"num_clusters": 0, "num_noise": 0, **options}
    return kind(**options)


SCALED: dict[Any, Callable[..., Tensor]] = {
    losses.InfoNCELoss: one,
    losses.SigmoidLoss: one,
    losses.InfoCMRLoss: one,
    losses.MultiViewAlignmentLoss: views,
    losses.FusionContrastiveLoss: fused,
    losses.ITOLoss: ito,
}
FUNCTIONS: dict[Any, Callable[..., Tensor]] = {
    F.info_nce_loss: one,
    F.sigmoid_loss: one,
    F.info_cmr_loss: lambda loss, **given: one(loss, num_clusters=0, num_noise=0, **given),
    F.multi_view_alignment_loss: views,
    F.fusion_contrastive_loss: fused,
}
every_module = pytest.mark.parametrize(
    ("kind", "apply"), SCALED.items(), ids=[kind.__name__ for kind in SCALED]
)
every_function = pytest.mark.parametrize(
    ("function", "apply"), FUNCTIONS.items(), ids=[function.__name__ for function in FUNCTIONS]
)


@every_module
def test_a_scale_is_learnt_and_shown(kind: Any, apply: Any) -> None:
    criterion = build(kind, logit_scale=12.0, learnable=True)
    assert "logit_scale.log" in dict(criterion.named_parameters())
    optimizer = torch.optim.SGD(criterion.parameters(), lr=0.5)
    apply(criterion).backward()
    optimizer.step()
    learnt = criterion.logit_scale().item()
    assert learnt != pytest.approx(12.0)
    assert f"LogitScale({learnt:g}, learnable=True, max_scale=100.0)" in repr(criterion)
    assert criterion.temperature.item() == pytest.approx(1 / learnt)
    twin = build(kind, learnable=True)
    twin.load_state_dict(criterion.state_dict())
    assert torch.equal(apply(twin), apply(criterion))


@every_module
def test_a_learnt_scale_is_reset_to_its_bound(kind: Any, apply: Any) -> None:
    at_bound = apply(build(kind, logit_scale=100.0, learnable=False))
    criterion = build(kind, logit_scale=100.0, learnable=True)
    log = criterion.logit_scale.log
    torch.testing.assert_close(apply(criterion), at_bound)
    (grad,) = gradients(apply(criterion), log)
    assert grad != 0  # a scale at the bound can still decrease
    with torch.no_grad():
        log.add_(1)  # a step too far
    assert "LogitScale(100, learnable=True" in repr(criterion)
    torch.testing.assert_close(apply(criterion.eval()), at_bound)
    assert log.item() > math.log(100) + 0.9  # only training resets it
    torch.testing.assert_close(apply(criterion.train()), at_bound)
    assert log.item() == pytest.approx(math.log(100))
    assert torch.equal(gradients(apply(criterion), log)[0], grad)
    criterion.max_scale = None
    with torch.no_grad():
        log.add_(1)
    torch.testing.assert_close(
        apply(criterion),
        apply(build(kind, logit_scale=100 * math.e, learnable=False)),
        rtol=1e-5,
        atol=1e-7,
    )


@every_module
def test_a_number_is_used_as_it_is(kind: Any, apply: Any) -> None:
    options = {"learnable": False}
    fixed = apply(build(kind, logit_scale=200.0, **options))
    assert not torch.equal(fixed, apply(build(kind, logit_scale=100.0, **options)))
    with pytest.raises(ValueError, match="a learnt logit_scale is bounded by max_scale = 100, got"):
        build(kind, logit_scale=200.0, learnable=True)
    free = build(kind, logit_scale=200.0, learnable=True, max_scale=None)
    torch.testing.assert_close(apply(free), fixed, rtol=1e-5, atol=1e-7)


@every_module
def test_temperature_is_the_inverse(kind: Any, apply: Any) -> None:
    options = {"learnable": False}
    by_scale = build(kind, logit_scale=1 / 0.07, **options)
    by_temperature = build(kind, temperature=0.07, **options)
    assert torch.equal(apply(by_scale), apply(by_temperature))
    assert by_temperature.temperature == 0.07
    with pytest.raises(ValueError, match=f"{kind.__name__}: logit_scale and temperature are both "):
        build(kind, logit_scale=20.0, temperature=0.05)
    with pytest.raises(ValueError, match="temperature must be finite and > 0, got 0"):
        build(kind, temperature=0)


@every_module
def test_a_schedule_sets_scale_or_temperature(kind: Any, apply: Any) -> None:
    for learnable in (False, True):
        criterion = build(kind, learnable=learnable)
        expected = apply(build(kind, temperature=0.2, learnable=learnable))
        criterion.temperature = 0.2
        assert torch.equal(apply(criterion), expected)
        criterion.logit_scale = 1 / 0.2
        assert torch.equal(apply(criterion), expected)
        criterion.logit_scale.value = 7.0
        assert apply(criterion) != expected
        assert len(list(criterion.parameters())) == (learnable and len(criterion.state_dict()))
        with pytest.raises(ValueError, match="logit_scale must be finite and > 0, got -1"):
            criterion.logit_scale = -1


@every_function
def test_functions_take_a_temperature(function: Any, apply: Any) -> None:
    expected = apply(function, logit_scale=1 / 0.07)
    assert torch.equal(apply(function, temperature=0.07), expected)
    learnt = torch.tensor(0.07, dtype=torch.float64, requires_grad=True)
    found = apply(function, temperature=learnt)
    torch.testing.assert_close(found, expected)
    assert gradients(found, learnt)[0] != 0
    message = f"{function.__name__}: logit_scale and temperature are both given; pass one"
    with pytest.raises(ValueError, match=message):
        apply(function, temperature=0.07, logit_scale=14.0)


@every_function
def test_functions_bound_the_scale_when_asked(function: Any, apply: Any) -> None:
    learnt = torch.tensor(130.0, dtype=torch.float64, requires_grad=True)
    bounded = apply(function, logit_scale=learnt, max_scale=100)
    assert torch.equal(bounded, apply(function, logit_scale=100.0))
    assert gradients(bounded, learnt)[0] == 0
    assert gradients(apply(function, logit_scale=learnt), learnt)[0] != 0  # by default it is free
    with pytest.raises(ValueError, match="max_scale must be finite and > 0, got 0"):
        apply(function, max_scale=0)


def test_a_tensor_given_to_a_call_is_bounded_as_a_learnt_scale_is() -> None:
    for kind, apply in SCALED.items():
        if kind in (losses.InfoCMRLoss, losses.ITOLoss):  # whose calls take no scale
            continue
        given = torch.tensor(130.0, requires_grad=True)
        found = apply(kind(), logit_scale=given)
        torch.testing.assert_close(found, apply(kind(100.0)))
        torch.testing.assert_close(apply(kind(), logit_scale=130.0), apply(kind(130.0)))


def test_state_of_earlier_versions_loads() -> None:
    log = torch.tensor(3.0)
    criterion = losses.SigmoidLoss(learnable=True)
    criterion.load_state_dict({"logit_scale.log": log, "logit_bias": torch.tensor(-8.0)})
    assert criterion.logit_scale().item() == pytest.approx(log.exp().item())
    losses.InfoCMRLoss().load_state_dict({})


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_bounded_scale_compiles(dynamic: bool) -> None:
    criterion = losses.InfoCMRLoss(temperature=0.05, learnable=True, num_clusters=0, num_noise=0)
    torch._dynamo.reset()
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    log = criterion.logit_scale.log
    torch.testing.assert_close(one(compiled), one(criterion))
    torch.testing.assert_close(gradients(one(compiled), log), gradients(one(criterion), log))
