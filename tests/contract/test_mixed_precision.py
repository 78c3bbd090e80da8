"""Inside autocast, inputs of different floating dtypes are promoted as PyTorch promotes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from itm_kernels import functional as F
from itm_kernels import losses, mining, ops, retrieval, synthesis
from itm_kernels.compat.open_clip import ClipLoss, SigLipLoss
from itm_kernels.compat.vsepp import ContrastiveLoss
from loss_cases import BY_NAME, CASES, Case, batch, gradients

MIXED = [
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float16),  # promoted to fp32, which neither is
    (torch.float32, torch.float64),
]
IDS = [f"{str(a)[6:]}-{str(b)[6:]}" for a, b in MIXED]
# The others take one tensor at a time, or views that a test builds of both sides.
TWO_SIDED = [
    case
    for case in CASES
    if case.name.split("-")[0] not in ("constraint", "multi_view", "fusion", "ito")
]


@pytest.fixture(params=TWO_SIDED, ids=lambda case: case.name)
def two_sided(request: pytest.FixtureRequest) -> Case:
    return request.param


def autocast() -> torch.autocast:
    device = torch.get_default_device().type
    return torch.autocast(device, torch.bfloat16)


def mixed_batch(dtypes: tuple[torch.dtype, torch.dtype]) -> tuple[list[Tensor], list[Tensor]]:
    """Return a batch in two dtypes, and the same values in the dtype that both promote to."""
    rows = [t.detach().to(dtype) for t, dtype in zip(batch(), dtypes, strict=True)]
    wide = torch.promote_types(*dtypes)
    return [t.clone().requires_grad_() for t in rows], [t.to(wide).requires_grad_() for t in rows]


def assert_as_promoted(
    loss: Callable[[Tensor, Tensor], Tensor], dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    inputs, promoted = mixed_batch(dtypes)
    expected = loss(*promoted)
    with autocast():
        found = loss(*inputs)
    assert torch.equal(found, expected)
    wanted = gradients(expected.sum(), *promoted)
    for grad, wide, own in zip(gradients(found.sum(), *inputs), wanted, inputs, strict=True):
        assert grad.dtype == own.dtype
        # Rounded once, or once a term where several terms meet in the input itself.
        rounding = 2 * torch.finfo(own.dtype).eps
        torch.testing.assert_close(grad, wide.to(own.dtype), rtol=rounding, atol=rounding)


@pytest.mark.native
@pytest.mark.parametrize("dtypes", MIXED, ids=IDS)
def test_losses_promote_inside_autocast(two_sided: Case, dtypes: tuple[Any, Any]) -> None:
    assert_as_promoted(lambda x, y: two_sided.loss(x, y, "auto"), dtypes)


def drawn(results: Any) -> Tensor:
    """Return indices as a function of the inputs with a gradient of 0."""
    return torch.cat([t.flatten().double() for t in results])


# Functions of two tensors of embeddings that are no case of tests/support/loss_cases.py.
PARTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "multi_view": lambda x, y: F.multi_view_alignment_loss(x[None], y[None]),
    "views": lambda x, y: losses.MultiViewAlignmentLoss()(x[None], y[None]),
    "ito": lambda x, y: losses.ITOLoss()(x[None], y[None], torch.stack([x + y, y])),
    "info_nce-scale": lambda x, y: F.info_nce_loss(x, y, logit_scale=y[0, 0].detach().abs() + 1),
    "similarity": ops.similarity,
    "similarity-l1": lambda x, y: ops.similarity(x, y, "l1"),
    "hardest_negatives": lambda x, y: ops.hardest_negatives(x, y).text_score,
    "log_sum_exp": lambda x, y: ops.log_sum_exp(x, y, 2.0).column,
    "ranks": lambda x, y: drawn(ops.ranks(x, y, *torch.arange(5).expand(2, 5))),
    "kmeans": lambda x, y: drawn(ops.kmeans(x, 2, init=y[:2])),
    "rbf_synthesis": lambda x, y: ops.rbf_synthesis(x, y, torch.arange(5) % 2, 2, 0.5).vectors,
    "rbf_synthesis_logits": (
        lambda x, y: ops.rbf_synthesis_logits(x, y, torch.arange(5) % 2, 2, 0.5).cosine
    ),
    "synthesis": lambda x, y: (
        synthesis.HardNegativeSynthesis(2, sigma=0.5, detach=False)(
            x, y, generator=torch.Generator().manual_seed(0)
        ).vectors
    ),
    "sampler": lambda x, y: drawn(mining.HardNegativeSampler("hardest")(x, y)),
    "evaluate": lambda x, y: torch.tensor(retrieval.evaluate(x, y, ks=(1, 2)).rsum),
    "average_precision": lambda x, y: torch.tensor(
        retrieval.mean_average_precision(x, y, *torch.tensor([0, 1, 1, 0, 1]).expand(2, 5))
    ),
    "vsepp": lambda x, y: ContrastiveLoss(0.2)(x, y),
    "vsepp-max": lambda x, y: ContrastiveLoss(0.2, max_violation=True)(x, y),
    "vsepp-order": lambda x, y: ContrastiveLoss(0.2, measure="order")(x, y),
    "open_clip": lambda x, y: ClipLoss()(x, y, torch.tensor(5.0)),
    "open_clip-siglip": lambda x, y: SigLipLoss()(x, y, torch.tensor(5.0), torch.tensor(-1.0)),
}


@pytest.mark.native
@pytest.mark.parametrize("dtypes", MIXED, ids=IDS)
@pytest.mark.parametrize("part", PARTS)
def test_parts_promote_inside_autocast(part: str, dtypes: tuple[Any, Any]) -> None:
    if part in ("ranks", "kmeans", "sampler", "evaluate", "average_precision"):  # without gradient
        inputs, promoted = mixed_batch(dtypes)
        with autocast():
            found = PARTS[part](*inputs)
        assert torch.equal(found, PARTS[part](*promoted))
        return
    assert_as_promoted(PARTS[part], dtypes)


@pytest.mark.parametrize("dtypes", MIXED, ids=IDS)
@pytest.mark.parametrize("within", [False, True], ids=["outside", "switched-off"])
def test_dtypes_that_differ_are_refused_outside_autocast(
    two_sided: Case, dtypes: tuple[Any, Any], within: bool
) -> None:
    inputs, _ = mixed_batch(dtypes)
    with torch.autocast("cpu", enabled=False) if within else torch.enable_grad():
        with pytest.raises(TypeError, match="differ in dtype, .*; convert one with"):
            two_sided.loss(*inputs, "auto")


def test_scales_of_any_precision() -> None:
    image, text = batch()
    expected = F.info_nce_loss(image, text, logit_scale=8.0)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        scale = torch.tensor(8.0, dtype=dtype, requires_grad=True)
        found = F.info_nce_loss(image, text, logit_scale=scale)
        assert torch.equal(found, expected)
        (grad,) = torch.autograd.grad(found, scale)
        assert grad.dtype == dtype


@pytest.mark.parametrize("name", ["max_of_hinges", "info_nce", "info_cmr", "itm"])
def test_mixed_dtypes_compile_into_one_graph(name: str) -> None:
    case = BY_NAME[name]
    inputs, promoted = mixed_batch((torch.bfloat16, torch.float32))
    expected = case.loss(*promoted, "auto")
    module = case.build("auto")
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, y: case.apply(module, x, y), fullgraph=True, backend="aot_eager"
    )
    with autocast():
        torch.manual_seed(0)
        found = compiled(*inputs)
    torch.testing.assert_close(found, expected)
    for grad, own in zip(gradients(found, *inputs), inputs, strict=True):
        assert grad.dtype == own.dtype


def test_mixed_dtypes_of_fake_tensors_and_of_an_exported_graph() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    inputs, promoted = ([t.detach() for t in side] for side in mixed_batch(MIXED[0]))
    module = losses.MaxOfHingesLoss()
    with autocast(), FakeTensorMode() as mode:
        assert module(*(mode.from_tensor(t) for t in inputs)).dtype == torch.float32
    with autocast():
        exported = torch.export.export(module, tuple(inputs))
    assert torch.equal(exported.module()(*inputs), module(*promoted))


class Encoders(nn.Module):
    """The encoders of VSE++: a linear layer on image features, a GRU on words."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Linear(6, 8)
        self.embed = nn.Embedding(10, 5)
        self.words = nn.GRU(5, 8, batch_first=True)

    def forward(self, features: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        image = self.image(features)
        hidden, _ = self.words(self.embed(words))
        text = nn.functional.normalize(hidden[:, -1].float(), dim=1)
        return image, text


@pytest.mark.native
@pytest.mark.parametrize("max_violation", [False, True])
def test_vsepp_trains_under_bf16_autocast(max_violation: bool) -> None:
    torch.manual_seed(0)
    model = Encoders()
    features, words = torch.randn(5, 6), torch.randint(10, (5, 4))
    with autocast():
        image, text = model(features, words)
        assert (image.dtype, text.dtype) == (torch.bfloat16, torch.float32)
        loss = ContrastiveLoss(0.2, max_violation=max_violation)(image, text)
    assert loss.dtype == torch.float32
    loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()
