"""The time of a loss is told with the backends it was measured with."""

import pytest
import torch

from itm_kernels import backends
from models import Widths
from objectives import LOSS_NAMES, build_objective
from timing import LossTime, time_loss

WIDTHS = Widths(16, image_tokens=16, text_tokens=16)


def encoded_sets() -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Three regions and four words, and pooled embeddings."""
    generator = torch.Generator().manual_seed(0)
    regions, words, image, text = (
        torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1)
        for shape in ((6, 3, 16), (6, 4, 16), (6, 16), (6, 16))
    )
    return (regions, words, torch.full((6,), 4), image, text), torch.arange(6)


def encoded_batch(loss: str) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 6, 16) if loss == "ito" else (6, 16)
    parts = [torch.randn(shape, generator=generator) for _ in range(3 if loss == "ito" else 2)]
    return tuple(torch.nn.functional.normalize(part, dim=-1) for part in parts), torch.arange(6)


@pytest.mark.parametrize(
    ("loss", "similarity"),
    [(loss, None) for loss in LOSS_NAMES]
    + [(loss, "late") for loss in LOSS_NAMES if loss not in ("itm", "ito")]
    + [("info_nce", "scan_i2t")],
)
def test_the_operators_told_are_those_that_the_loss_resolves(loss, similarity, monkeypatch):
    encoded, ids = encoded_batch(loss) if similarity is None else encoded_sets()
    objective = build_objective(loss, WIDTHS, similarity=similarity)
    batches = [(encoded, ids)]
    told = time_loss(loss, objective, WIDTHS, batches, similarity=similarity, rounds=1).chosen
    asked = set()

    def refuse(operator: str, *where: object, **options: object) -> str:
        if operator not in backends.TOTALS:  # those stand for operators that are told
            asked.add(operator)
        return "reference"

    monkeypatch.setattr(backends, "choose", refuse)
    objective.loss(encoded, ids, torch.Generator())
    assert set(told) == asked


def test_timing_leaves_the_objective_and_the_batch_as_they_were():
    encoded, ids = encoded_batch("itm")
    objective = build_objective("itm", WIDTHS)
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    measured = time_loss("itm", objective, WIDTHS, [(encoded, ids)] * 2, rounds=3)
    assert measured.measurements == 6
    assert all(torch.equal(before[name], part) for name, part in objective.state_dict().items())
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert not any(part.requires_grad for part in encoded)


def test_a_reference_measured_against_itself_is_called_so():
    same = LossTime(2.0, 3.0, 7, {"log_sum_exp": "reference", "kmeans": "reference"})
    assert "2.00 ms, plain PyTorch 3.00 ms, ratio 1.50 (medians of 7; auto = reference" in str(same)
    mixed = LossTime(2.0, 3.0, 7, {"log_sum_exp": "native", "kmeans": "reference"})
    assert str(mixed).endswith("(medians of 7; log_sum_exp: native, kmeans: reference)")
