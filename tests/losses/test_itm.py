"""Image-text matching: invalid labels, excluded rows, shapes of logits."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from itm_kernels.functional import itm_loss
from itm_kernels.losses import ITMLoss
from itm_kernels.mining import HardNegatives, HardNegativeSampler

LOGITS = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [3.0, 0.5]])
LABELS = torch.tensor([1, 0, 0, 1])
REDUCTIONS = ("none", "sum", "mean")


def value_and_gradient(logits: Tensor, labels: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    loss = itm_loss(logits, labels, **options)  # type: ignore[arg-type]
    return loss, torch.autograd.grad(loss.sum(), logits)[0]


# -- labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [-100, -1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8])
def test_labels_other_than_0_and_1_are_refused(label: int, dtype: torch.dtype) -> None:
    labels = torch.tensor([1, label, 0, label], dtype=dtype)
    message = (
        rf"^itm_loss: labels\[1\] = {label} is neither 0 nor 1 \(2 of 4 are not\); "
        "leave rows out with exists=$"
    )
    with pytest.raises(ValueError, match=message):
        itm_loss(LOGITS, labels)


def test_labels_of_rows_left_out_may_be_anything() -> None:
    labels = torch.tensor([1, -100, 0, 255])
    exists = torch.tensor([True, False, True, False])
    assert torch.equal(itm_loss(LOGITS, labels, exists=exists), itm_loss(LOGITS[::2], LABELS[::2]))


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_labels_that_cannot_be_checked_give_nan(reduction: str) -> None:
    """In a graph, as on a GPU, the mistake shows in the loss and in the gradient."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return itm_loss(logits, labels, reduction=reduction)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    logits = LOGITS.clone().requires_grad_()
    found = compiled(logits, torch.tensor([1, -100, 0, 2]))
    (grad,) = torch.autograd.grad(found.sum(), logits)
    assert found.isnan().tolist() == ([False, True, False, True] if found.dim() else True)
    assert grad.isnan().any(1).tolist() == [False, True, False, True]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16])
def test_labels_may_be_bool_or_any_integers(dtype: torch.dtype) -> None:
    assert torch.equal(itm_loss(LOGITS, LABELS.to(dtype)), itm_loss(LOGITS, LABELS))


def test_labels_inside_transforms_of_torch_func() -> None:
    """Inside vmap the values of labels cannot be read."""
    logits, labels = LOGITS.expand(2, 4, 2), torch.stack([LABELS, LABELS.clone()])
    labels[1, 2] = -100
    found = torch.func.vmap(itm_loss)(logits, labels)
    assert found[0] == itm_loss(LOGITS, LABELS)
    assert found[1].isnan()
    wanted = value_and_gradient(LOGITS, LABELS)[1]
    assert torch.equal(torch.func.grad(itm_loss)(LOGITS, LABELS), wanted)
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        torch.func.grad(itm_loss)(LOGITS, LABELS - 1)


