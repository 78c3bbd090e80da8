"""The rule that errors are held to: what breaks it, and which batches are drawn again."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tools.gpu_check import rule, values
from tools.gpu_check.journal import Setting

N, D = 40, 12
HERE = Setting("cpu", False, Path(), math.inf)


def test_the_error_rule() -> None:
    exact, eager = [torch.tensor([1.0, torch.inf])], [torch.tensor([1.001, torch.inf])]

    def ratio(value: float) -> float:
        found = [torch.tensor([value, torch.inf])]
        return rule.check_errors(exact, eager, found, 1e-7, norm=False)["worst"]

    assert ratio(1.001) == pytest.approx(0.5, rel=0.02)
    for value in (1.003, torch.nan, torch.inf):
        with pytest.raises(rule.ErrorRuleError, match="times the allowed error"):
            ratio(value)


def first(rows: Tensor) -> bool:
    """Whether rows are of the first of the batches that may be drawn."""
    wanted = values.batch(N, D, torch.float64, "cpu", False)[0][0]
    return (rows.detach().double() - wanted).abs().max().item() < 1e-3


def hinges(edge: Tensor) -> Callable[..., Tensor]:
    """A sum of hinges at an edge; computed by "auto", they end 3e-8 later."""

    def operation(x: Tensor, y: Tensor, backend: str) -> Tensor:
        late = 3e-8 if backend == "auto" else 0.0
        return ((x @ y.T).double() - (edge + late)).relu().mean().to(x.dtype)

    return operation


def compare(operation: Callable[..., Tensor], precision: str = "fp32") -> dict[str, Any]:
    return values.compare("stand-in", operation, "native", precision, N, D, HERE)


def near_a_kink() -> Callable[..., Tensor]:
    x, y = values.batch(N, D, torch.float32, "cpu", False)[0]
    return hinges((x.double() @ y.double().T)[3, 5] - 2e-8)


def test_batches_with_a_value_near_a_kink_are_drawn_again() -> None:
    found = compare(near_a_kink())
    assert found["worst"] < 1
    assert 0 not in found["batches"] and found["batches"]


@pytest.mark.parametrize("wrong", [1.001, 1e3, math.nan])
def test_a_fault_is_not_mistaken_for_a_kink(wrong: float) -> None:
    near = near_a_kink()

    def operation(x: Tensor, y: Tensor, backend: str) -> Tensor:
        return near(x, y, backend) * (wrong if backend == "auto" and first(x) else 1)

    def everywhere(x: Tensor, y: Tensor, backend: str) -> Tensor:
        return near(x, y, backend) * (wrong if backend == "auto" else 1)

    for faulty in (everywhere, operation):
        with pytest.raises(rule.ErrorRuleError):
            compare(faulty)


def test_a_fault_of_one_batch_without_a_kink_is_found() -> None:
    def operation(x: Tensor, y: Tensor, backend: str) -> Tensor:
        return (x @ y.T).exp().mean() * (1.0001 if backend == "auto" and first(x) else 1)

    with pytest.raises(rule.ErrorRuleError):
        compare(operation)


def test_errors_of_eager_that_cancel_in_one_batch_are_drawn_again() -> None:
    """Both err by 1e-4 in every batch, but eager does not in the first."""

    def operation(x: Tensor, y: Tensor, backend: str) -> Tensor:
        exact = x.dtype == torch.float64
        lucky = backend == "reference" and first(x)
        return (x @ y.T).mean() * (1 if exact or lucky else 1.0001)

    assert compare(operation, "tf32")["batches"] == [0, 1, 2, 3]

    def worse(x: Tensor, y: Tensor, backend: str) -> Tensor:
        return operation(x, y, backend) * (1.0003 if backend == "auto" else 1)

    with pytest.raises(rule.ErrorRuleError):
        compare(worse, "tf32")


def test_distances_of_eager_are_products_under_tf32_only_where_ours_are() -> None:
    x = torch.full((4, 8), 1 / 3) + 1e-4 * torch.arange(4)[:, None]
    direct = {"compute_mode": "donot_use_mm_for_euclid_dist"}
    plain = torch.cdist(x, x.flip(0), **direct)
    with values.distances_by_products():
        assert not torch.equal(torch.cdist(x, x.flip(0), **direct), plain)
    assert torch.equal(torch.cdist(x, x.flip(0), **direct), plain)
