"""Texts without an image: gathered texts, queues and distractors are negatives only."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import oracles
from itm_kernels import _checks, losses
from itm_kernels import functional as F
from loss_cases import gradients, is_the_derivative

# Images 3 and 1 have texts, one of them two; image 7 has none; texts of id 9 and 5 have no image.
IMAGE_IDS, TEXT_IDS = torch.tensor([3, 7, 1]), torch.tensor([9, 1, 3, 5, 1])
IDS = {"image_ids": IMAGE_IDS, "text_ids": TEXT_IDS}
ABSENT = [True, False, False, True, False]
NEGATIVE = {**IDS, "unmatched": "negative"}

Loss = Callable[..., Tensor]
LOSSES: dict[str, tuple[Loss, Callable[..., Any]]] = {
    "sum_of_hinges": (F.sum_of_hinges_loss, oracles.sum_of_hinges),
    "max_of_hinges": (F.max_of_hinges_loss, oracles.max_of_hinges),
    "semihard": (
        lambda *rows, **given: F.max_of_hinges_loss(*rows, mining="semihard", **given),
        lambda *rows, **given: oracles.max_of_hinges(*rows, mining="semihard", **given),
    ),
    "info_nce": (F.info_nce_loss, oracles.info_nce),
    "info_cmr": (
        lambda *rows, **given: F.info_cmr_loss(*rows, num_clusters=0, num_noise=0, **given),
        oracles.info_cmr,
    ),
    "sigmoid": (F.sigmoid_loss, oracles.sigmoid),
}
WITHOUT_REDUCTION: dict[str, tuple[Loss, Callable[..., Any]]] = {
    "imc": (
        lambda *rows, **given: F.imc_loss(*rows, lower=-1.0, **given),
        lambda *rows, **given: oracles.imc(*rows, lower=-1.0, **given),
    ),
}
EVERY = LOSSES | WITHOUT_REDUCTION


def rows(N: int = 3, M: int = 5, D: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = np.random.default_rng([seed, N, M, D])
    unit = [oracles.normalized(generator.standard_normal((n, D))) for n in (N, M)]
    image, text = (torch.tensor(x).requires_grad_() for x in unit)
    return image, text


def wanted(name: str, image: Tensor, text: Tensor, **given: Any) -> Tensor:
    ids = {"image_ids": IMAGE_IDS.tolist(), "text_ids": TEXT_IDS.tolist()}
    arrays = [t.detach().cpu().numpy() for t in (image, text)]
    return torch.tensor(np.asarray(EVERY[name][1](*arrays, **ids | given)))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_values_are_the_oracles(name: str, reduction: str, backend: str) -> None:
    image, text = rows()
    given = {"reduction": reduction}
    found = LOSSES[name][0](image, text, backend=backend, **NEGATIVE, **given)
    torch.testing.assert_close(found, wanted(name, image, text, **given))
    if reduction == "none" and name != "sigmoid":  # whose texts all meet every image
        assert (found == 0)[torch.tensor(ABSENT)].all()


def test_imc_is_the_oracles(backend: str) -> None:
    image, text = rows()
    found = EVERY["imc"][0](image, text, backend=backend, **NEGATIVE)
    torch.testing.assert_close(found, wanted("imc", image, text))


@pytest.mark.parametrize("name", sorted(EVERY))
def test_gradient_is_the_derivative(name: str, backend: str) -> None:
    loss = EVERY[name][0]
    assert is_the_derivative(lambda x, y: loss(x, y, backend=backend, **NEGATIVE), rows(seed=3))


@pytest.mark.parametrize("name", ["info_nce", "info_cmr", "sigmoid"])
def test_gradient_of_a_learnt_scale_is_the_derivative(name: str, backend: str) -> None:
    """A text without an image has no logit: its placeholder must not affect the scale."""
    given = {"backend": backend, **NEGATIVE}
    if name == "sigmoid":
        given["logit_bias"] = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    sides = rows(seed=3)

    def loss(*scalars: Tensor) -> Tensor:
        return LOSSES[name][0](
            *sides, **given | dict(zip(("logit_scale", "logit_bias"), scalars, strict=False))
        )

    scalars = [scale, given["logit_bias"]] if name == "sigmoid" else [scale]
    assert is_the_derivative(loss, scalars)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_gradient_is_the_references(name: str, backend: str) -> None:
    """More rows than a tile has; texts without an image are among the others."""
    image, text = rows(40, 150, 33)
    ids = {"image_ids": torch.arange(40), "text_ids": torch.arange(150) * 7 % 90}
    results = []
    for choice in ("reference", backend):
        loss = EVERY[name][0](image, text, backend=choice, unmatched="negative", **ids)
        results.append((loss, *gradients(loss, image, text)))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_a_distractor_affects_images_and_forms_no_pair(name: str) -> None:
    """A text far from every image changes nothing; a near one is a negative of every pair."""
    image, text = rows()
    hard = text.detach().clone()
    hard[0] = image.detach()[0]  # the distractor is image 0 itself
    loss = EVERY[name][0]
    assert loss(image, hard, **NEGATIVE) > loss(image, text, **NEGATIVE)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_without_any_pair_the_loss_is_finite_and_attached(name: str, backend: str) -> None:
    image, text = rows()
    ids = {"image_ids": IMAGE_IDS, "text_ids": TEXT_IDS + 100}
    for reduction in ("none", "sum", "mean") if name in LOSSES else (None,):
        given = {} if reduction is None else {"reduction": reduction}
        loss = EVERY[name][0](image, text, backend=backend, unmatched="negative", **ids, **given)
        assert loss.requires_grad
        assert loss.isfinite().all()
        if name not in ("sigmoid", "imc"):  # whose sums do not need a pair
            assert (loss == 0).all()
        for grad in gradients(loss.sum(), image, text):
            assert grad.isfinite().all()


@pytest.mark.parametrize("name", sorted(EVERY))
@pytest.mark.parametrize("side", [0, 1])
def test_nan_in_any_row_shows(name: str, side: int, backend: str) -> None:
    for row in range((3, 5)[side]):
        both = [t.detach().clone() for t in rows()]
        both[side][row, 2] = torch.nan
        assert EVERY[name][0](*both, backend=backend, **NEGATIVE).isnan(), f"row {row}"


@pytest.mark.parametrize("name", sorted(EVERY))
def test_a_text_with_several_images_stays_an_error(name: str) -> None:
    image, text = rows()
    ids = {"image_ids": torch.tensor([3, 1, 1]), "text_ids": TEXT_IDS}
    with pytest.raises(ValueError, match=r"text_ids\[1\] = 1 matches 2 of image_ids \(2 of 5 "):
        EVERY[name][0](image, text, unmatched="negative", **ids)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_the_error_names_the_option(name: str) -> None:
    with pytest.raises(ValueError, match=r'= 9 matches 0 of .*pass unmatched="negative"') as error:
        EVERY[name][0](*rows(), **IDS)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="unmatched must be one of 'error', 'negative'"):
        EVERY[name][0](*rows(), unmatched="ignore", **IDS)


def test_images_without_a_text_are_negatives_by_default(backend: str) -> None:
    """No option is needed: the pairs are the texts."""
    image, text = rows()
    paired = torch.tensor([1, 2, 4])
    ids = {"image_ids": IMAGE_IDS, "text_ids": TEXT_IDS[paired]}
    lists = {name: value.tolist() for name, value in ids.items()}
    for name, (loss, oracle) in EVERY.items():
        exact = oracle(*(t.detach().numpy() for t in (image, text[paired])), **lists)
        found = loss(image, text[paired], backend=backend, **ids)
        torch.testing.assert_close(found, torch.tensor(np.asarray(exact)), msg=name)


def test_compiled_losses_are_the_same_and_several_images_give_nan() -> None:
    image, text = rows()

    def together(x: Tensor, y: Tensor, i: Tensor, t: Tensor) -> Tensor:
        given = {"image_ids": i, "text_ids": t, "unmatched": "negative"}
        return torch.stack([EVERY[name][0](x, y, **given) for name in sorted(EVERY)])

    torch._dynamo.reset()
    compiled = torch.compile(together, fullgraph=True, backend="aot_eager")
    expected = together(image, text, IMAGE_IDS, TEXT_IDS)
    found = compiled(image, text, IMAGE_IDS, TEXT_IDS)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        gradients(found.sum(), image, text), gradients(expected.sum(), image, text), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    assert compiled(image, text, torch.tensor([3, 1, 1]), TEXT_IDS).isnan().all()


@pytest.mark.parametrize("unmatched", ["error", "negative"])
@pytest.mark.parametrize("name", sorted(EVERY))
def test_wrong_ids_that_are_not_checked_give_nan_gradients(
    name: str, unmatched: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU. A GradScaler takes a step whose gradients are finite, whatever the loss is."""
    monkeypatch.setattr(_checks, "can_read", lambda tensor: False)
    image, text = rows()
    twice = {"image_ids": torch.tensor([3, 1, 1]), "text_ids": TEXT_IDS}  # a mistake either way
    loss = EVERY[name][0](image, text, unmatched=unmatched, backend=backend, **twice)
    assert loss.isnan().any()
    for side in gradients(loss.sum(), image, text):
        assert side.isnan().any()


