"""Recalls, ranks and MRR against brute-force loops over the score matrix."""

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from itm_kernels.retrieval import RetrievalReport, evaluate
from oracles.ranking import recall_report
from retrieval_data import LargestOutput, related, vsepp_ids


def agrees(
    report: RetrievalReport,
    image: Tensor,
    text: Tensor,
    image_ids: Tensor,
    text_ids: Tensor,
    ks: tuple[int, ...] = (1, 5, 10),
) -> None:
    scores = (image.double() @ text.double().T).numpy()
    expected = recall_report(scores, image_ids.tolist(), text_ids.tolist(), ks)
    assert set(expected) == {field.name for field in fields(report)}
    for name, value in expected.items():
        assert getattr(report, name) == pytest.approx(value), name


@pytest.mark.parametrize("texts_per_image", [1, 5])
@pytest.mark.parametrize("num_images", [1, 2, 30])
def test_layout_of_vsepp(num_images: int, texts_per_image: int) -> None:
    image, text = related(num_images, texts_per_image)
    ks = (1, 5, 10) if num_images == 30 else (1,)
    report = evaluate(image, text, ks=ks)
    agrees(report, image, text, *vsepp_ids(num_images, texts_per_image), ks)
    if num_images == 30:
        assert 0 < report.i2t[1] < report.i2t[10] < 100  # the batch is neither trivial nor hopeless


def test_ids_in_any_order() -> None:
    image, text = related(30, 5)
    image_ids, text_ids = vsepp_ids(30, 5)
    generator = torch.Generator().manual_seed(3)
    rows, columns = (
        torch.randperm(30, generator=generator),
        torch.randperm(150, generator=generator),
    )
    shuffled = evaluate(
        image[rows],
        text[columns],
        # Names need not be small, nor of one integer type.
        image_ids=image_ids[rows] * 10**12,
        text_ids=text_ids[columns] * 10**12,
    )
    assert shuffled == evaluate(image, text)


@settings(deadline=None)  # a busy machine may be slow
@given(st.data())
def test_uneven_groups_and_ties(data: st.DataObject) -> None:
    # Small integers: scores are exact in every precision, and most of them tie.
    size = st.integers(1, 7)
    names = data.draw(st.lists(st.integers(-2, 3), min_size=1, max_size=4, unique=True))
    sides = []
    for _ in ("image", "text"):
        ids = names + data.draw(st.lists(st.sampled_from(names), max_size=5))
        sides.append(data.draw(st.permutations(ids)))
    dim = data.draw(size)
    entries = st.integers(-1, 1)
    image, text = (
        torch.tensor(
            data.draw(
                st.lists(st.lists(entries, min_size=dim, max_size=dim), min_size=n, max_size=n)
            )
        ).float()
        for n in map(len, sides)
    )
    image_ids, text_ids = map(torch.tensor, sides)
    ks = (1, 2, 3)[: min(len(image), len(text))]
    report = evaluate(image, text, image_ids=image_ids, text_ids=text_ids, ks=ks)
    agrees(report, image, text, image_ids, text_ids, ks)


def test_median_of_an_even_number_of_ranks() -> None:
    # Ranks 1 and 2 both ways: the second image prefers the first text, and the other way round.
    report = evaluate(torch.tensor([[1.0, 0.0], [0.9, 0.1]]), torch.eye(2), ks=(1,))
    assert report.i2t_median_rank == report.i2t_mean_rank == 1.5
    assert report.i2t_mrr == 0.75


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    # Quarters below 4 are exact in bfloat16; their dot products need more than float16's 11 bits.
    image, text = ((4 * x).round().clamp(-15, 15) / 4 for x in related(30, 5, dim=32))
    report = evaluate(image.to(dtype), text.to(dtype))
    agrees(report, image, text, *vsepp_ids(30, 5))


def test_embeddings_are_scored_as_given() -> None:
    image, text = related(30, 1)
    stretched = text * torch.linspace(0.1, 10, 30)[:, None]
    agrees(evaluate(image, stretched), image, stretched, *vsepp_ids(30, 1))
    assert evaluate(image, stretched) != evaluate(image, text)


def test_cosine_scores_rows_of_length_one() -> None:
    image, text = related(30, 1)
    lengths = torch.linspace(-15, 15, 30)[:, None]
    text[4] = 0
    unit = [torch.nn.functional.normalize(x, dim=1) for x in (image, text)]
    for scale in (lengths.exp(), 10 ** lengths.double(), 1e-30, 1e30):
        report = evaluate(image, (text * scale).float(), metric="cosine")
        agrees(report, *unit, *vsepp_ids(30, 1))
    assert evaluate(*unit) == evaluate(*unit, metric="cosine") != evaluate(image, text)


def test_folds_are_averaged_as_mscoco_does() -> None:
    image, text = related(60, 5, dim=4)
    report = evaluate(image, text, folds=5)
    parts = [evaluate(image[k : k + 12], text[5 * k : 5 * k + 60]) for k in range(0, 60, 12)]
    for name, value in report.as_dict().items():
        total = sum(part.as_dict()[name] for part in parts)
        assert value == pytest.approx(total / (1 if "ties" in name else 5)), name
    assert report.rsum > evaluate(image, text).rsum
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    image_ids, text_ids = vsepp_ids(60, 5)
    ids = {"image_ids": image_ids, "text_ids": text_ids[order]}
    assert evaluate(image, text[order], **ids, folds=5) == report
    assert isinstance(report.i2t_ties, int)


