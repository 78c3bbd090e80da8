"""Attributes of the drop-in classes take effect when set after construction."""

from typing import Any

import pytest
import torch
from torch import nn

from compat_formulas import triplet_loss
from itm_kernels.compat import open_clip, sgraf, vsepp
from itm_kernels.compat.imc import IntraLoss
from itm_kernels.compat.open_clip import ClipLoss, SigLipLoss
from itm_kernels.compat.vsepp import ContrastiveLoss
from oracles.batches import unit_pair

IM, S = (x.detach() for x in unit_pair(9, torch.float32))
# |x|^2 - 1, the original's diagonal, is inside some bands.
LONG = 1.2 * torch.cat([IM, IM[:2]])
CALLS: dict[type, tuple[Any, ...]] = {
    ContrastiveLoss: (IM, S),
    sgraf.ContrastiveLoss: (IM @ S.T,),
    IntraLoss: (LONG,),
    ClipLoss: (IM, S, 7.0),
    SigLipLoss: (IM, S, 7.0, -2.0),
}
# class, options, attribute, value, whether the value changes the loss
SET = [
    (ContrastiveLoss, {}, "margin", 0.3, True),
    (ContrastiveLoss, {"max_violation": True}, "margin", 0.3, True),
    (ContrastiveLoss, {"measure": "order"}, "margin", 0.3, True),
    (ContrastiveLoss, {"measure": "order", "max_violation": True}, "margin", 1, True),
    (ContrastiveLoss, {"margin": 0.2}, "measure", "order", True),
    (ContrastiveLoss, {"margin": 0.2, "measure": "order"}, "measure", "cosine", True),
    (ContrastiveLoss, {"margin": 0.2}, "max_violation", True, True),
    (ContrastiveLoss, {"margin": 0.2, "max_violation": True}, "max_violation", False, True),
    (sgraf.ContrastiveLoss, {}, "margin", 0.3, True),
    (sgraf.ContrastiveLoss, {"max_violation": True}, "margin", 0.3, True),
    (sgraf.ContrastiveLoss, {"margin": 0.2}, "max_violation", True, True),
    (IntraLoss, {"measure": "cosine"}, "margin", 0.3, False),
    (IntraLoss, {}, "measure", "l1", True),
    (IntraLoss, {"measure": "cosine"}, "measure", "msd", True),
    (IntraLoss, {"measure": "l2"}, "measure", "cosine", True),
    (IntraLoss, {"measure": "l1"}, "max_violation", True, False),
    *(
        (IntraLoss, {"measure": measure}, name, value, True)
        for measure in ("cosine", "msd", "l1", "l2")
        for name, value in (("up", 0.3), ("down", 0.35), ("lamb", 2.5))
    ),
    (ClipLoss, {}, "local_loss", True, False),
    (ClipLoss, {}, "gather_with_grad", True, False),
    (ClipLoss, {}, "cache_labels", True, False),
    (ClipLoss, {}, "rank", 3, False),
    (ClipLoss, {}, "world_size", 1, False),
    (ClipLoss, {}, "use_horovod", True, False),
    (SigLipLoss, {}, "cache_labels", True, False),
    (SigLipLoss, {}, "rank", 3, False),
    (SigLipLoss, {}, "world_size", 1, False),
    (SigLipLoss, {}, "dist_impl", "gather", False),
    (SigLipLoss, {}, "chunk_size", 4, False),
]
NAMES = [f"{kind.__name__}-{options.get('measure', '')}-{name}" for kind, options, name, *_ in SET]


@pytest.mark.parametrize("kind, options, name, value, acts", SET, ids=NAMES)
def test_an_attribute_set_later_acts_as_if_constructed(
    kind: type[nn.Module], options: dict[str, Any], name: str, value: object, acts: bool
) -> None:
    loss, fresh = kind(**options), kind(**{**options, name: value})
    setattr(loss, name, value)
    found = loss(*CALLS[kind])
    assert getattr(loss, name) == value
    assert found.item() == fresh(*CALLS[kind]).item()
    if options or kind is not IntraLoss:
        assert (found.item() != kind(**options)(*CALLS[kind]).item()) is acts


def test_every_argument_of_a_constructor_is_an_attribute() -> None:
    for kind, arguments in (
        (ContrastiveLoss, {"margin": 0.1, "max_violation": True}),
        (IntraLoss, {"margin": 0.1, "measure": "l1", "up": 0.7, "down": 0.1, "lamb": 2.0}),
        (ClipLoss, {"local_loss": True, "gather_with_grad": True, "cache_labels": True}),
        (ClipLoss, {"rank": 2, "world_size": 1, "use_horovod": True}),
        (SigLipLoss, {"cache_labels": True, "rank": 1, "dist_impl": "shift", "chunk_size": 8}),
    ):
        loss = kind(**arguments)
        assert {name: getattr(loss, name) for name in arguments} == arguments