@pytest.mark.parametrize("unmatched", ["error", "negative"])
@pytest.mark.parametrize("kind", [losses.MaxOfHingesLoss, losses.SumOfHingesLoss])
def test_wrong_ids_of_scores_give_nan_gradients(
    kind: type, unmatched: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_checks, "can_read", lambda tensor: False)
    scores = torch.rand(3, 5, requires_grad=True)
    twice = {"image_ids": torch.tensor([3, 1, 1]), "text_ids": TEXT_IDS}
    loss = kind(unmatched=unmatched).from_scores(scores, **twice)
    assert loss.isnan() and gradients(loss, scores)[0].isnan().any()


@pytest.mark.parametrize("name", sorted(EVERY))
def test_meta_tensors_flow_through(name: str) -> None:
    image, text = (t.to("meta").detach().requires_grad_() for t in rows())
    for device in ("meta", "cpu"):  # ids of another device are not looked at
        ids = {side: value.to(device) for side, value in IDS.items()}
        loss = EVERY[name][0](image, text, unmatched="negative", **ids)
        assert loss.is_meta
        assert gradients(loss, image, text)[1].shape == text.shape


class _Applied(torch.nn.Module):
    """A loss as a Module of its tensors, which is what torch.export takes."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, image: Tensor, text: Tensor, image_ids: Tensor, text_ids: Tensor) -> Tensor:
        ids = {"image_ids": image_ids, "text_ids": text_ids}
        return EVERY[self.name][0](image, text, unmatched="negative", **ids)


@pytest.mark.parametrize("name", ["sum_of_hinges", "info_nce", "sigmoid"])
def test_exports(name: str) -> None:
    image, text = (t.detach() for t in rows())
    exported = torch.export.export(_Applied(name), (image, text, IMAGE_IDS, TEXT_IDS))
    other = torch.tensor([9, 1, 3, 3, 5])
    expected = _Applied(name)(image, text, IMAGE_IDS, other)
    torch.testing.assert_close(exported.module()(image, text, IMAGE_IDS, other), expected)


@pytest.mark.parametrize("build", [losses.SumOfHingesLoss, losses.MaxOfHingesLoss])
def test_score_matrices_accept_unmatched(build: Callable[..., Any]) -> None:
    image, text = rows()
    for reduction in ("none", "sum", "mean"):
        criterion = build(unmatched="negative", reduction=reduction)
        expected = criterion(image, text, **IDS)
        torch.testing.assert_close(criterion.from_scores(image @ text.T, **IDS), expected)
    with pytest.raises(ValueError, match='from_scores: .*pass unmatched="negative"'):
        build().from_scores(image @ text.T, **IDS)


@pytest.mark.parametrize(
    "build",
    [
        losses.SumOfHingesLoss,
        losses.MaxOfHingesLoss,
        losses.IMCLoss,
        losses.InfoCMRLoss,
        losses.InfoNCELoss,
        losses.SigmoidLoss,
    ],
)
def test_modules_take_the_option(build: Callable[..., Any]) -> None:
    assert build(unmatched="negative")(*rows(), **IDS).isfinite()
    assert "unmatched='negative'" in repr(build(unmatched="negative"))
    with pytest.raises(ValueError, match="unmatched must be one of 'error', 'negative'"):
        build(unmatched="skip")


def test_synthesis_takes_negatives_without_an_image_as_members(backend: str) -> None:
    """The distractors are the only negatives of these images, and so their only members."""
    image, text = rows(2, 4)
    ids = {"image_ids": torch.tensor([1, 2]), "text_ids": torch.tensor([1, 1, 8, 9])}
    options = {"num_noise": 0, "unmatched": "negative", "backend": backend}
    torch.manual_seed(0)
    with_synthesis = F.info_cmr_loss(
        image, text, num_clusters=2, reduction="none", **ids, **options
    )
    without = F.info_cmr_loss(image, text, num_clusters=0, reduction="none", **ids, **options)
    assert (with_synthesis[:2] > without[:2]).all()
    assert (with_synthesis[2:] == 0).all()
    for grad in gradients(with_synthesis.sum(), image, text):
        assert grad.isfinite().all()
