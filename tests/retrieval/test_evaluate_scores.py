"""Evaluation of blocks of scores against `evaluate`, and against loops over the score matrix."""

import math
import warnings
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from itm_kernels.retrieval import RetrievalReport, evaluate, evaluate_scores
from oracles.ranking import recall_report
from retrieval_data import DTYPES, LargestOutput, related, vsepp_ids


def products(image: Tensor, text: Tensor):
    return lambda i, j: image[i] @ text[j].T


def agrees(report: RetrievalReport, scores: Tensor, ids: tuple[Tensor, Tensor], ks) -> None:
    expected = recall_report(scores.numpy(), *(side.tolist() for side in ids), ks)
    for name, value in expected.items():
        assert getattr(report, name) == pytest.approx(value), name


# 30 images in blocks of 1 and 7 (the last has 2), of all of them, and of more than there are.
@pytest.mark.parametrize("block_size", [1, 7, 30, 128])
@pytest.mark.parametrize("texts_per_image", [1, 5])
def test_report_is_that_of_evaluate(block_size: int, texts_per_image: int) -> None:
    image, text = (x.double() for x in related(30, texts_per_image))
    expected = evaluate(image, text)
    N, M = len(image), len(text)
    assert evaluate_scores(products(image, text), N, M, block_size=block_size) == expected
    assert evaluate_scores(image @ text.T, block_size=block_size) == expected
    assert 0 < expected.i2t[1] < 100


@settings(deadline=None)
@given(st.data())
def test_ties_nan_and_inf_in_uneven_groups(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.integers(-2, 3), min_size=1, max_size=4, unique=True))
    ids = []
    for _ in ("image", "text"):
        side = names + data.draw(st.lists(st.sampled_from(names), max_size=5))
        ids.append(torch.tensor(data.draw(st.permutations(side))))
    N, M = map(len, ids)
    value = st.sampled_from([0.0, 1.0, 2.0, math.nan, math.inf, -math.inf])
    scores = torch.tensor(data.draw(st.lists(value, min_size=N * M, max_size=N * M))).view(N, M)
    options = {"image_ids": ids[0], "text_ids": ids[1], "ks": (1, 2, 3)[: min(N, M)]}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        report = evaluate_scores(scores, block_size=data.draw(st.integers(1, N)), **options)
    positive = ids[0][:, None] == ids[1]
    lost = sum(int((~(positive & scores.isfinite()).any(side)).sum()) for side in (0, 1))
    assert [str(warning.message).split(" queries have no")[0] for warning in told] == (
        [f"evaluate_scores: {lost}"] if lost else []
    )
    # The loops of the oracle count a positive of +inf among the candidates above; it ranks last.
    scores = scores.masked_fill(positive & scores.isinf(), -math.inf)
    agrees(report, scores, (ids[0], ids[1]), options["ks"])


def test_equal_scores_are_chance() -> None:
    report = evaluate_scores(torch.ones(12, 60), block_size=5)
    assert report == evaluate(torch.ones(12, 1), torch.ones(60, 1))
    assert (report.i2t_ties, report.t2i_ties) == (12, 60)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_of_every_precision(dtype: torch.dtype) -> None:
    image, text = related(30, 5)
    scores = (image @ text.T).to(dtype)
    wide = scores.double()
    assert evaluate_scores(scores, block_size=8) == evaluate_scores(wide)
    agrees(evaluate_scores(scores), wide, vsepp_ids(30, 5), (1, 5, 10))


def test_folds_are_those_of_a_loop() -> None:
    image, text = (x.double() for x in related(60, 5, dim=4))
    scores = image @ text.T
    report = evaluate_scores(scores, folds=5, block_size=5)
    parts = [evaluate_scores(scores[k : k + 12, 5 * k : 5 * k + 60]) for k in range(0, 60, 12)]
    for name, value in report.as_dict().items():
        total = sum(part.as_dict()[name] for part in parts)
        assert value == pytest.approx(total / (1 if "ties" in name else 5)), name
    assert report == evaluate(image, text, folds=5)
    assert report.rsum > evaluate_scores(scores).rsum


