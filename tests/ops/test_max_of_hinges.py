"""Max of hinges and hardest negatives in CUDA, on the emulator."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from emulated import NAMESPACE, SCHEDULES, as_native
from itm_kernels import functional, ops
from kernels import MARKS
from small_batch import (
    HARDEST,
    leaves,
    max_hinges,
    not_finite,
    rows,
)

pytestmark = MARKS["emulated"]


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    with as_native():
        yield


def test_ties_go_to_the_lowest_index_in_every_tile() -> None:
    # Rows 3, 40 and 99 are equal: different lanes, warps and tiles read them, in any order.
    x, y = rows(127, 20, torch.float32), rows(127, 20, torch.float32, seed=1)
    for side in (x, y):
        side[[3, 40, 99]] = 4.0
    found = ops.hardest_negatives(x, y, backend="native")
    assert (found.text_index == 3).sum() > 30
    assert (found.image_index == 3).sum() > 30
    assert not torch.isin(torch.tensor([99]), torch.cat([found.text_index, found.image_index]))
    assert found.text_index[3] == found.image_index[3] == 40


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("run", HARDEST)
def test_values_that_are_not_finite_show(run: Callable[..., list[Tensor]], value: float) -> None:
    for side, row in ((0, 0), (0, 34), (1, 9), (1, 33)):
        x, y = not_finite(value, side, row)
        found, wanted = run(x, y, "native"), run(x, y, "reference")
        assert wanted[-3].isfinite().logical_not().any()
        for ours, theirs in zip(found[:-2], wanted[:-2], strict=True):
            torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("mining", ["hardest", "semihard"])
def test_a_text_without_an_image_can_be_a_negative_only(mining: str) -> None:
    ids = {"image_ids": torch.arange(33), "text_ids": torch.arange(70) * 7 % 60}
    sides = leaves(rows(33, 9), rows(70, 9, seed=1))
    results = []
    for name in ("native", "reference"):
        given = {"mining": mining, "backend": name, "unmatched": "negative", **ids}
        value = functional.max_of_hinges_loss(*sides, **given)
        results.append((value, *torch.autograd.grad(value, sides)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("run", HARDEST)
def test_equal_ids_leave_no_negative(run: Callable[..., list[Tensor]]) -> None:
    ids = torch.full((9,), 7)
    x, y = rows(9, 5), rows(9, 5, seed=1)
    found, wanted = (
        run(x, y, name, image_ids=ids, text_ids=ids) for name in ("native", "reference")
    )
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_text_without_an_image_is_nan_and_has_no_gradient() -> None:
    operators = getattr(torch.ops, NAMESPACE)
    x, y, positive = rows(4, 5), rows(3, 5, seed=1), torch.tensor([0, -1, 3])
    ids = torch.arange(4), torch.tensor([0, 9, 3])
    loss, *indices = operators.max_of_hinges_forward(x, y, positive, *ids, 5.0, False)
    assert loss.isnan().tolist() == [False, True, False]
    grads = operators.max_of_hinges_backward(torch.ones(3).double(), x, y, positive, *indices)
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("D", [3, 300])
def test_a_row_that_is_hardest_for_all_accumulates_every_pair(D: int) -> None:
    # One text is the hardest for every image, one image for every text: all warps add to both rows.
    x, y = rows(100, D).abs(), rows(100, D, seed=1).abs()
    y[77] = x[5] = 50.0
    found, wanted = (max_hinges(x, y, name) for name in ("native", "reference"))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    found = []
    for schedule in SCHEDULES:
        with as_native(schedule):
            found.append(max_hinges(x.float(), y.float(), "native"))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_1024_rows_are_taken_and_1025_refused() -> None:
    x = rows(1024, 4, torch.float32)
    found, wanted = (ops.hardest_negatives(x, x, backend=name) for name in ("native", "reference"))
    assert torch.equal(found.text_index, wanted.text_index)
    x = rows(1025, 1, torch.float32)
    forward = getattr(torch.ops, NAMESPACE).max_of_hinges_forward
    with pytest.raises(RuntimeError, match="2 x 1025 rows; .* up to 1024 rows per side"):
        forward(x[:2], x, None, None, None, 0.2, False)


def test_opcheck() -> None:
    x, y, positive = rows(3, 6), rows(5, 6, seed=1), torch.tensor([2, 0, 1, 1, 0])
    operators = getattr(torch.ops, NAMESPACE)
    ids = torch.arange(3), positive.clone()
    torch.library.opcheck(operators.max_of_hinges_forward, (x, y, positive, *ids, 0.2, True))
    torch.library.opcheck(operators.hardest_negatives_forward, (x, y, positive, *ids))
    grad, other = torch.ones(5).double(), torch.ones(3).double()
    indices = torch.tensor([1, 0, -1, 2, 3]), torch.tensor([0, -1, 1, 1, 2])
    torch.library.opcheck(operators.max_of_hinges_backward, (grad, x, y, positive, *indices))
    given = grad, other, grad, x, y, positive, indices[0][:3], indices[1]
    torch.library.opcheck(operators.hardest_negatives_backward, given)