def test_dictionary_for_loggers() -> None:
    report = evaluate(*related(12, 2), ks=(1, 5))
    found = report.as_dict()
    names = [
        f"{way}_{figure}"
        for figure in ("median_rank", "mean_rank", "mrr", "ties", "r1", "r5")
        for way in ("i2t", "t2i")
    ]
    assert set(found) == {*names, "rsum"}
    assert found["i2t_r5"] == report.i2t[5] and found["t2i_mrr"] == report.t2i_mrr
    assert all(isinstance(value, (int, float)) for value in found.values())


def test_keeps_no_graph() -> None:
    image, text = (x.requires_grad_() for x in related(4, 1))
    with torch.autograd.graph.saved_tensors_hooks(lambda _: pytest.fail("saved"), lambda x: x):
        evaluate(image, text, ks=(1,))


def test_no_matrix_of_all_scores_in_memory() -> None:
    # 2,000 x 10,000 scores are five times the reference's block of 2^22; D = 2 keeps it quick.
    image, text = related(2_000, 5, dim=2)
    with LargestOutput() as largest:
        evaluate(image, text)
    assert text.numel() <= largest.numel <= len(image) * len(text) // 4


def test_prints_an_aligned_table() -> None:
    recalls = {1: 5.0, 10: 100.0}, {1: 33.333, 10: 66.667}
    report = RetrievalReport(*recalls, 12.5, 3.0, 205.0, 20.25, 3.1, 0.25, 0.5, 0, 0)
    table = [
        "                   R@1    R@10  median rank  mean rank     MRR",
        "image to text      5.0   100.0         12.5       20.2   0.250",
        "text to image     33.3    66.7          3.0        3.1   0.500",
        "R-sum 205.0",
    ]
    assert str(report).splitlines() == table
    table[-1] += "; 0 images and 3 texts tie with a negative"
    assert str(replace(report, t2i_ties=3)).splitlines() == table


IMAGE, TEXT = related(3, 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"text": TEXT[:5]},
            ValueError,
            r"text \[5, 8\] is not a multiple of image \[3, 8\] in rows; "
            "pass image_ids and text_ids",
        ),
        ({"text": TEXT[:2]}, ValueError, r"text \[2, 8\] is not a multiple of image \[3, 8\]"),
        ({"text": TEXT[:, :4]}, ValueError, r"image \[3, 8\] and text \[6, 4\] differ in the last"),
        ({"image": IMAGE.long()}, TypeError, r"image must be floating point"),
        ({"image": IMAGE[0]}, ValueError, r"image must have shape \[rows, D\], got \[8\]"),
        ({"image_ids": torch.arange(3)}, ValueError, r"image_ids is given without text_ids"),
        (
            {"image_ids": torch.tensor([0, 1, 7]), "text_ids": torch.tensor([0, 0, 1, 1, 7, 8])},
            ValueError,
            r"1 of the ids in text_ids do not appear in image_ids \(8\); every row needs",
        ),
        (
            {"image_ids": torch.tensor([0, 8, 7]), "text_ids": torch.tensor([0, 0, 0, 0, 0, 0])},
            ValueError,
            r"2 of the ids in image_ids do not appear in text_ids \(7, 8\)",
        ),
        (
            {"text": TEXT.clone().index_fill_(0, torch.tensor([1, 4]), math.nan)},
            ValueError,
            r"text\[1\] is not finite \(2 of 6 rows are not\)",
        ),
        (
            {"image": IMAGE.clone().index_fill_(0, torch.tensor([2]), math.inf)},
            ValueError,
            r"image\[2\] is not finite \(1 of 3 rows are not\)",
        ),
        ({"ks": ()}, ValueError, r"ks must hold at least one number, each once, got \(\)"),
        ({"ks": (1, 5, 1)}, ValueError, r"ks must hold .* each once, got \(1, 5, 1\)"),
        ({"ks": (0, 1)}, ValueError, r"every k in ks must be >= 1, got 0"),
        ({"ks": (1.5,)}, TypeError, r"every k in ks must be an int, got float 1.5"),
        ({"ks": 5}, TypeError, r"ks must be a sequence of integers, got int 5"),
        ({"metric": "l2"}, ValueError, r"metric must be one of 'dot', 'cosine', got 'l2'"),
        ({"folds": 0}, ValueError, r"folds must be >= 1, got 0"),
        ({"folds": 2}, ValueError, r"folds=2 does not divide the 3 rows of image; leave rows out"),
    ],
)
def test_arguments_are_checked(change: dict[str, object], error: type, message: str) -> None:
    arguments = {"image": IMAGE, "text": TEXT, **change}
    with pytest.raises(error, match=f"evaluate: {message}"):
        evaluate(arguments.pop("image"), arguments.pop("text"), **arguments)
