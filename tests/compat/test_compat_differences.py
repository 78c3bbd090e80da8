"""Every difference to the originals that docs/coming_from.md lists.

The formulas of `compat_formulas` state what the originals compute.
"""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compat_formulas import clip_loss, intra_loss, siglip_loss, triplet_loss
from itm_kernels.compat import vsepp
from itm_kernels.compat.imc import IntraLoss
from itm_kernels.compat.open_clip import ClipLoss, SigLipLoss
from itm_kernels.compat.vsepp import ContrastiveLoss
from oracles.batches import unit_pair

PAGE = Path(__file__).parents[2] / "docs/coming_from.md"
IM, S = (x.detach() for x in unit_pair(6, torch.float64))


def gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


def test_imports_of_the_page_work() -> None:
    lines = re.findall(r"`(from itm_kernels[^`]*)`", PAGE.read_text(encoding="utf-8"))
    assert len(lines) == 7
    for line in lines:
        exec(line, {})


# -- every class -----------------------------------------------------------------------------------

CALLS = [
    (ContrastiveLoss(0.2), (IM, S)),
    (ContrastiveLoss(0.2, "order"), (IM, S)),
    (IntraLoss(measure="l1"), (IM,)),
    (ClipLoss(), (IM, S, 7.0)),
    (SigLipLoss(), (IM, S, 7.0, -2.0)),
]
each = pytest.mark.parametrize("loss, inputs", CALLS, ids=lambda x: type(x).__name__)


@pytest.mark.native
@each
def test_autocast_does_not_lower_the_precision(loss: torch.nn.Module, inputs: tuple) -> None:
    rows = [x.bfloat16() if torch.is_tensor(x) else x for x in inputs]
    wide = [x.float() if torch.is_tensor(x) else x for x in rows]
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(*rows)
        assert loss(*wide).item() == loss(*wide).float().item()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(*wide))


@each
def test_a_batch_without_rows_is_an_error(loss: torch.nn.Module, inputs: tuple) -> None:
    empty = [x[:0] if torch.is_tensor(x) else x for x in inputs]
    with pytest.raises(ValueError, match=rf"{type(loss).__name__}: \w+ \[0, 12\] is empty; skip"):
        loss(*empty)


@each
def test_wrong_shapes_name_the_arguments(loss: torch.nn.Module, inputs: tuple) -> None:
    first, *others = inputs
    name = type(loss).__name__
    with pytest.raises(ValueError, match=rf"^{name}: \w+ must have shape \[rows, D\], got \[6\]"):
        loss(first[:, 0], *others)
    if len(inputs) > 1:
        with pytest.raises(ValueError, match=rf"^{name}: .* differ in rows; pass one text per im"):
            loss(first[:4], *others)


# -- VSE++ -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_violation", [False, True])
def test_a_hinge_of_zero_has_gradient_zero(max_violation: bool) -> None:
    # Every negative scores exactly 0.5 below its positive.
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    text = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    ours = ContrastiveLoss(0.5, max_violation=max_violation)(image, text)
    original = triplet_loss(image, text, 0.5, False, max_violation)
    assert ours.item() == original.item() == 0
    assert (gradients(ours, image)[0] == 0).all()
    assert (gradients(original, image)[0] != 0).any()


def test_an_order_without_violation_has_gradient_zero() -> None:
    # The original divides 0 by 0 where an image and a text share an element.
    image, text = torch.ones(3, 4), torch.zeros(3, 4)
    text[:, 0] = 1
    image, text = image.requires_grad_(), text.requires_grad_()
    ours = ContrastiveLoss(0.2, "order")(image, text)
    original = triplet_loss(image, text, 0.2, "order", False)
    assert ours.item() == original.item()
    for own, other in zip(
        gradients(ours, image, text), gradients(original, image, text), strict=True
    ):
        assert (own == 0).all() and other[:, 0].isnan().all()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_an_order_with_nan_shows_in_the_gradient(backend: str) -> None:
    image, text = (x.clone() for x in (IM, S))
    text[0, 0] = torch.nan
    for max_violation in (False, True):
        x, y = image.clone().requires_grad_(), text.clone().requires_grad_()
        loss = ContrastiveLoss(0.2, "order", max_violation)
        loss.backend = backend
        value = loss(x, y)
        assert value.isnan() and any(g.isnan().any() for g in gradients(value, x, y))


