"""Blind encoders score chance, and likely mistakes cause a warning."""

import math

import pytest
import torch

from itm_kernels.retrieval import RetrievalReport, evaluate
from retrieval_data import DTYPES, related

BLIND = [(8, 40), (60, 60), (50, 250)]


def chance(positives: int, candidates: int, k: int) -> float:
    """Percent of blind queries with a positive among the first k."""
    missed = math.comb(candidates - positives, k) / math.comb(candidates, k)
    return 100 * (1 - missed)


def assert_chance(report: RetrievalReport, way: str, p: int, queries: int, gallery: int) -> None:
    """Hold one direction against a random order of candidates with p positives."""
    for k, recall in getattr(report, way).items():
        assert recall == pytest.approx(chance(p, gallery, k))
    middle = 1 + (gallery - p) / 2
    figures = {"median_rank": middle, "mean_rank": middle, "ties": queries}
    if p == 1:
        figures["mrr"] = sum(1 / rank for rank in range(1, gallery + 1)) / gallery
    for name, value in figures.items():
        assert getattr(report, f"{way}_{name}") == pytest.approx(value)


# 2,150 candidates are two tiles of the compiled kernel, and the last of 2,150 fills no block.
@pytest.mark.parametrize(
    ("N", "M", "dtype"),
    [(*size, dtype) for size in BLIND for dtype in DTYPES]
    + [(430, 2150, torch.float32), (430, 2150, torch.float64)],
    ids=str,
)
def test_blind_encoders_score_chance(N: int, M: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(N)
    D, ks = 77, (1, 5) if N < 10 else (1, 5, 10)
    image_row, text_row = torch.randn(2, 1, D, generator=generator).to(dtype)
    ones, zeros = torch.ones(1, D, dtype=dtype), torch.zeros(1, D, dtype=dtype)
    for metric in ("dot", "cosine"):
        for image, text in ((ones, ones), (zeros, zeros), (image_row, text_row)):
            report = evaluate(image.expand(N, D), text.expand(M, D), metric=metric, ks=ks)
            assert_chance(report, "i2t", M // N, N, M)
            assert_chance(report, "t2i", 1, M, N)
        seeing = torch.randn(N, D, generator=generator).to(dtype)
        report = evaluate(seeing, text_row.expand(M, D), metric=metric, ks=ks)
        assert_chance(report, "i2t", M // N, N, M)


@pytest.mark.parametrize("seed", range(3))
def test_what_a_blind_encoder_scores_is_near_chance_in_every_order(seed: int) -> None:
    """Rows that differ only in their last bits do not tie, and still rank at random."""
    generator = torch.Generator().manual_seed(seed)
    for N, M in BLIND[:3]:
        dead = torch.randn(2, 64, generator=generator, dtype=torch.float64)
        image, text = (
            row + 1e-9 * torch.randn(n, 64, generator=generator)
            for row, n in zip(dead, (N, M), strict=True)
        )
        report = evaluate(image, text, ks=(1, 5))
        for k in (1, 5):
            for found, p, queries in (
                (report.i2t[k], chance(M // N, M, k), N),
                (report.t2i[k], 100 * k / N, M),
            ):
                # Four standard deviations; queries of texts order the images all alike.
                assert abs(found - p) <= 4 * math.sqrt(p * (100 - p) / min(queries, N))


def test_report_counts_queries_that_tie() -> None:
    image, text = torch.eye(3), torch.tensor([[1.0, 0, 0], [0, 0, 1], [1, 0, 0]])
    report = evaluate(image, text, ks=(1,))
    # Text 2 is text 0 again; image 1 scores 0 with all texts, and image 2 with texts 0 and 2.
    assert (report.i2t_ties, report.t2i_ties) == (3, 2)
    assert str(report).endswith("; 3 images and 2 texts tie with a negative")
    assert "tie" not in str(evaluate(torch.eye(3), torch.eye(3), ks=(1,)))


def test_images_repeated_for_their_captions_cause_a_warning() -> None:
    """VSE++ keeps an image once per caption: as 5 N items of their own R@1 is 20, not 100."""
    image = torch.eye(12).repeat_interleave(5, 0)
    text = image + 0.1 * torch.randn(60, 12, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=r"48 of 60 rows of image equal .* pass image\[::5\] or"):
        report = evaluate(image, text)
    assert (report.i2t[1], report.t2i[1]) == pytest.approx((20, 20))
    ids = torch.arange(60) // 5
    assert evaluate(image, text, image_ids=ids, text_ids=ids).rsum == 600
    assert evaluate(image[::5], text).rsum == 600
    with pytest.warns(UserWarning, match=r"48 of 60 rows of text equal .* pass text\[::5\] or"):
        evaluate(text, image)
    few = torch.cat((image[:4], text[:20]))
    assert evaluate(few, few).i2t_ties == 4  # only the report warns
    image[3] += 1
    with pytest.warns(UserWarning, match=r"46 of 60 rows of image .* pass image_ids and text_ids$"):
        evaluate(image, text)


def test_k_beyond_the_candidates_warns_once() -> None:
    image, text = related(7, 2)
    with pytest.warns(UserWarning) as told:
        report = evaluate(image, text)
    assert [str(warning.message) for warning in told] == [
        "evaluate: ks holds 10, but one side has only 7 candidates, so recall is always 100 %; "
        "leave out larger k"
    ]
    assert told[0].filename == __file__
    assert report.t2i[10] == 100
    evaluate(image, text, ks=(1, 7))
    with pytest.warns(UserWarning, match=r"ks holds 5, 10, but one side has only 4"):
        evaluate(*related(8, 2), folds=2)


@pytest.mark.parametrize("large", [1e30, -1e30])
def test_scores_that_overflow_rank_last(large: float) -> None:
    image = text = torch.eye(4, 8)
    image, text = image.clone(), text.clone()
    image[1, 1], text[1, 1] = 1e30, large  # their score is +-inf
    image[2, 4:6] = 1e30  # NaN with text 2
    text[2, 4:6] = torch.tensor([1e30, -1e30])
    with pytest.warns(UserWarning, match=r"4 queries have no finite score .* metric=\"cosine\""):
        report = evaluate(image, text, ks=(1,))
    assert report.i2t[1] == report.t2i[1] == 50
    assert report.i2t_mean_rank == report.t2i_mean_rank == (1 + 4 + 4 + 1) / 4