@pytest.mark.parametrize("folds", [1, 5])
def test_ids_in_any_order(folds: int) -> None:
    image, text = (x.double() for x in related(60, 5, dim=4))
    generator = torch.Generator().manual_seed(3)
    image_ids, text_ids = vsepp_ids(60, 5)
    order = torch.randperm(300, generator=generator)
    ids = {"image_ids": image_ids * 10**12, "text_ids": text_ids[order] * 10**12}
    found = evaluate_scores(products(image, text[order]), 60, 300, **ids, folds=folds, block_size=7)
    assert found == evaluate(image, text, folds=folds)


def test_a_text_may_belong_to_images_of_several_folds() -> None:
    image, text = (x.double() for x in related(12, 2))
    ids = {"image_ids": torch.arange(12) % 5, "text_ids": torch.arange(24) % 5}
    options = {**ids, "folds": 3, "ks": (1, 2)}
    expected = evaluate(image, text, **options)
    assert evaluate_scores(image @ text.T, block_size=3, **options) == expected


# -- how often, and how much -----------------------------------------------------------------------


@pytest.mark.parametrize("folds, again", [(1, 4), (2, 4)])
def test_blocks_are_computed_once_and_those_with_a_positive_twice(folds: int, again: int) -> None:
    image, text = related(16, 5)
    calls: Counter[tuple[int, ...]] = Counter()
    told = []

    def score(i: slice, j: slice) -> Tensor:
        calls[i.start, i.stop, j.start, j.stop] += 1
        return image[i] @ text[j].T

    evaluate_scores(
        score,
        16,
        80,
        ks=(1,),
        folds=folds,
        block_size=4,
        progress=lambda *counts: told.append(counts),
    )
    diagonal = {(k, k + 4, 5 * k, 5 * k + 20) for k in range(0, 16, 4)}
    assert {block for block, times in calls.items() if times == 2} == diagonal
    assert len(calls) == 16 // folds and calls.total() == 16 // folds + again
    assert told == [(k, calls.total()) for k in range(1, calls.total() + 1)]


def test_positives_are_not_compared_with_their_second_computation() -> None:
    image, text = (x.double() for x in related(16, 5))
    positive = vsepp_ids(16, 5)[0][:, None] == vsepp_ids(16, 5)[1]
    scores, seen = image @ text.T, set()

    def score(i: slice, j: slice) -> Tensor:
        again = (i.start, j.start) in seen
        seen.add((i.start, j.start))
        return scores[i, j] + again * positive[i, j]

    assert evaluate_scores(score, 16, 80, block_size=4) == evaluate(image, text)


def test_mscoco_in_the_memory_of_one_block() -> None:
    image, text = related(5_000, 5, dim=2)
    with LargestOutput() as largest:
        evaluate_scores(products(image, text), 5_000, 25_000, block_size=250)
    assert largest.numel == 250 * 1_250  # of 125,000,000 scores


def test_a_text_of_each_fold_in_every_slice_needs_no_wider_block() -> None:
    image, text = related(200, 1, dim=2)
    image_ids = torch.arange(200)
    text_ids = image_ids.view(5, 40).T.flatten()  # neighbouring texts belong to all five folds
    widths = set()

    def score(i: slice, j: slice) -> Tensor:
        widths.add(j.stop - j.start)
        return image[i] @ text[text_ids][j].T

    ids = {"image_ids": image_ids, "text_ids": text_ids}
    found = evaluate_scores(score, 200, 200, **ids, folds=5, block_size=10)
    assert max(widths) <= 10
    assert found == evaluate(image, text, folds=5)


def test_keeps_no_graph() -> None:
    image, text = (x.requires_grad_() for x in related(4, 1))
    with torch.autograd.graph.saved_tensors_hooks(lambda _: pytest.fail("saved"), lambda x: x):
        evaluate_scores(products(image, text), 4, 4, ks=(1,))


