"""Where the drop-ins of SCAN and SGRAF differ from the originals, and their messages."""

from itertools import product

import pytest
import torch

from itm_kernels.compat import scan, sgraf
from itm_kernels.compat.scan import xattn_score_t2i
from scan_cases import AGGREGATES, LENGTHS, SCORES, options, original, regions_and_words


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
