"""Max of hinges: values, whole losses, and rows that are the hardest negative of many."""

from typing import Any

import pytest
import torch

from emulated import NAMESPACE, SCHEDULES, as_native
from itm_kernels import ops
from kernels import on
from small_batch import max_hinges, rows


def test_a_text_without_an_image_is_nan_and_has_no_gradient(kernels: Any) -> None:
    x, y, positive = rows(4, 5), rows(3, 5, seed=1), torch.tensor([0, -1, 3])
    ids = torch.arange(4), torch.tensor([0, 9, 3])
    loss, *indices = kernels.max_of_hinges_forward(x, y, positive, *ids, 5.0, False)
    assert loss.isnan().tolist() == [False, True, False]
    grads = kernels.max_of_hinges_backward(torch.ones(3).double(), x, y, positive, *indices)
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("D", [3, 300])
def test_a_row_that_is_hardest_for_all_accumulates_every_pair(
    D: int, kernels: Any, backend_name: str
) -> None:
    # One text is the hardest for every image, one image for every text: all warps add to both rows.
    x, y = rows(100, D).abs(), rows(100, D, seed=1).abs()
    y[77] = x[5] = 50.0
    found, wanted = (max_hinges(x, y, name) for name in (backend_name, "reference"))
    torch.testing.assert_close(found, wanted)
    if kernels.name != NAMESPACE:
        return
    found = []
    for schedule in SCHEDULES:
        with as_native(schedule):
            found.append(max_hinges(x.float(), y.float(), "native"))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@on("emulated")
def test_1024_rows_are_taken_and_1025_refused(kernels: Any) -> None:
    x = rows(1024, 4, torch.float32)
    found, wanted = (ops.hardest_negatives(x, x, backend=name) for name in ("native", "reference"))
    assert torch.equal(found.text_index, wanted.text_index)
    x = rows(1025, 1, torch.float32)
    with pytest.raises(RuntimeError, match="2 x 1025 rows; .* up to 1024 rows per side"):
        kernels.max_of_hinges_forward(x[:2], x, None, None, None, 0.2, False)


@pytest.mark.any_set
def test_opcheck(kernels: Any) -> None:
    x, y, positive = rows(3, 6), rows(5, 6, seed=1), torch.tensor([2, 0, 1, 1, 0])
    ids = torch.arange(3), positive.clone()
    torch.library.opcheck(kernels.max_of_hinges_forward, (x, y, positive, *ids, 0.2, True))
    torch.library.opcheck(kernels.hardest_negatives_forward, (x, y, positive, *ids))
    grad, other = torch.ones(5).double(), torch.ones(3).double()
    indices = torch.tensor([1, 0, -1, 2, 3]), torch.tensor([0, -1, 1, 1, 2])
    torch.library.opcheck(kernels.max_of_hinges_backward, (grad, x, y, positive, *indices))
    given = grad, other, grad, x, y, positive, indices[0][:3], indices[1]
    torch.library.opcheck(kernels.hardest_negatives_backward, given)


@on("emulated")
def test_wrong_ids_make_the_whole_loss_nan(kernels: Any) -> None:
    x, y, one = rows(4, 5), rows(3, 5, seed=1), torch.ones((), dtype=torch.float64)
    ids = torch.tensor([0, -1, 3]), torch.arange(4), torch.tensor([0, 9, 3])
    total, *found = kernels.max_of_hinges_total_forward(x, y, *ids, 0.2, False, 0.5)
    assert total.isnan()
    grads = kernels.max_of_hinges_total_backward(one, x, y, ids[0], *found, 0.5)
    assert grads[0].isnan().all(1).tolist() == [True, False, False, False]
    assert grads[1].isnan().all(1).tolist() == [False, True, False]


@on("emulated")
def test_opcheck_of_the_whole_loss(kernels: Any) -> None:
    x, y, positive = rows(3, 6), rows(5, 6, seed=1), torch.tensor([2, 0, 1, 1, 0])
    given = x, y, positive, torch.arange(3), positive.clone()
    torch.library.opcheck(kernels.max_of_hinges_total_forward, (*given, 0.2, True, 0.5))
    total, *found = kernels.max_of_hinges_total_forward(*given, 0.2, True, 0.5)
    given = total, x, y, positive, *found, 0.5
    torch.library.opcheck(kernels.max_of_hinges_total_backward, given)
