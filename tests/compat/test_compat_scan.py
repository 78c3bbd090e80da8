"""The drop-in classes of SCAN and SGRAF against a loop over captions, and where they differ."""

import inspect
from argparse import Namespace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from compat_formulas import scan_scores, triplet_loss_of_scores
from itm_kernels.compat import scan, sgraf
from itm_kernels.compat.scan import xattn_score_i2t, xattn_score_t2i
from itm_kernels.retrieval import evaluate, evaluate_scores
from oracles.batches import unit_pair
from oracles.comparing import same
from retrieval_data import LargestOutput

NORMS = ["clipped_l2norm", "l2norm", "softmax", "clipped", "no_norm"]
AGGREGATES = ["LogSumExp", "Max", "Sum", "Mean"]
SCORES = {"t2i": xattn_score_t2i, "i2t": xattn_score_i2t}
# SCAN's recipe: smooth 9 and log-sum-exp at 6 for t2i, 4 and 5 for i2t.
LAMBDAS = {"t2i": (9.0, 6.0), "i2t": (4.0, 5.0)}
LENGTHS = [5, 4, 4, 3, 2, 1]


def options(direction: str = "t2i", norm: str = NORMS[0], aggregate: str = "LogSumExp") -> Any:
    smooth, scale = LAMBDAS[direction]
    return Namespace(
        cross_attn=direction,
        raw_feature_norm=norm,
        agg_func=aggregate,
        lambda_softmax=smooth,
        lambda_lse=scale,
        margin=0.2,
    )