# -- messages --------------------------------------------------------------------------------------

SCORES = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scores": SCORES[:, :5]}, ValueError, "5 texts are not a multiple of 3 images; pass im"),
        ({"scores": SCORES[:, :2]}, ValueError, "2 texts are not a multiple of 3 images"),
        ({"scores": SCORES.long()}, TypeError, "scores must be floating point"),
        ({"scores": SCORES[0]}, ValueError, r"scores must have shape \[N, M\], got \[6\]"),
        (
            {"scores": iter([SCORES])},
            TypeError,
            r"scores must be a torch.Tensor \[N, M\] or a function of two slices .* in files",
        ),
        ({"num_images": 4}, ValueError, r"num_images is 4, but scores is \[3, 6\]; leave it out"),
        ({"scores": max}, TypeError, "scores is a function; pass num_images too"),
        ({"scores": max, "num_images": 3}, TypeError, "scores is a function; pass num_texts too"),
        ({"scores": max, "num_images": 0, "num_texts": 6}, ValueError, "num_images must be >= 1"),
        ({"image_ids": torch.arange(3)}, ValueError, "image_ids is given without text_ids; pass"),
        ({"text_ids": torch.arange(6)}, ValueError, "text_ids is given without image_ids; pass"),
        (
            {"image_ids": torch.arange(2), "text_ids": torch.arange(6)},
            ValueError,
            r"image_ids must have shape \[3\], one id per row, got \[2\]",
        ),
        (
            {"image_ids": torch.tensor([0, 1, 7]), "text_ids": torch.tensor([0, 0, 1, 1, 7, 8])},
            ValueError,
            r"1 of the ids in text_ids do not appear in image_ids \(8\); every row needs",
        ),
        ({"ks": (0, 1)}, ValueError, "every k in ks must be >= 1, got 0"),
        ({"folds": 2}, ValueError, "folds=2 does not divide the 3 images; leave rows out"),
        ({"block_size": 0}, ValueError, "block_size must be >= 1, got 0"),
        ({"progress": True}, TypeError, "progress must be a function of the numbers of computed"),
    ],
)
def test_arguments_are_checked(change: dict[str, object], error: type, message: str) -> None:
    arguments = {"scores": SCORES, "ks": (1,), **change}
    with pytest.raises(error, match=f"^evaluate_scores: {message}"):
        evaluate_scores(**arguments)


BLOCK = r"the block of images 0:2 and texts 0:4"


@pytest.mark.parametrize(
    ("found", "error", "message"),
    [
        (None, TypeError, f"{BLOCK} must be a torch.Tensor, got None"),
        (SCORES.numpy(), TypeError, f"{BLOCK} must be a torch.Tensor, .*; use torch.as_tensor"),
        (SCORES.long(), TypeError, f"{BLOCK} must be floating point"),
        (SCORES.T, ValueError, rf"{BLOCK} must have shape \[2, 4\], got .*\[6, 3\].* two slices"),
    ],
)
def test_blocks_are_checked(found: object, error: type, message: str) -> None:
    with pytest.raises(error, match=f"^evaluate_scores: {message}"):
        evaluate_scores(lambda i, j: found, 3, 6, block_size=2)


def test_blocks_of_two_precisions_are_an_error() -> None:
    message = r"the block of images 2:3 and texts 4:6 is torch.float64 on cpu, blocks before it tor"
    with pytest.raises(TypeError, match=f"^evaluate_scores: {message}"):
        evaluate_scores(
            lambda i, j: SCORES[i, j].to(torch.float64 if i.start else torch.float32),
            3,
            6,
            block_size=2,
        )


def test_k_beyond_the_candidates_warns_where_it_was_called() -> None:
    with pytest.warns(UserWarning, match="^evaluate_scores: ks holds 5, 10, but one side") as told:
        evaluate_scores(SCORES)
    assert told[0].filename == __file__
