"""The drop-in classes against the semantics of the projects they replace."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as torch_functional

from compat_formulas import intra_loss, triplet_loss
from itm_kernels.compat.imc import IntraLoss
from itm_kernels.compat.open_clip import ClipLoss, SigLipLoss
from itm_kernels.compat.vsepp import ContrastiveLoss
from oracles.batches import unit_pair
from oracles.comparing import same

DTYPES = [torch.float32, torch.float64]
SIZES = [1, 2, 17]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("max_violation", [False, True])
@pytest.mark.parametrize("measure", [False, "cosine"])
def test_contrastive_loss(dtype, size, max_violation, measure) -> None:
    """Random batches with and without a margin, arguments in the original's order."""
    for margin in (0, 0.2):
        # Without a margin and with one pair the whole loss is the constant 0, at its kink.
        same(
            ContrastiveLoss(margin, measure, max_violation),
            lambda im, s, margin=margin: triplet_loss(im, s, margin, measure, max_violation),
            *unit_pair(size, dtype),
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("max_violation", [False, True])
def test_contrastive_loss_order(dtype, max_violation) -> None:
    """The order-embedding score of non-negative embeddings."""
    im, s = (x.detach().abs().requires_grad_() for x in unit_pair(6, dtype))
    loss = ContrastiveLoss(0.05, measure="order", max_violation=max_violation)
    same(loss, lambda im, s: triplet_loss(im, s, 0.05, "order", max_violation), im, s)


@pytest.mark.parametrize("max_violation", [False, True])
def test_contrastive_loss_ties(max_violation) -> None:
    """Duplicated rows, then collapsed embeddings: values agree (the gradient at a tie is ours)."""
    im, s = (x.detach() for x in unit_pair(8, torch.float64))
    loss = ContrastiveLoss(margin=0.2, max_violation=max_violation)
    for rows in ([0, 1, 1, 2, 3, 0, 4, 5], [0] * 8):
        wanted = triplet_loss(im[rows], s[rows], 0.2, False, max_violation)
        torch.testing.assert_close(loss(im[rows], s[rows]), wanted, rtol=1e-10, atol=1e-12)


def test_contrastive_loss_collapsed_gradient() -> None:
    """Sum of hinges has no ties: the gradient at collapsed embeddings agrees too."""
    im, s = (x.detach()[[0] * 5].requires_grad_() for x in unit_pair(8, torch.float64))
    same(ContrastiveLoss(0.2), lambda im, s: triplet_loss(im, s, 0.2, False, False), im, s)


MEASURES = ["cosine", "msd", "l1", "l2"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("measure", MEASURES)
def test_intra_loss(dtype, size, measure) -> None:
    """Random batches; the defaults, then every option by position in the original's order."""
    mx, _ = unit_pair(size, dtype)
    mx = torch_functional.normalize(mx.detach() + mx.detach()[:1], dim=1).requires_grad_()
    same(IntraLoss(measure=measure), lambda mx: intra_loss(mx, measure, 0.5, 0.05, 1.0), mx)
    if size == 1 and measure != "cosine":
        assert IntraLoss(0.3, measure, True, 0.7, 0.2, 2.5)(mx).item() == 0.0
        return
    same(
        IntraLoss(0.3, measure, True, 0.7, 0.2, 2.5),
        lambda mx: intra_loss(mx, measure, 0.7, 0.2, 2.5),
        mx,
    )


@pytest.mark.parametrize("measure", MEASURES)
def test_intra_loss_ties(measure) -> None:
    """Integer rows with duplicates, whose distances tie exactly, and collapsed embeddings."""
    mx = torch.tensor([[0, 1], [1, 0], [0, 1], [2, 2], [1, 0], [3, -1]], dtype=torch.float64)
    for rows in (mx, torch.ones(5, 3, dtype=torch.float64)):
        found = IntraLoss(measure=measure)(rows)
        wanted = intra_loss(rows, measure, 0.5, 0.05, 1.0)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_intra_loss_diagonal() -> None:
    """Long rows: the original's diagonal is |x|^2 - 1 and may lie inside the band."""
    mx = torch.tensor([[1.3, 0.0], [0.0, 1.25], [0.9, 0.8]], dtype=torch.float64)
    mx.requires_grad_()
    wanted = intra_loss(mx, "cosine", 0.5, 0.05, 1.0)
    assert wanted.item() > 0
    same(IntraLoss(measure="cosine"), lambda mx: intra_loss(mx, "cosine", 0.5, 0.05, 1.0), mx)


def names_and_defaults(function: Callable[..., object]) -> list[tuple[str, object]]:
    """Lists the parameters of a constructor or forward, without self."""
    return [
        (name, parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
    ]


def test_positional_order() -> None:
    """Constructors and forwards take the originals' arguments, in their order."""
    empty = inspect.Parameter.empty
    triplet = [("margin", 0), ("measure", False), ("max_violation", False)]
    assert names_and_defaults(ContrastiveLoss) == triplet
    assert names_and_defaults(IntraLoss) == [*triplet, ("up", 0.5), ("down", 0.05), ("lamb", 1.0)]
    assert names_and_defaults(ClipLoss) == [
        ("local_loss", False),
        ("gather_with_grad", False),
        ("cache_labels", False),
        ("rank", 0),
        ("world_size", 1),
        ("use_horovod", False),
    ]
    assert names_and_defaults(SigLipLoss) == [
        ("cache_labels", False),
        ("rank", 0),
        ("world_size", 1),
        ("dist_impl", None),
        ("chunk_size", 0),
    ]
    assert names_and_defaults(ContrastiveLoss().forward) == [("im", empty), ("s", empty)]
    assert names_and_defaults(IntraLoss().forward) == [("mx", empty)]
    features = [("image_features", empty), ("text_features", empty), ("logit_scale", empty)]
    flag = ("output_dict", False)
    assert names_and_defaults(ClipLoss().forward) == [*features, ("logit_bias", None), flag]
    assert names_and_defaults(SigLipLoss().forward) == [*features, ("logit_bias", empty), flag]


def test_intra_loss_without_a_measure() -> None:
    """The original's default measure has no distance: it fails where it is used."""
    mx, _ = unit_pair(3, torch.float64)
    loss = IntraLoss()
    with pytest.raises(ValueError, match="measure must be one of 'cosine', 'msd', 'l1', 'l2', got"):
        loss(mx)


@pytest.mark.parametrize("measure", MEASURES)
def test_intra_loss_switched_off(measure) -> None:
    """A factor of 0 gives 0, as in the original."""
    mx, _ = unit_pair(6, torch.float64)
    same(
        IntraLoss(measure=measure, lamb=0.0), lambda mx: intra_loss(mx, measure, 0.5, 0.05, 0.0), mx
    )