def regions_and_words(
    N: int = 6, M: int = 6, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Draw unit rows, 7 regions and up to 5 words, of related pairs."""
    image, text = unit_pair(7 * max(N, M), torch.float64)
    rows = (image.detach().view(-1, 7, 12)[:N], text.detach().view(-1, 7, 12)[:M, :5])
    regions, words = (x.to(dtype).requires_grad_() for x in rows)
    return regions, words


def original(opt: Any, lengths: list[int] = LENGTHS) -> Any:
    given = opt.cross_attn, opt.raw_feature_norm, opt.agg_func, opt.lambda_softmax, opt.lambda_lse
    return lambda images, captions: scan_scores(images, captions, lengths, *given)


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


# -- differences and messages ----------------------------------------------------------------------


def test_one_image_or_captions_of_one_word_have_scores() -> None:
    # The original squeezes such scores to fewer dimensions, over which it cannot aggregate.
    regions, words = regions_and_words(1, 1)
    found = xattn_score_t2i(regions, words, [1], options())
    torch.testing.assert_close(found, original(options(), [1])(regions, words))
    assert found.shape == (1, 1)


def test_a_caption_without_words_scores_zero() -> None:
    regions, words = regions_and_words()
    for direction, aggregate in product(SCORES, AGGREGATES):
        opt = options(direction, aggregate=aggregate)
        if direction == "t2i" and aggregate in ("LogSumExp", "Mean"):
            assert not original(opt, [0])(regions, words[:1]).isfinite().any()
        scores = SCORES[direction](regions, words, [5, 4, 4, 3, 2, 0], opt)
        assert (scores[:, 5] == 0).all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(scores.sum(), (regions, words)))


@pytest.mark.parametrize("norm", ["l1norm", "clipped_l1norm"])
def test_norms_that_the_original_does_not_define(norm: str) -> None:
    message = f"xattn_score_t2i: opt.raw_feature_norm '{norm}' raises NameError in SCAN's code too"
    with pytest.raises(ValueError, match=message):
        xattn_score_t2i(*regions_and_words(), LENGTHS, options(norm=norm))


REGIONS, WORDS = (x.detach() for x in regions_and_words())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"im": REGIONS[:, 0]}, ValueError, r"im must have shape \[N, R, D\], got \[6, 12\]"),
        ({"s": WORDS.long()}, TypeError, "s must be floating point"),
        (
            {"s": WORDS[..., :4]},
            ValueError,
            r"im \[6, 7, 12\] and s \[6, 5, 4\] differ in the last",
        ),
        (
            {"im": REGIONS[:4]},
            ValueError,
            r"im \[4, 7, 12\] and s \[6, 5, 12\] differ in rows; pass",
        ),
        ({"im": REGIONS[:0]}, ValueError, r"im \[0, 7, 12\] is empty; skip"),
        (
            {"s_l": LENGTHS[:5]},
            ValueError,
            r"s_l must have shape \[6\], one number of words per row",
        ),
        ({"s_l": torch.rand(6)}, TypeError, "s_l must be integers"),
        ({"s_l": None}, TypeError, "s_l must be a torch.Tensor, got None"),
    ],
)
def test_arguments_of_scan_are_checked(change: dict, error: type, message: str) -> None:
    arguments = {"im": REGIONS, "s": WORDS, "s_l": LENGTHS, **change}
    with pytest.raises(error, match=f"^ContrastiveLoss: {message}"):
        scan.ContrastiveLoss(options(), 0.2)(**arguments)


def test_a_number_of_words_beyond_the_padding_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"word_counts\[0\] is 6, but words \[6, 5, 12\] has 0 to"):
        xattn_score_t2i(REGIONS, WORDS, [6, 4, 4, 3, 2, 1], options())


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        (
            "cross_attn",
            "both",
            ValueError,
            "opt.cross_attn must be one of 't2i', 'i2t', got 'both'",
        ),
        (
            "raw_feature_norm",
            "l3",
            ValueError,
            "opt.raw_feature_norm must be one of 'clipped_l2norm",
        ),
        ("agg_func", "max", ValueError, "opt.agg_func must be one of 'LogSumExp', 'Mean', 'Max',"),
        ("lambda_softmax", "9", TypeError, "opt.lambda_softmax must be a number, got str '9'"),
        ("lambda_lse", 0, ValueError, "opt.lambda_lse must be finite and > 0, got 0"),
    ],
)
def test_options_are_checked_when_used(name: str, value: object, error: type, message: str) -> None:
    opt = options()
    setattr(opt, name, value)
    with pytest.raises(error, match=f"^ContrastiveLoss: {message}"):
        scan.ContrastiveLoss(opt)(REGIONS, WORDS, LENGTHS)
    delattr(opt, name)
    missing = f"^ContrastiveLoss: opt must be SCAN's options, got Namespace without {name}$"
    with pytest.raises(TypeError, match=missing):
        scan.ContrastiveLoss(opt)(REGIONS, WORDS, LENGTHS)


def test_options_that_scan_does_not_read_are_not_needed() -> None:
    opt = options(aggregate="Mean")
    del opt.lambda_lse, opt.cross_attn
    assert xattn_score_t2i(REGIONS, WORDS, LENGTHS, opt).shape == (6, 6)


@pytest.mark.parametrize("opt", [0.2, None, True, "t2i"])
def test_the_constructor_of_vsepp_is_named(opt: object) -> None:
    message = "^ContrastiveLoss: opt must be SCAN's options, got .* is compat.vsepp.ContrastiveLoss"
    with pytest.raises(TypeError, match=message):
        scan.ContrastiveLoss(opt)


def test_arguments_of_sgraf_are_checked() -> None:
    loss = sgraf.ContrastiveLoss(0.2)
    for scores, error, message in (
        (REGIONS[0], ValueError, r"scores must be square, got \[7, 12\]; pass one text per image"),
        (REGIONS, ValueError, r"scores must have shape \[N, N\], got \[6, 7, 12\]"),
        (torch.ones(3, 3).long(), TypeError, "scores must be floating point"),
        (REGIONS[0, :0], ValueError, r"scores \[0, 12\] is empty; skip"),
    ):
        with pytest.raises(error, match=f"^ContrastiveLoss: {message}"):
            loss(scores)
    with pytest.raises(TypeError, match="^ContrastiveLoss: margin must be a number, got"):
        loss.margin = "0.2"


def test_a_blind_scan_scores_chance() -> None:
    regions, words = torch.ones(4, 3, 2), torch.ones(8, 3, 2)
    report = evaluate_scores(
        lambda i, j: xattn_score_t2i(regions[i], words[j], [2] * (j.stop - j.start), options()),
        *(4, 8),
        ks=(1,),
    )
    assert report == evaluate(torch.ones(4, 1), torch.ones(8, 1), ks=(1,))
