"""Cosines of unnormalised rows with constant synthetic vectors, as InfoCMR computes them."""

import pytest
import torch
from torch import Tensor

from itm_kernels import reference
from itm_kernels.ops._rbf_synthesis import SynthesisOptions
from itm_kernels.ops._unit_synthesis import fused_unit_synthesis, normalises_rows
from kernels import MARKS
from synthesis_problems import Problem, near_duplicates, problem

pytestmark = MARKS["triton"]
EPS = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-6, torch.float64: 1e-10}


def cosines(case: Problem, backend: str, weights: str, sigma: float = 0.5) -> list[Tensor]:
    """Return cosines, where they exist, and the gradient of the anchors."""
    q, ids = case.anchors.detach().requires_grad_(), tuple(case.ids.values())
    options = SynthesisOptions(case.num_clusters, sigma, weights, 1e-4)
    if backend == "triton":
        found = fused_unit_synthesis(q, case.members, case.assignment, *ids, options, backend)
    else:
        units = reference.unit_rows(q), reference.unit_rows(case.members)
        found = reference.rbf_synthesis_logits(*units, case.assignment, *ids, *options, True)
    (grad,) = torch.autograd.grad(found[0], q, case.grad[..., 0].to(found[0].dtype))
    return [found[0].detach(), found[1], grad]


def longer(case: Problem, dtype: torch.dtype) -> Problem:
    """Return rounded rows with norms between .02 and 50, one of norm 0."""
    scale = torch.logspace(-1.7, 1.7, len(case.anchors), dtype=torch.float64)[:, None]
    case = case._replace(anchors=case.anchors * scale, members=case.members * 7)
    case.anchors[-1] = 0
    return case.to(dtype)


@pytest.mark.parametrize("weights", ["kam", "attention"])
@pytest.mark.parametrize("dtype", EPS, ids=str)
def test_error_is_at_most_twice_the_formulas(dtype: torch.dtype, weights: str) -> None:
    sizes = ((5, 33, 40, 3), (2, 3, 3, 5), (7, 70, 17, 2))
    cases = [longer(problem(*size), dtype) for size in sizes[: 1 + 2 * (dtype.itemsize == 4)]]
    for case in cases:
        exact = cosines(case.to(torch.float64), "reference", weights)
        eager, ours = (cosines(case, name, weights) for name in ("reference", "triton"))
        assert torch.equal(ours[1], exact[1])
        assert (ours[2][-1] == 0).all()  # a row of 0 has no direction
        for found, theirs, wanted in zip(ours[::2], eager[::2], exact[::2], strict=True):
            assert found.dtype == theirs.dtype
            size = wanted.abs().amax(1, keepdim=True).clamp_min(1e-3)
            errors = [((t.double() - wanted) / size).abs().max() for t in (found, theirs)]
            assert errors[0] <= 2 * errors[1] + EPS[dtype]


def test_near_duplicates() -> None:
    """Weights of thousands cancel: the mean over draws is compared, as for rbf_synthesis."""
    errors = []
    for seed in range(4):
        case = near_duplicates(5, 32, 33, 3, "shared", seed).to(torch.float32)
        exact = cosines(case.to(torch.float64), "reference", "kam")
        found = (cosines(case, name, "kam")[::2] for name in ("triton", "reference"))
        of_each = [zip(each, exact[::2], strict=True) for each in found]
        errors.append([[(one - wanted).abs().max() for one, wanted in pairs] for pairs in of_each])
    ours, eager = torch.tensor(errors).mean(0)
    assert (ours <= 2 * eager + 1e-5).all()


def test_blocks_of_anchors_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from itm_kernels.triton import _synthesis_blocks

    case = problem(7, 12, 5, 3)
    whole = cosines(case, "triton", "kam")
    monkeypatch.setattr(_synthesis_blocks, "rows_per_block", lambda *sizes: 3)
    for found, wanted in zip(cosines(case, "triton", "kam"), whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # inf - inf
def test_rows_that_are_not_finite_show() -> None:
    case = problem(4, 12, 7, 3, ids=True)
    case.anchors[2, 1] = torch.nan
    found, valid, grad = cosines(case, "triton", "kam")
    assert found[2][valid[2]].isnan().all() and grad[2].isnan().all()
    assert found[:2].isfinite().all() and grad[:2].isfinite().all()
    case.assignment[:] = torch.arange(12) % 2  # cluster 2 is empty
    case = case._replace(
        ids={name: torch.full_like(ids, i) for i, (name, ids) in enumerate(case.ids.items())}
    )
    case.members[4, 2] = torch.inf
    found = cosines(case, "triton", "kam")[0]
    assert found[:, 0].isnan().all() and (found[:, 2] == 0).all()
    assert found[:2, 1].isfinite().all()


def test_without_gradients_nothing_is_kept() -> None:
    case = problem(5, 9, 7, 3)
    inputs = case.anchors, case.members, case.assignment, *case.ids.values(), 3, 0.5, "kam", 1e-4
    forward = torch.ops.itm_triton.unit_synthesis_forward
    few, many = forward(*inputs, False), forward(*inputs, True)
    assert [t.numel() for t in few[2:]] == [0, 0, 0]
    assert torch.equal(few[0], many[0])
    torch.library.opcheck(forward, (*inputs, True))
    assert normalises_rows(case.anchors, case.members, "triton")
    assert not normalises_rows(case.anchors, case.members, "reference")
