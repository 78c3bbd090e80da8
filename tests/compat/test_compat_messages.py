"""The drop-in classes where they differ from the originals: messages, and finite gradients."""

import pytest
import torch

from itm_kernels.compat.imc import IntraLoss
from itm_kernels.compat.open_clip import ClipLoss, SigLipLoss
from itm_kernels.compat.vsepp import ContrastiveLoss


@pytest.mark.parametrize("measure", [False, "order", "cos"])
def test_intra_loss_needs_a_measure(measure: str | bool) -> None:
    # Constructing it works, as in the original, where only the forward fails.
    loss = IntraLoss(measure=measure)
    message = rf"IntraLoss: measure must be one of 'cosine', 'msd', 'l1', 'l2', got {measure!r}"
    with pytest.raises(ValueError, match=message):
        loss(torch.eye(3))


@pytest.mark.parametrize("loss", [ClipLoss, SigLipLoss])
def test_features_are_checked(loss: type[ClipLoss] | type[SigLipLoss]) -> None:
    name, features = loss.__name__, torch.eye(3)
    for arguments, error, message in (
        (
            (features, features[:2], 1.0, 0.0),
            ValueError,
            r"image_features \[3, 3\] and text_features \[2, 3\] differ in rows; pass one text per",
        ),
        ((features.long(), features, 1.0, 0.0), TypeError, "image_features must be floating point"),
        ((features, features, "1", 0.0), TypeError, "logit_scale must be a number"),
        ((features, features, 1.0, torch.zeros(2)), ValueError, "logit_bias must be a number or a"),
    ):
        with pytest.raises(error, match=f"{name}: {message}"):
            loss()(*arguments)


@pytest.mark.parametrize("loss", [ClipLoss, SigLipLoss])
def test_several_processes_need_a_process_group(
    loss: type[ClipLoss] | type[SigLipLoss],
) -> None:
    message = rf"{loss.__name__}: world_size 2 needs .* call torch.distributed.init_process_group"
    with pytest.raises(RuntimeError, match=message):
        loss(world_size=2)(torch.eye(3), torch.eye(3), 1.0, 0.0)


def test_horovod_is_refused() -> None:
    with pytest.raises(RuntimeError, match="ClipLoss: use_horovod is not supported; use torch"):
        ClipLoss(world_size=2, use_horovod=True)(torch.eye(3), torch.eye(3), 1.0)


def test_the_exchange_of_features_is_checked() -> None:
    with pytest.raises(ValueError, match="SigLipLoss: dist_impl must be one of 'bidir', 'shift'"):
        SigLipLoss(dist_impl="ring")


def test_a_bias_of_all_logits_cancels_with_gradient_zero() -> None:
    bias = torch.tensor(3.0, requires_grad=True)
    loss = ClipLoss()(torch.eye(3), torch.eye(3), 2.0, bias)
    assert loss.item() == ClipLoss()(torch.eye(3), torch.eye(3), 2.0).item()
    loss.backward()
    assert bias.grad is not None and bias.grad.item() == 0


def test_siglip_without_a_bias() -> None:
    features = torch.eye(3)
    without, zero = (SigLipLoss()(features, features, 2.0, bias) for bias in (None, 0.0))
    assert without.item() == zero.item()


def test_hardest_negatives_may_be_switched_on_between_epochs() -> None:
    scores = torch.tensor([[0.8, 0.7, 0.65], [0.3, 0.6, 0.55], [0.75, 0.2, 0.5]])
    loss = ContrastiveLoss(margin=0.2)
    assert loss(scores, torch.eye(3)).item() == pytest.approx(1.80)
    loss.max_violation = True
    assert loss(scores, torch.eye(3)).item() == pytest.approx(1.50)


def test_gradient_of_kept_order_is_zero_not_nan() -> None:
    # Every text lies below every image, so that no order is violated and every score is -0.
    image, text = torch.ones(3, 4, requires_grad=True), torch.zeros(3, 4, requires_grad=True)
    loss = ContrastiveLoss(margin=0.2, measure="order")(image, text)
    assert loss.item() == pytest.approx(3 * 2 * 2 * 0.2)
    loss.backward()
    for embeddings in (image, text):
        assert embeddings.grad is not None and (embeddings.grad == 0).all()
