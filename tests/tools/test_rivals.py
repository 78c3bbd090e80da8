"""Calls of rivals that may not be installed, against stand-ins for their documented functions.

Each stand-in is the package's own formula in plain PyTorch, with its scales and its reduction.
"""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from benchmarks import rivals
from benchmarks.rivals import Builder, Function, UnavailableError, eager, fine_grained, packages


def inf_cl(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Return one value per row."""
    own = torch.arange(len(q))
    return cross_entropy(scale * q @ k.T, own, reduction="none")


class Memeff:
    """Normalises rows; `stable` is its default and changes the gradient alone."""

    def __init__(self, temperature: float, stable: bool = True) -> None:
        self.temperature, self.stable = temperature, stable

    def __call__(self, image: Tensor, text: Tensor) -> Tensor:
        logits = normalize(image) @ normalize(text).T / self.temperature
        own = torch.arange(len(image))
        loss = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
        factor = (self.temperature * len(image)) ** 0.5 if self.stable else 1.0
        return loss.detach() + factor * (loss - loss.detach())


def siglip(image: Tensor, text: Tensor, log_temperature: Tensor, bias: Tensor) -> Tensor:
    """Take unit rows; the scale is e^log_temperature; divide by the rows."""
    logits = log_temperature.exp() * image @ text.T + bias
    return -logsigmoid((2 * torch.eye(len(image)) - 1) * logits).sum() / len(image)


class MaxSimScorer(torch.nn.Module):
    """Sum over the tokens of a query; `normalize` is the package's default."""

    def __init__(self, *, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize

    def forward(self, queries: Tensor, documents: Tensor) -> Tensor:  # [queries, documents]
        if self.normalize:
            queries, documents = normalize(queries, dim=2), normalize(documents, dim=2)
        return torch.einsum("ild,jtd->ijlt", queries, documents).amax(3).sum(2)


STAND_INS = {
    "late_interaction_kernels": SimpleNamespace(MaxSimScorer=MaxSimScorer),
    "inf_cl": SimpleNamespace(cal_flash_loss=inf_cl),
    "memeff": SimpleNamespace(MemoryEfficientCLIPLoss=Memeff),
    "siglip_kernel": SimpleNamespace(fused_siglip_loss=siglip),
}


@pytest.mark.parametrize(
    ("name", "builder", "formula"),
    [
        ("inf_cl", packages.inf_cl, eager.info_nce),
        ("memeff", packages.memeff_clip, eager.info_nce),
        ("siglip_kernel", packages.siglip_kernel, eager.sigmoid),
    ],
)
def test_a_rival_on_cuda_is_called_for_our_loss(
    name: str, builder: Builder, formula: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert name in rivals.PACKAGES  # so that the report names its version
    if not torch.cuda.is_available():
        with pytest.raises(UnavailableError, match="needs CUDA"):
            builder()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, name, STAND_INS[name])
    rows = [torch.randn(7, 5, requires_grad=True) for _ in range(2)]
    assert_same(builder(), formula, rows)


def test_late_interaction_kernels_scores_images_by_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "late_interaction_kernels"
    assert name in rivals.PACKAGES
    monkeypatch.setitem(sys.modules, name, STAND_INS[name])
    sets = [torch.randn(shape, requires_grad=True) for shape in ((3, 6, 5), (4, 2, 5))]
    assert_same(packages.late_interaction_kernels(), fine_grained.max_sim, sets)


def assert_same(rival: Function, formula: Function, rows: list[Tensor]) -> None:
    """Compare values and gradients."""
    found, wanted = rival(*rows), formula(*rows)
    torch.testing.assert_close(found, wanted)
    of_found, of_wanted = (torch.autograd.grad(of.sum(), rows) for of in (found, wanted))
    torch.testing.assert_close(of_found, of_wanted)