@pytest.mark.parametrize("kind", [ClipLoss, SigLipLoss])
def test_state_that_is_no_argument(kind: type[ClipLoss] | type[SigLipLoss]) -> None:
    loss = kind()
    assert loss.prev_num_logits == 0 and loss.labels == {}
    assert SigLipLoss().dist_impl == "bidir"


REFUSED = [
    (ContrastiveLoss, "margin", "0.2", TypeError, "margin must be a number, got"),
    (ContrastiveLoss, "margin", float("nan"), ValueError, "margin must be finite, got nan"),
    (ContrastiveLoss, "sim", "order", TypeError, r"sim must be a function of \(im, s\), got"),
    (IntraLoss, "up", "0.5", TypeError, "up must be a number, got"),
    (IntraLoss, "down", None, TypeError, "down must be a number, got"),
    (IntraLoss, "lamb", torch.ones(2), ValueError, "lamb must be a number or a floating-point"),
    (IntraLoss, "sim", torch.mm, AttributeError, "sim cannot be set, .* set measure to one of"),
    (SigLipLoss, "world_size", 0.5, TypeError, "world_size must be an int, got"),
    (ClipLoss, "world_size", 0, ValueError, "world_size must be >= 1, got 0"),
    (SigLipLoss, "dist_impl", "ring", ValueError, "dist_impl must be one of 'bidir', 'shift'"),
    (SigLipLoss, "chunk_size", -1, ValueError, "chunk_size must be >= 0, got -1"),
    (SigLipLoss, "chunk_size", 0.5, TypeError, "chunk_size must be an int, got"),
    *(
        (kind, "backend", "cuda", ValueError, "backend must be one of 'auto', 'reference'")
        for kind in CALLS
    ),
]


@pytest.mark.parametrize(
    "kind, name, value, error, message", REFUSED, ids=[f"{k.__name__}-{n}" for k, n, *_ in REFUSED]
)
def test_a_wrong_value_is_refused_when_it_is_set(
    kind: type[nn.Module], name: str, value: object, error: type[Exception], message: str
) -> None:
    loss = kind()
    before = getattr(loss, name, None)
    with pytest.raises(error, match=f"^{kind.__name__}: {message}"):
        setattr(loss, name, value)
    assert getattr(loss, name, None) is before


def test_a_margin_may_follow_a_schedule() -> None:
    loss = ContrastiveLoss(0.0, max_violation=True)
    for epoch in range(4):
        loss.margin = 0.05 * epoch
        wanted = triplet_loss(IM, S, 0.05 * epoch, False, True)
        torch.testing.assert_close(loss(IM, S), wanted)


def test_measure_chooses_the_function_of_the_original() -> None:
    loss = ContrastiveLoss(measure="order")
    assert loss.sim is vsepp.order_sim
    loss.measure = "cosine"
    assert loss.sim is vsepp.cosine_sim
    torch.testing.assert_close(loss.sim(IM, S), IM @ S.T)
    torch.testing.assert_close(vsepp.order_sim(IM, IM).diagonal(), torch.zeros(9))


@pytest.mark.parametrize("max_violation", [False, True])
def test_another_sim_is_used(max_violation: bool) -> None:
    loss = ContrastiveLoss(0.2, max_violation=max_violation)
    loss.sim = lambda im, s: 2 * im @ s.T
    torch.testing.assert_close(loss(IM, S), triplet_loss(2 * IM, S, 0.2, False, max_violation))
    loss.sim = vsepp.order_sim
    torch.testing.assert_close(loss(IM, S), triplet_loss(IM, S, 0.2, "order", max_violation))
    loss.sim = lambda im, s: im[:, :4] @ s[:3, :4].T
    with pytest.raises(
        ValueError, match=r"ContrastiveLoss: sim returned scores \[9, 3\]; pass one"
    ):
        loss(IM, S)
    loss.sim = lambda im, s: None
    with pytest.raises(TypeError, match="ContrastiveLoss: scores must be a torch.Tensor, got"):
        loss(IM, S)


def test_a_factor_may_be_learnt() -> None:
    lamb = torch.tensor(2.0, requires_grad=True)
    loss = IntraLoss(measure="l1", lamb=lamb)
    loss(LONG).backward()
    assert lamb.grad is not None
    assert lamb.grad.item() == pytest.approx(IntraLoss(measure="l1")(LONG).item())


@pytest.mark.parametrize("kind", CALLS)
def test_the_reference_can_be_chosen_for_second_derivatives(kind: type[nn.Module]) -> None:
    # Distances have no second derivative in PyTorch either.
    loss = kind(measure="cosine") if kind is IntraLoss else kind()
    loss.backend = "reference"
    first, *others = CALLS[kind]
    x = first.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x, *others), x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("kind", [ClipLoss, SigLipLoss])
def test_setting_an_attribute_does_not_change_the_class(kind: type[nn.Module]) -> None:
    kind().backend = "reference"
    assert kind().backend == "auto"
    assert set(open_clip.ClipLoss().labels) == set()
