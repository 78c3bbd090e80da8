"""The drop-in classes of SCAN and SGRAF against a loop over captions."""

import inspect
from itertools import product
from typing import Any

import pytest
import torch

from compat_formulas import triplet_loss_of_scores
from itm_kernels.compat import scan, sgraf
from itm_kernels.compat.scan import xattn_score_i2t, xattn_score_t2i
from itm_kernels.retrieval import evaluate, evaluate_scores
from oracles.batches import unit_pair
from oracles.comparing import same
from retrieval_data import LargestOutput
from scan_cases import AGGREGATES, LENGTHS, NORMS, SCORES, options, original, regions_and_words

# -- values and gradients --------------------------------------------------------------------------


@pytest.mark.parametrize("direction", SCORES)
@pytest.mark.parametrize("norm", NORMS)
def test_every_option_of_scan(direction: str, norm: str) -> None:
    regions, words = regions_and_words()
    for aggregate, max_violation in product(AGGREGATES, (False, True)):
        opt = options(direction, norm, aggregate)
        loss = scan.ContrastiveLoss(opt, 0.2, max_violation)
        wanted = original(opt)
        same(
            lambda im, s, loss=loss: loss(im, s, LENGTHS),
            lambda im, s, hardest=max_violation, scores=wanted: triplet_loss_of_scores(
                scores(im, s), 0.2, hardest
            ),
            regions,
            words,
        )


@pytest.mark.parametrize("direction", SCORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_of_unequal_numbers_of_images_and_captions(
    direction: str, dtype: torch.dtype
) -> None:
    for N, M in ((4, 6), (6, 3)):
        regions, words = regions_and_words(N, M, dtype)
        opt, lengths = options(direction), LENGTHS[:M]
        found = SCORES[direction](regions, words, lengths, opt)
        assert found.shape == (N, M) and found.dtype == dtype
        torch.testing.assert_close(found, original(opt, lengths)(regions, words))


@pytest.mark.parametrize("max_violation", [False, True])
@pytest.mark.parametrize("size", [1, 2, 17])
def test_scores_of_sgraf(size: int, max_violation: bool) -> None:
    image, text = unit_pair(size)
    scores = (image @ text.T).detach().requires_grad_()
    for margin in (0, 0.2):
        same(
            sgraf.ContrastiveLoss(margin, max_violation),
            lambda x, margin=margin: triplet_loss_of_scores(x, margin, max_violation),
            scores,
        )


@pytest.mark.parametrize("direction", SCORES)
def test_padding_takes_part_in_nothing(direction: str) -> None:
    regions, words = regions_and_words()
    loss = scan.ContrastiveLoss(options(direction), 0.2)
    wanted = loss(regions, words, LENGTHS)
    padding = torch.arange(5) >= torch.tensor(LENGTHS)[:, None]
    filled = words.detach().masked_fill(padding[..., None], torch.nan).requires_grad_()
    found = loss(regions, filled, LENGTHS)
    assert found.item() == wanted.item()
    gradients = [torch.autograd.grad(x, w)[0] for x, w in ((wanted, words), (found, filled))]
    assert torch.equal(*gradients) and (gradients[1][padding] == 0).all()


def test_numbers_of_words_in_every_form_that_an_encoder_returns() -> None:
    regions, words = regions_and_words()
    loss = scan.ContrastiveLoss(options(), 0.2)
    wanted = loss(regions, words, LENGTHS).item()
    tensor = torch.tensor(LENGTHS)
    for lengths in (tuple(LENGTHS), tensor, tensor.int(), list(tensor)):
        assert loss(regions, words, lengths).item() == wanted


def test_options_may_change_between_steps() -> None:
    regions, words = regions_and_words()
    opt = options()
    loss = scan.ContrastiveLoss(opt=opt, margin=opt.margin, max_violation=True)
    before = loss(regions, words, LENGTHS)
    opt.lambda_softmax, opt.agg_func, loss.margin, loss.max_violation = 3.0, "Mean", 0.1, False
    after = loss(regions, words, LENGTHS)
    wanted = triplet_loss_of_scores(original(opt)(regions, words), 0.1, False)
    torch.testing.assert_close(after, wanted)
    assert after.item() != before.item()
    loss.opt = options("i2t")
    wanted = triplet_loss_of_scores(original(loss.opt)(regions, words), 0.1, False)
    torch.testing.assert_close(loss(regions, words, LENGTHS), wanted)


def test_signatures_are_those_of_the_originals() -> None:
    def names(function: Any) -> list[tuple[str, object]]:
        return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]

    empty, loss = inspect.Parameter.empty, scan.ContrastiveLoss(options())
    hinges = [("margin", 0), ("max_violation", False)]
    assert names(scan.ContrastiveLoss) == [("opt", empty), *hinges]
    assert names(loss.forward) == [("im", empty), ("s", empty), ("s_l", empty)]
    assert names(sgraf.ContrastiveLoss) == hinges
    assert names(sgraf.ContrastiveLoss().forward) == [("scores", empty)]
    taken = [(name, empty) for name in ("images", "captions", "cap_lens", "opt")]
    assert names(xattn_score_t2i) == names(xattn_score_i2t) == taken


# -- evaluation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", SCORES)
def test_sharded_evaluation_becomes_evaluate_scores(direction: str) -> None:
    """The five lines of docs/coming_from.md: arrays of `encode_data`, lengths in a list."""
    regions, words = (x.detach() for x in regions_and_words(10, 50))
    lengths, opt = [1 + j % 5 for j in range(50)], options(direction)
    score = SCORES[direction]
    found = evaluate_scores(
        lambda i, j: score(regions[i], words[j], lengths[j], opt), 10, 50, folds=5, ks=(1,)
    )
    sims = original(opt, lengths)(regions, words)
    assert found == evaluate_scores(sims, folds=5, ks=(1,))
    assert found.rsum > 0


def test_scores_are_ranked_without_attended_vectors_of_all_pairs() -> None:
    regions, words = (x.detach() for x in regions_and_words(40, 200))
    with LargestOutput() as largest:
        evaluate_scores(
            lambda i, j: xattn_score_t2i(regions[i], words[j], [5] * (j.stop - j.start), options()),
            40,
            200,
            block_size=4,
        )
    assert largest.numel <= 40 * 200 * 5 * 12 / 50  # a block has 4 x 20 pairs


def test_a_blind_scan_scores_chance() -> None:
    regions, words = torch.ones(4, 3, 2), torch.ones(8, 3, 2)
    report = evaluate_scores(
        lambda i, j: xattn_score_t2i(regions[i], words[j], [2] * (j.stop - j.start), options()),
        *(4, 8),
        ks=(1,),
    )
    assert report == evaluate(torch.ones(4, 1), torch.ones(8, 1), ks=(1,))