def test_an_infinite_score_of_a_pair_shows() -> None:
    image, text = torch.tensor([[torch.inf], [1.0]]), torch.tensor([[1.0], [-1.0]])
    for max_violation in (False, True):
        assert triplet_loss(image, text, 0.2, False, max_violation).isfinite()
        assert ContrastiveLoss(0.2, False, max_violation)(image, text).isnan()


def test_one_of_equally_hard_negatives_takes_the_gradient() -> None:
    # Small integers, whose products are exact: negatives 1 and 2 of image 0 tie.
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    text = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]], requires_grad=True)
    loss = ContrastiveLoss(0.25, max_violation=True)(image, text)
    assert loss.item() == triplet_loss(image, text, 0.25, False, True).item()
    (grad,) = gradients(loss, text)
    assert sorted(grad[1:, 0].tolist()) == [0.0, 1.0]


OPTIONS = type("Namespace", (), {"cross_attn": "t2i", "max_violation": True, "margin": 0.2})()


@pytest.mark.parametrize(
    "build",
    [
        lambda: ContrastiveLoss(opt=OPTIONS, margin=0.2, max_violation=True),
        lambda: ContrastiveLoss(OPTIONS, margin=0.2),
        lambda: ContrastiveLoss(OPTIONS, 0.2, True),
    ],
    ids=["keywords", "mixed", "positional"],
)
def test_the_constructor_of_scan_is_named(build) -> None:
    message = (
        r"ContrastiveLoss: .* not SCAN's ContrastiveLoss\(opt, .* import that from "
        "itm_kernels.compat.scan$"
    )
    with pytest.raises(TypeError, match=message):
        build()


def test_the_forwards_of_scan_and_sgraf_are_named() -> None:
    loss = ContrastiveLoss(0.2)
    for arguments, named, module, error in (
        ((IM, S, [3, 2]), r"SCAN's takes \(im, s, s_l\)", "scan", TypeError),
        ((IM @ S.T,), r"SGRAF's takes \(scores\)", "sgraf", TypeError),
        (
            (IM[:, None], S[:, None]),
            r"im must have shape \[rows, D\], got \[6, 1, 12\]",
            "scan",
            ValueError,
        ),
    ):
        message = f"ContrastiveLoss: .*{named}.* import it from itm_kernels.compat.{module}$"
        with pytest.raises(error, match=message):
            loss(*arguments)
    with pytest.raises(TypeError, match=r"SCAN's takes \(im, s, s_l\)"):
        loss(im=IM, s=S, s_l=[3, 2])


def test_order_is_scored_by_order_where_imc_ignores_it() -> None:
    ours = ContrastiveLoss(0.2, "order")(IM, S)
    torch.testing.assert_close(ours, triplet_loss(IM, S, 0.2, "order", False))
    ignoring = ContrastiveLoss(0.2, "order")
    ignoring.sim = vsepp.cosine_sim
    torch.testing.assert_close(ignoring(IM, S), triplet_loss(IM, S, 0.2, False, False))


# -- IMC -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", ["l1", "l2", "msd"])
def test_a_rank_beyond_the_batch_is_no_bound(measure: str) -> None:
    with pytest.raises(IndexError):
        intra_loss(IM, measure, 1.0, 0.05, 1.0)
    whole = IntraLoss(measure=measure, up=1.0, down=0.0)(IM)
    # Everything but the row itself, which is the smallest.
    distance = torch.cdist(IM, IM, p=1.0 if measure == "l1" else 2.0)
    distance = distance.square() if measure == "msd" else distance
    wanted = torch.nn.functional.normalize(distance, dim=1).sum() / len(IM)
    torch.testing.assert_close(whole, wanted)
    assert IntraLoss(measure=measure, down=1.0)(IM).item() == 0


@pytest.mark.parametrize("name", ["up", "down"])
def test_a_negative_rank_is_an_error(name: str) -> None:
    loss = IntraLoss(measure="l1", **{name: -0.2})
    assert intra_loss(IM, "l1", *((-0.2, 0.05) if name == "up" else (0.5, -0.2)), 1.0).isfinite()
    with pytest.raises(ValueError, match=f"IntraLoss: {name} must be finite and >= 0, got -0.2"):
        loss(IM)
    loss.measure = "cosine"  # a bound of similarities may be negative
    assert loss(IM).isfinite()


