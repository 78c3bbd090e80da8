"""Image-text matching over ranks: mined and given negatives, and labels of pairs."""

import math

import pytest
import torch
from torch import Tensor

from itm_kernels.mining import HardNegativeSampler, Strategy
from ranks import Ranks, RanksFailedError
from spread_draws import Matching, labelled, mined
from spread_losses import Spread, check, compute, on_rank

COPIES = 600


def assert_frequencies(drawn: Tensor, logits: Tensor) -> None:
    """Compare draws with the softmax of logits, within five standard deviations."""
    p = logits.double().softmax(0)
    found = torch.bincount(drawn, minlength=len(p)) / len(drawn)
    assert ((found - p).abs() <= 5 * (p * (1 - p) / len(drawn)).sqrt()).all(), (found, p)


def scores(strategy: Strategy, rows: Tensor, anchor: Tensor, temperature: float) -> Tensor:
    return rows @ anchor * (strategy == "multinomial") / temperature


@pytest.mark.parametrize("strategy", ["multinomial", "uniform"])
def test_images_draw_from_the_texts_of_all_ranks(two: Ranks, strategy: Strategy) -> None:
    texts, anchor = torch.randn(6, 4), torch.randn(4)
    # The first six images have a text; the others, copies of one image, have none.
    N = 6 + 2 * COPIES
    image = torch.cat([torch.randn(6, 4), anchor.expand(N - 6, 4)])
    counts = (6 + COPIES, COPIES), (3, 3)
    batch = Matching(image, texts, torch.arange(N), torch.arange(6), *counts)
    found = two.run(mined, batch, HardNegativeSampler(strategy, temperature=2.0))
    first, second = (rank[1].text_index[6:COPIES] for rank in found)  # equal rows of both
    expected = scores(strategy, texts, anchor, 2.0)
    for drawn in (first, second):
        assert_frequencies(drawn, expected)
    # Ranks with one seed draw independently: they agree as often as by chance.
    p = expected.double().softmax(0).square().sum().item()
    equal = (first == second).double().mean().item()
    assert abs(equal - p) <= 5 * math.sqrt(p * (1 - p) / len(first))


@pytest.mark.parametrize("strategy", ["multinomial", "uniform"])
def test_texts_draw_from_the_images_of_all_ranks_but_their_own(
    two: Ranks, strategy: Strategy
) -> None:
    images, anchor = torch.randn(5, 4), torch.randn(4)
    owner = torch.arange(2 * COPIES) % 2 * 3  # of image 0, on rank 0, or image 3, on rank 1
    batch = Matching(
        images, anchor.expand(2 * COPIES, 4), torch.arange(5), owner, (2, 3), (COPIES, COPIES)
    )
    found = two.run(mined, batch, HardNegativeSampler(strategy, temperature=0.5))
    drawn = torch.cat([rank[1].image_index for rank in found])
    assert (drawn != owner).all()
    for own in (0, 3):
        expected = scores(strategy, images, anchor, 0.5)
        expected[own] = -torch.inf
        assert_frequencies(drawn[owner == own], expected)


def small() -> Matching:
    owner = torch.tensor([0, 2, 1, 2, 4, 3])
    return Matching(
        torch.randn(5, 3, dtype=torch.float64),
        torch.randn(6, 3, dtype=torch.float64),
        10 + torch.arange(5),
        10 + owner,
        (2, 3),
        (4, 2),
    )


def test_negatives_given_to_a_call_are_global_indices(two: Ranks) -> None:
    batch = small()
    sampler = HardNegativeSampler("uniform")
    expected, negatives = mined(None, batch, sampler)
    found = two.run(mined, batch._replace(negatives=negatives), sampler)
    for rank, counts in enumerate(zip(batch.images, batch.texts, strict=True)):
        loss, own = found[rank]
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        assert tuple(map(len, own)) == counts


def test_another_sampler_raises_on_every_rank(two: Ranks) -> None:
    with pytest.raises(RanksFailedError) as raised:
        two.run(mined, small(), max)
    message = "ITMLoss: with a group, sampler must be a mining.HardNegativeSampler"
    assert all(message in str(error) for error in raised.value.errors)


def test_sum_is_that_of_one_process(two: Ranks) -> None:
    options = (("reduction", "sum"), ("label_smoothing", 0.2))
    check(two, Spread("itm", (3, 2), (4, 5), True, options))


def test_values_of_rows_are_those_of_one_process(two: Ranks) -> None:
    spread = Spread("itm", (3, 2), (4, 5), True, (("reduction", "none"),))
    found = two.run(on_rank, spread)
    parts = []
    for result, n, m in zip(found, (3, 2), (4, 5), strict=True):
        parts.append(result.value.split([m, n, m]))  # matches, negative texts, negative images
    values = torch.cat([torch.cat(part) for part in zip(*parts, strict=True)])
    expected = compute(spread, None, slice(None), slice(None)).value
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("columns", [(), (1,), (2,)], ids=str)
@pytest.mark.parametrize("counts", [(4, 3), (7, 0)])
def test_labels_of_pairs(two: Ranks, counts: tuple[int, ...], columns: tuple[int, ...]) -> None:
    logits = torch.randn(7, *columns, dtype=torch.float64)
    exists = torch.tensor([True, False, True, True, True, False, True])
    given = logits, torch.arange(7) % 2, exists, counts
    value, gradient = labelled(None, *given)
    found = two.run(labelled, *given)
    for loss, _ in found:
        assert torch.equal(loss, found[0][0])
        torch.testing.assert_close(loss, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.cat([grad for _, grad in found]), gradient)
