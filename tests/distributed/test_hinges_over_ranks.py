"""Hinges over ranks: equal rows, texts without an image, and rows that are not finite."""

from functools import partial

import pytest
import torch
from torch import Tensor

from ranks import Ranks
from spread_hinges import Rows, gradients, on_rank

LOSSES = {
    "sum": ("sum_of_hinges_loss", {}),
    "hardest": ("max_of_hinges_loss", {}),
    "semihard": ("max_of_hinges_loss", {"mining": "semihard"}),
}


def rows(D: int = 7) -> Rows:
    """Return six images on two ranks, and nine texts, some of which have images elsewhere."""
    image, text_ids = torch.randn(6, D), torch.tensor([5, 0, 0, 3, 1, 4, 2, 2, 5])
    text = image[text_ids] + torch.randn(9, D)
    image, text = (torch.nn.functional.normalize(t.double(), dim=1) for t in (image, text))
    return Rows(image, text, torch.arange(6), text_ids, (4, 2), (3, 6))


def compute(
    ranks: Ranks, batch: Rows, name: str, exchange: str, **more: object
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Return values and gradients of ranks, and of one process."""
    function, options = LOSSES[name]
    options = {**options, **more}
    found = ranks.run(partial(on_rank, exchange=exchange, **options), batch, function)
    together = [torch.cat(parts) for parts in zip(*found, strict=True)]
    return together, gradients(batch, function, slice(None), slice(None), **options)


def check(ranks: Ranks, batch: Rows, name: str, exchange: str, **more: object) -> Tensor:
    """Compare ranks with one process; return the values."""
    found, expected = compute(ranks, batch, name, exchange, **more)
    for together, whole in zip(found, expected, strict=True):
        torch.testing.assert_close(together, whole, rtol=1e-10, atol=1e-10)
    return expected[0]


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_score_equal_to_the_positive_is_not_below_it(
    two: Ranks, name: str, exchange: str
) -> None:
    """Rows are integers, so scores are exact in any order of their products."""
    batch = rows()
    batch = batch._replace(image=(4 * batch.image).round(), text=(4 * batch.text).round())
    batch.image[4] = batch.image[0]  # of another rank, under another id
    batch.text[8] = batch.text[1]
    check(two, batch, name, exchange)


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_text_without_an_image_is_a_negative(two: Ranks, name: str, exchange: str) -> None:
    batch = rows()
    batch.text_ids[[1, 7]] = torch.tensor([17, 18])
    values = check(two, batch, name, exchange, unmatched="negative")
    assert (values[[1, 7]] == 0).all()
    batch.text[7] = 0.999 * batch.text[2]  # just below the positive of image 0
    assert (check(two, batch, name, exchange, unmatched="negative") != values).any()


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_row_that_is_not_finite(
    two: Ranks, name: str, side: str, value: float, exchange: str
) -> None:
    """The loss of every pair is that of one process; the gradient of a NaN is NaN."""
    batch = rows()
    getattr(batch, side)[1] = value
    (values, of_images, of_texts), (expected, *_) = compute(two, batch, name, exchange)
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-10, equal_nan=True)
    pairs = values.isnan()
    assert pairs.any()
    of_rows = of_texts[pairs].isnan().any(1) | of_images[batch.text_ids[pairs]].isnan().any(1)
    assert of_rows.all()