@pytest.mark.parametrize("measure", ["l2", "msd"])
def test_equal_rows_are_at_distance_zero(measure: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(15, 512).repeat(2, 1)
    assert torch.cdist(x, x).diagonal(15).max() > 1e-4  # what the original ranks
    # The band begins at row 0's distance to itself, which its copy shares.
    loss = IntraLoss(measure=measure, down=0.0, up=1.0)
    torch.testing.assert_close(loss(x), loss(x.double()).float())


def test_measure_set_later_and_no_measure() -> None:
    loss = IntraLoss()
    with pytest.raises(ValueError, match="IntraLoss: measure must be one of 'cosine', 'msd', 'l1'"):
        loss(IM)
    loss.measure = "l2"
    torch.testing.assert_close(loss(IM), intra_loss(IM, "l2", 0.5, 0.05, 1.0))
    with pytest.raises(AttributeError, match="IntraLoss: sim cannot be set"):
        loss.sim = torch.mm


# -- open_clip -------------------------------------------------------------------------------------


def test_an_infinite_logit_of_a_pair_shows_in_siglip() -> None:
    image, text = torch.tensor([[torch.inf]]), torch.ones(1, 1)
    scale, bias = torch.tensor(1.0), torch.tensor(0.0)
    assert siglip_loss(image, text, scale, bias).item() == 0
    assert SigLipLoss()(image, text, scale, bias).isnan()
    infinite = torch.tensor(torch.inf, dtype=torch.float64)
    assert siglip_loss(IM, S, torch.ones(()), infinite).item() == math.inf
    assert SigLipLoss()(IM, S, 1.0, infinite).isnan()


@pytest.mark.parametrize("kind", [ClipLoss, SigLipLoss])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_where_the_loss_is_nan_the_gradient_is_too(
    kind: type[ClipLoss] | type[SigLipLoss], value: float
) -> None:
    for place in ("bias", "scale", "image"):
        image, text = (x.clone().requires_grad_() for x in (IM, S))
        scale = torch.tensor(value if place == "scale" else 7.0, requires_grad=True)
        bias = torch.tensor(value if place == "bias" else -2.0, requires_grad=True)
        with torch.no_grad():
            if place == "image":
                image[0, 0] = value
        loss = kind()(image, text, scale, bias)
        found = gradients(loss, image, text, scale, bias)
        assert not loss.isnan() or any(not g.isfinite().all() for g in found)
        assert loss.isnan() or (kind is SigLipLoss and place == "bias" and value < 0)


def test_a_bias_of_clip_has_gradient_zero() -> None:
    scale = torch.tensor(7.0)
    bias = torch.tensor(3.0, requires_grad=True)
    image, text = IM.float(), S.float()
    (ours,) = gradients(ClipLoss()(image, text, scale, bias), bias)
    (original,) = gradients(clip_loss(image, text, scale, bias), bias)
    assert ours.item() == 0 and abs(original.item()) < 1e-6


@pytest.mark.parametrize("kind", [ClipLoss, SigLipLoss])
@pytest.mark.parametrize("name", ["logit_scale", "logit_bias"])
def test_scalars_are_single_and_finite(kind: type[ClipLoss] | type[SigLipLoss], name: str) -> None:
    scalars = {"logit_scale": torch.tensor(7.0), "logit_bias": torch.tensor(-2.0)}
    for value, message in (
        (torch.ones(12), r"must be a number or a floating-point tensor of one element, got"),
        (math.nan, "must be finite, got nan"),
        (math.inf, "must be finite, got inf"),
    ):
        with pytest.raises(ValueError, match=f"{kind.__name__}: {name} {message}"):
            kind()(IM, S, **{**scalars, name: value})


def test_forward_needs_no_labels() -> None:
    loss = ClipLoss(cache_labels=True)
    loss(IM, S, 7.0)
    assert loss.labels == {}
    loss.get_ground_truth(IM.device, len(IM))
    assert list(loss.labels) == [IM.device]
