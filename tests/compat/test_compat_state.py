"""Drop-in losses are copied, pickled, moved, compiled and called by keyword."""

import copy
import pickle
from argparse import Namespace
from typing import Any

import pytest
import torch
from torch import nn

from itm_kernels.compat import scan, sgraf
from itm_kernels.compat.imc import IntraLoss
from itm_kernels.compat.open_clip import ClipLoss, SigLipLoss
from itm_kernels.compat.vsepp import ContrastiveLoss
from oracles.batches import unit_pair

IM, S = (x.detach() for x in unit_pair(6, torch.float32))
FEATURES = {"image_features": IM, "text_features": S}
OPT = Namespace(
    cross_attn="t2i",
    raw_feature_norm="clipped_l2norm",
    agg_func="LogSumExp",
    lambda_softmax=9.0,
    lambda_lse=6.0,
)
REGIONS = {"im": IM.view(2, 3, 12), "s": S.view(2, 3, 12), "s_l": [3, 2]}
LOSSES: list[tuple[nn.Module, dict[str, Any]]] = [
    (ContrastiveLoss(0.2), {"im": IM, "s": S}),
    (ContrastiveLoss(0.2, "order", True), {"im": IM, "s": S}),
    (scan.ContrastiveLoss(OPT, 0.2), REGIONS),
    (scan.ContrastiveLoss(Namespace(**{**vars(OPT), "cross_attn": "i2t"}), 0.2, True), REGIONS),
    (sgraf.ContrastiveLoss(0.2), {"scores": IM @ S.T}),
    (sgraf.ContrastiveLoss(0.2, True), {"scores": IM @ S.T}),
    (IntraLoss(measure="cosine", up=0.1), {"mx": IM}),
    (IntraLoss(measure="l1"), {"mx": IM}),
    (ClipLoss(), {**FEATURES, "logit_scale": 7.0}),
    (ClipLoss(cache_labels=True), {**FEATURES, "logit_scale": 7.0, "logit_bias": -2.0}),
    (SigLipLoss(), {**FEATURES, "logit_scale": 7.0, "logit_bias": -2.0}),
    (SigLipLoss(chunk_size=4), {**FEATURES, "logit_scale": 7.0, "logit_bias": None}),
]
IDS = [f"{type(loss).__name__}-{i}" for i, (loss, _) in enumerate(LOSSES)]
each = pytest.mark.parametrize("loss, call", LOSSES, ids=IDS)


@each
def test_a_loss_is_copied_pickled_and_moved(loss: nn.Module, call: dict[str, Any]) -> None:
    wanted = loss(**call).item()
    moved = copy.deepcopy(loss).to("cpu").half().eval()
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), moved):
        assert other(**call).item() == wanted
    assert loss.training and not moved.training


@each
def test_a_loss_prints_and_saves_as_the_original(loss: nn.Module, call: dict[str, Any]) -> None:
    assert repr(loss) == f"{type(loss).__name__}()"
    assert dict(loss.state_dict()) == {}
    loss.load_state_dict({}, strict=True)
    assert not list(loss.parameters()) and not list(loss.children())


@each
def test_a_loss_compiles_to_one_graph(loss: nn.Module, call: dict[str, Any]) -> None:
    call = {k: v.clone().requires_grad_() if torch.is_tensor(v) else v for k, v in call.items()}
    inputs = [v for v in call.values() if torch.is_tensor(v)]
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    wanted = torch.autograd.grad(loss(**call), inputs)
    found = torch.autograd.grad(compiled(**call), inputs)
    for left, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(left, right)


def test_a_margin_that_changes_reaches_a_compiled_loss() -> None:
    loss = ContrastiveLoss(0.1)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    for margin in (0.1, 0.2, 0.3):
        loss.margin = margin
        assert compiled(IM, S).item() == pytest.approx(ContrastiveLoss(margin)(IM, S).item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each
def test_low_precision_is_computed_in_fp32(
    loss: nn.Module, call: dict[str, Any], dtype: torch.dtype
) -> None:
    low = {k: v.to(dtype) if torch.is_tensor(v) else v for k, v in call.items()}
    wide = {k: v.float() if torch.is_tensor(v) else v for k, v in low.items()}
    found, wanted = loss(**low), loss(**wide)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("loss", [ClipLoss(), SigLipLoss(), SigLipLoss(chunk_size=2)])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_learnable_scale_has_a_gradient(loss: nn.Module, shape: tuple[int, ...]) -> None:
    scale = torch.full(shape, 7.0, requires_grad=True)
    bias = torch.full(shape, -2.0, requires_grad=True)
    loss(IM, S, scale, bias, output_dict=True)["contrastive_loss"].backward()
    step = 0.5
    above, below = (loss(IM.double(), S.double(), 7.0 + d, -2.0) for d in (step, -step))
    assert scale.grad is not None and scale.grad.shape == shape
    assert scale.grad.item() == pytest.approx((above - below).item() / (2 * step), rel=0.02)
    assert bias.grad is not None and bias.grad.shape == shape