# -- rows left out ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_row_at_all_is_0_and_attached(reduction: str) -> None:
    nothing = torch.zeros(4, dtype=torch.bool)
    loss, grad = value_and_gradient(LOGITS, LABELS, exists=nothing, reduction=reduction)
    assert loss.requires_grad
    assert (loss == 0).all()
    assert (grad == 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("columns", [None, 1, 2])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_contents_of_excluded_rows_do_not_matter(
    bad: float, columns: int | None, reduction: str
) -> None:
    exists = torch.tensor([True, False, True, True])
    logits = LOGITS[:, 1] if columns is None else LOGITS[:, :columns]
    spoilt = logits.clone()
    spoilt[1] = bad
    wanted, expected = value_and_gradient(logits, LABELS, exists=exists, reduction=reduction)
    found, grad = value_and_gradient(spoilt, LABELS, exists=exists, reduction=reduction)
    assert torch.equal(found, wanted)
    assert torch.equal(grad, expected)
    assert (grad[1] == 0).all()


@pytest.mark.parametrize(
    ("exists", "error", "message"),
    [
        ([True] * 4, TypeError, r"exists must be a torch.Tensor, got list"),
        (LABELS, ValueError, r"exists must be bool \[4\], got int64 \[4\]"),
        (torch.ones(3, dtype=torch.bool), ValueError, r"exists must be bool \[4\], got bool \[3\]"),
        (
            torch.ones(4, dtype=torch.bool, device="meta"),
            ValueError,
            "exists is on meta, the logits on cpu; move it with .to",
        ),
    ],
    ids=["list", "dtype", "length", "device"],
)
def test_exists_is_checked(exists: object, error: type, message: str) -> None:
    with pytest.raises(error, match=f"^itm_loss: {message}"):
        itm_loss(LOGITS, LABELS, exists=exists)  # type: ignore[arg-type]


# -- shapes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_column_of_logits_is_a_vector(reduction: str) -> None:
    wanted, expected = value_and_gradient(LOGITS[:, 1], LABELS, reduction=reduction)
    found, grad = value_and_gradient(LOGITS[:, 1:], LABELS, reduction=reduction)
    assert torch.equal(found, wanted)
    assert torch.equal(grad[:, 0], expected)


@pytest.mark.parametrize("shape", [(), (0,), (4, 0), (4, 3), (4, 2, 1)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    message = (
        rf"^itm_loss: logits must be \[P\], \[P, 1\] or \[P, 2\], got \[{str(list(shape))[1:-1]}\]"
    )
    with pytest.raises(ValueError, match=message):
        itm_loss(torch.zeros(shape), LABELS)


# -- the Module ------------------------------------------------------------------------------------

IMAGE, TEXT = torch.eye(4), torch.eye(4) + 0.1
IDS = torch.tensor([0, 0, 1, 2])


def matching(columns: int | None) -> Callable[[Tensor, Tensor], Tensor]:
    def match(i: Tensor, t: Tensor) -> Tensor:
        logits = (IMAGE[i] * TEXT[t]).sum(1)
        if columns is None:
            return logits
        return (
            logits[:, None] if columns == 1 else torch.stack([torch.zeros_like(logits), logits], 1)
        )

    return match


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("ids", [None, IDS], ids=["diagonal", "ids"])
def test_match_may_return_columns(columns: int, ids: Tensor | None) -> None:
    loss = ITMLoss(sampler=HardNegativeSampler("hardest"))
    expected = loss(IMAGE, TEXT, matching(None), image_ids=ids, text_ids=ids)
    assert torch.equal(loss(IMAGE, TEXT, matching(columns), image_ids=ids, text_ids=ids), expected)


def test_the_placeholder_of_a_missing_negative_is_ignored() -> None:
    """Anchors without a negative have a placeholder pair of index 0, whose logit is ignored."""
    ids = torch.zeros(4, dtype=torch.int64)
    logits = torch.zeros(12, requires_grad=True)
    # All images share one id: no anchor has a negative, 8 slots are left out.
    spoilt = torch.cat([logits[:4], logits[4:] * torch.nan])
    loss = ITMLoss()(IMAGE, TEXT, lambda i, t: spoilt, image_ids=ids, text_ids=ids)
    assert loss.item() == pytest.approx(0.6931472)
    (grad,) = torch.autograd.grad(loss, spoilt)
    assert grad.isfinite().all()
    assert (grad[4:] == 0).all()


def test_a_text_without_an_image_shows_in_the_gradient_too() -> None:
    """A graph cannot depend on the values of ids: NaN reports the error."""
    logits = torch.zeros(12, requires_grad=True)
    loss = ITMLoss(sampler=HardNegativeSampler("hardest"))
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: loss(IMAGE, TEXT, lambda i, t: x, image_ids=IDS, text_ids=IDS + 2),
        fullgraph=True,
        backend="aot_eager",
    )
    found = compiled(logits)
    (grad,) = torch.autograd.grad(found, logits)
    assert found.isnan()
    assert grad.isnan().any()


@pytest.mark.parametrize(
    ("match", "error", "message"),
    [
        (LABELS, TypeError, "match must be a function of image_index and text_index, got int64"),
        (lambda i, t: LOGITS, ValueError, r"match returned \[4, 2\] for 12 pairs; it must return"),
        (lambda i, t: torch.zeros(12, 3), ValueError, r"match returned \[12, 3\] for 12 pairs"),
        (lambda i, t: i, TypeError, "the result of match must be floating point"),
        (lambda i, t: torch.zeros(12, device="meta"), ValueError, "match returned logits on meta"),
    ],
    ids=["labels", "rows", "columns", "dtype", "device"],
)
def test_match_is_checked(match: object, error: type, message: str) -> None:
    with pytest.raises(error, match=f"^ITMLoss: {message}"):
        ITMLoss()(IMAGE, TEXT, match)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_pairs_without_ids_are_those_of_the_formula(reduction: str, smoothing: float) -> None:
    """Fewer operations, with placeholders of missing negatives whose logits are NaN."""
    logits = torch.randn(12, 2, requires_grad=True)
    with torch.no_grad():
        logits[5] = torch.nan
    labels, exists = torch.arange(12) < 4, torch.arange(12) != 5
    text_index = torch.tensor([1, -1, 3, 0])
    negatives = HardNegatives(text_index, torch.tensor([2, 0, 1, 1]))
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
    x = torch.randn(4, 3)
    loss = ITMLoss(**options)(x, x, lambda i, t: logits, negatives=negatives)
    torch.testing.assert_close(loss, itm_loss(logits, labels, exists=exists, **options))
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert not grad[5].any() and grad.isfinite().all() and (grad[:5] != 0).all()


def test_labels_in_the_place_of_match_are_refused() -> None:
    with pytest.raises(TypeError, match="match must be a function .* use image_ids= and text_ids="):
        ITMLoss()(IMAGE, TEXT, IDS)  # type: ignore[arg-type]


def test_without_negatives_the_loss_is_the_mean_of_the_positives() -> None:
    x, ids = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64), torch.tensor([5, 5])

    def match(image_index: Tensor, text_index: Tensor) -> Tensor:
        existing = (image_index >= 0) & (text_index >= 0)
        return torch.where(existing, math.log(3.0), torch.nan).double()

    # A probability of three quarters for every match.
    result = ITMLoss()(x, x, match, image_ids=ids, text_ids=ids)
    assert result.item() == pytest.approx(math.log(4.0 / 3.0))
